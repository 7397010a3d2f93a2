"""The methods side by side: where each enters, its equation, what it trains and keeps, and who published it."""

from dataclasses import dataclass

import torch

from minipeft.config import GPT2Config
from minipeft.methods import (
    IA3,
    BitFit,
    BottleneckAdapter,
    FullFinetuning,
    HardPrompt,
    LlamaAdapter,
    LoRA,
    Method,
    Prefix,
    PTuning,
    SoftPrompt,
)
from minipeft.methods.base import without_weights

BYTES = 4
"""Trained numbers are kept as fp32."""


@dataclass(frozen=True)
class Entry:
    """A method as tables show it: how it is called, its door and place, its equation, the count of what it trains.

    The letters are the papers': p vectors, m hidden units, r rank; L layers, H heads, D width of the model.
    """

    call: str
    method: Method
    door: str
    place: str
    equation: str
    trained: str
    source: str
    arxiv: str


@dataclass(frozen=True)
class Count:
    """How many numbers a method trains, and how many of them, or of what they become, stay in its file."""

    trained: int
    kept: int

    @property
    def size(self) -> int:
        """Bytes that one more task costs, without the few kB of names and settings."""
        return BYTES * self.kept


METHODS_TABLE: tuple[Entry, ...] = (
    Entry(
        'HardPrompt("Review: {text}")',
        HardPrompt("Review: {text}"),
        "input",
        "words around the text",
        "x = wte(words t₁ … t_T) + wpe",
        "0",
        "Brown et al. 2020",
        "2005.14165",
    ),
    Entry(
        "SoftPrompt(length=20)",
        SoftPrompt(20, init="random"),  # counted without weights, so that there is no vocabulary to start from
        "input",
        "vectors before the embeddings",
        "x = [P₁ … P_p; wte(t₁ … t_T)] + wpe",
        "p·D",
        "Lester et al. 2021",
        "2104.08691",
    ),
    Entry(
        "PTuning(length=20)",
        PTuning(20),
        "input",
        "a soft prompt made by an LSTM that is folded away",
        "P = W₂ relu(W₁ BiLSTM(E))",
        "p·D + 14·D² + 18·D",
        "Liu et al. 2021",
        "2103.10385",
    ),
    Entry(
        'PTuning(length=20, encoder="mlp")',
        PTuning(20, encoder="mlp"),
        "input",
        "the same, made by an MLP",
        "P = W₃ relu(W₂ relu(W₁ E))",
        "p·D + 3·D² + 3·D",
        "Liu et al. 2021",
        "2103.10385",
    ),
    Entry(
        "Prefix(length=10, reparam=None)",
        Prefix(10, reparam=None),
        "memory",
        "keys and values in every block",
        "softmax(q [P_k; K]ᵀ / √Dh) [P_v; V]",
        "2·L·D·p",
        "Liu et al. 2022 (P-tuning v2)",
        "2110.07602",
    ),
    Entry(
        "Prefix(length=10, reparam=512)",
        Prefix(10, reparam=512),
        "memory",
        "the same, made by an MLP that is folded away",
        "[P_k, P_v] = W₂ tanh(W₁ E + b₁) + b₂",
        "p·D + D·m + m + 2·L·D·(m + 1)",
        "Li & Liang 2021",
        "2101.00190",
    ),
    Entry(
        "LoRA(rank=8)",
        LoRA(rank=8),
        "weights",
        "a low-rank matrix beside c_attn, or any linear layer",
        "h = W x + b + (α / r) · B A x",
        "r·(in + out) a layer",
        "Hu et al. 2021",
        "2106.09685",
    ),
    Entry(
        'LoRA(rank=4, targets=("attn.q", "attn.v"))',
        LoRA(rank=4, targets=("attn.q", "attn.v")),
        "weights",
        "the paper's: queries and values alone",
        "q = W_q x + (α / r) · B A x, likewise v",
        "4·L·D·r",
        "Hu et al. 2021",
        "2106.09685",
    ),
    Entry(
        "IA3()",
        IA3(),
        "weights",
        "factors on the output of c_attn and the input of mlp.c_proj",
        "h = l ⊙ (W x + b), h = W (l ⊙ x) + b",
        "7·L·D",
        "Liu et al. 2022",
        "2205.05638",
    ),
    Entry(
        "BottleneckAdapter(width=64)",
        BottleneckAdapter(64),
        "weights",
        "a small network behind each half of a block",
        "h + W₂ gelu(W₁ h + b₁) + b₂",
        "2·L·(2·D·m + D + m)",
        "Houlsby et al. 2019",
        "1902.00751",
    ),
    Entry(
        'BottleneckAdapter(width=64, form="lin")',
        BottleneckAdapter(64, form="lin"),
        "weights",
        "one behind each block, with a layer norm",
        "h + W₂ gelu(W₁ LN(h) + b₁) + b₂",
        "L·(2·D·m + 3·D + m)",
        "Lin et al. 2020",
        "2004.03829",
    ),
    Entry(
        "LlamaAdapter(length=10)",
        LlamaAdapter(10),
        "weights",
        "vectors that each block attends to, through a gate that starts closed",
        "softmax(q Kᵀ / √Dh) V + tanh(g) · softmax(q K_pᵀ / √Dh) V_p",
        "p·L·D + L·H",
        "Zhang et al. 2023",
        "2303.16199",
    ),
    Entry(
        "BitFit()",
        BitFit(),
        "weights",
        "every bias",
        "h = W x + b, b alone is trained",
        "11·L·D + D",
        "Zaken et al. 2022",
        "2106.10199",
    ),
    Entry(
        "FullFinetuning(top_layers=2)",
        FullFinetuning(2),
        "weights",
        "the last two blocks",
        "W ← W − η ∇W",
        "2·(12·D² + 13·D) + 2·D",
        "Li & Liang 2021, §5",
        "2101.00190",
    ),
    Entry(
        "FullFinetuning()",
        FullFinetuning(),
        "weights",
        "everything",
        "W ← W − η ∇W",
        "all",
        "Radford et al. 2018",
        "",
    ),
)


def count(method: Method, config: GPT2Config) -> Count:
    """What `method` trains and keeps on a GPT-2 of this shape; no memory is taken for either.

    Raises ValueError if the settings do not fit the shape.
    """
    attachment = without_weights(method, config)
    shapes = attachment.adapter_shapes().values()
    trained = sum(parameter.numel() for parameter in attachment.parameters() if parameter.requires_grad)
    return Count(trained, sum(torch.Size(shape).numel() for shape in shapes))


def size_told(size: int) -> str:
    """Bytes as people read them: 61 kB, 36.9 MB."""
    told, units = float(size), ["B", "kB", "MB", "GB"]
    while told >= 999.5 and len(units) > 1:
        told /= 1000
        units.pop(0)
    return f"{told:.3g} {units[0]}"
