"""Lesson 13: merging LoRA, and LLaMA-Adapter's gated attention, against plain loops and a small GPT-2."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.checks.exercise import Exercise, require

RANK, ALPHA = 3, 7.0
B, H, T, K, Dh = 2, 4, 6, 5, 4
"""As many heads as numbers in a head, so that a gate along the wrong dimension fits, and must be told apart."""


def judge_merge(merge: Callable[..., Any]) -> None:
    """Number by number; then all the layers of a small model's file, whose logits must be those with LoRA beside."""
    generator = torch.Generator().manual_seed(0)
    for ins, outs in ((6, 6), (4, 10)):  # square first: there the wrong direction raises nothing
        sizes = ((ins, outs), (RANK, ins), (outs, RANK))
        W, a, b = (torch.randn(size, generator=generator) for size in sizes)
        given = W.clone()
        found = merge(given, a.clone(), b.clone(), ALPHA)
        _judge_weight(found, W, a, b)
        require(torch.equal(given, W), "W itself was changed. The base serves other tasks, too: return a new weight.")
    _judge_logits(merge)


def _judge_weight(found: Any, W: Tensor, a: Tensor, b: Tensor) -> None:
    require(isinstance(found, Tensor), f"merge must return a tensor, not a {type(found).__name__}.")
    merged, ins, outs = _merged(W, a, b), *W.shape
    transposed = found.shape == (outs, ins) and _close(found, merged.T)
    require(not transposed, "the result is [out, in]; GPT-2's files keep [in, out], as W comes in.")
    require(found.shape == W.shape, f"the result is {tuple(found.shape)}; it must be [in, out] as W, {(ins, outs)}.")
    if _close(found, merged):
        return
    change = (merged - W) * RANK / ALPHA  # B A, turned as the files are
    for mistake, wrong in (
        ("that is W as it was.", W),
        ("that is the change alone: add it to W.", merged - W),
        ("the change is multiplied by α and not divided by the rank r.", W + ALPHA * change),
        ("the scale α / r is missing.", W + change),
        ("the scale is upside down: it is α / r.", W + RANK / ALPHA * change),
        ("r is the rank, the size that A and B share: A.shape[0], not A.shape[1].", W + ALPHA / ins * change),
        ("r is the rank, the size that A and B share: B.shape[1], not B.shape[0].", W + ALPHA / outs * change),
        ("the change is subtracted: add it.", W - ALPHA / RANK * change),
        ("W was scaled with the change: only B A is multiplied by α / r.", ALPHA / RANK * (W + change)),
    ):
        require(not _close(found, wrong), mistake)
    wrong_way = W.shape[0] == W.shape[1] and any(
        _close(found, W + scale * change.T) for scale in (ALPHA / RANK, ALPHA, 1.0)
    )
    require(
        not wrong_way,
        "the change is the wrong way round: B A is [out, in], and W, as GPT-2's files keep it, [in, out]. With a "
        "square matrix nobody complains.",
    )
    require(False, "the merged weight is not W + (α / r) · B A, turned to [in, out], which a loop finds.")


def _merged(W: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """One number after another."""
    rows = [
        [
            float(W[i, o]) + ALPHA / RANK * sum(float(b[o, r]) * float(a[r, i]) for r in range(RANK))
            for o in range(W.shape[1])
        ]
        for i in range(W.shape[0])
    ]
    return torch.tensor(rows)


@torch.no_grad()
def _judge_logits(merge: Callable[..., Any]) -> None:
    """The file of a small GPT-2, every linear layer merged, opened again: the logits of the LoRA that runs beside."""
    from safetensors.torch import load_file, save_file

    from minipeft import GPT2, GPT2Config, LoRA, attach
    from minipeft.methods.weights import LINEAR

    model = GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=32), seed=0)
    tuned = attach(model, LoRA(rank=RANK, alpha=ALPHA, targets=LINEAR)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in tuned.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    tokens = torch.randint(32, (2, 9), generator=generator)
    beside = tuned(tokens)
    learned = tuned.attachment.adapter_tensors()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        tensors = load_file(path)
        for name in [name for name in learned if name.endswith("lora_A.weight")]:
            layer = name.removesuffix("lora_A.weight")
            where = layer.removeprefix("base_model.model.") + "weight"
            W, a, b = tensors[where], learned[name], learned[f"{layer}lora_B.weight"]
            tensors[where] = merge(W.clone(), a.clone(), b.clone(), ALPHA).contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
        merged = GPT2.from_pretrained(folder).eval()(tokens)
    far = float((merged - beside).abs().max())
    require(
        far < 1e-4, f"merged into all layers of a small GPT-2 it moves the logits by {far:.0e}; they must be equal."
    )


def judge_gated(gated_attention: Callable[..., Any]) -> None:
    """Token by token, head by head; and with all gates at zero the attention of the base, to the bit."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, H, T, Dh, generator=generator) for _ in range(3))
    prompt_k, prompt_v = (torch.randn(H, K, Dh, generator=generator) for _ in range(2))
    gate = torch.tensor([0.4, -1.2, 2.0, 0.9])
    parts = (q, k, v, prompt_k, prompt_v)

    def answer(g: Tensor) -> Any:
        return gated_attention(*(part.clone() for part in parts), g.clone())

    found = answer(gate)
    require(isinstance(found, Tensor), f"gated_attention must return a tensor, not a {type(found).__name__}.")
    require(
        tuple(found.shape) == (B, H, T, Dh),
        f"the output is {tuple(found.shape)}; it must be [B, H, T, Dh], {(B, H, T, Dh)}, as the attention of the text.",
    )
    base = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    closed = answer(torch.zeros(H))
    right, starts_as_base = _close(found, _gated(*parts, gate)), _close(closed, base)
    if right and starts_as_base:
        return
    keys, values = (part.expand(B, -1, -1, -1) for part in (prompt_k, prompt_v))
    attend, per_head = F.scaled_dot_product_attention, gate.view(-1, 1, 1)
    heard, bounded = attend(q, keys, values), torch.tanh(per_head)
    joined_k, joined_v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
    early = torch.ones(T, K, dtype=torch.bool).tril()
    for mistake, wrong in (
        ("the gate is used as it is: it goes through tanh, which keeps it between -1 and 1.", base + per_head * heard),
        (
            "the gate goes through a sigmoid, which is a half at zero: a new adapter would speak at once. tanh(0) is "
            "0.",
            base + torch.sigmoid(per_head) * heard,
        ),
        ("that is the attention without the prompt.", base),
        ("the gate is missing: multiply what comes from the prompt by tanh(gate).", base + heard),
        (
            "the prompt shares one softmax with the text, which is prefix tuning: it takes attention from the text "
            "even where its gate is closed. Give it a softmax of its own.",
            attend(q, joined_k, joined_v, attn_mask=torch.ones(T, K + T, dtype=torch.bool).tril(K)),
        ),
        (
            "the gate runs along the numbers of a head: there is one for each head, gate.view(-1, 1, 1).",
            base + torch.tanh(gate) * heard,
        ),
        (
            "what comes from the text is weakened by 1 - tanh(gate): it stays whole.",
            (1 - bounded) * base + bounded * heard,
        ),
        (
            "the gate multiplies what comes from the text, too; only the prompt goes through it.",
            bounded * (base + heard),
        ),
        (
            "the prompt is masked: every token sees all of it.",
            base + bounded * attend(q, keys, values, attn_mask=early),
        ),
        (
            "the prompt's scores are divided by the wrong number: it is the square root of Dh, as for the text.",
            base + bounded * attend(q, keys, values, scale=1.0),
        ),
        (
            "of the text, a token sees the tokens after it: is_causal=True.",
            attend(q, k, v) + bounded * heard,
        ),
        ("the prompt's keys and values are exchanged.", base + bounded * attend(q, values, keys)),
        (
            "the gate multiplies the scores, before the softmax: closed, it would share the attention out evenly.",
            base + attend(bounded * q, keys, values),
        ),
    ):
        require(not _close(found, wrong), mistake)
    require(
        starts_as_base,
        f"with every gate at zero the output differs from the base's by {float((closed - base).abs().max()):.1f}: then "
        "a new adapter harms the model before it has learned anything.",
    )
    require(False, "the output is not the text's attention plus tanh(gate) times the prompt's, head by head.")


def _gated(q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, gate: Tensor) -> Tensor:
    rows = []
    for b in range(B):
        for h in range(H):
            for t in range(T):
                text = _read(q[b, h, t], k[b, h, : t + 1], v[b, h, : t + 1])
                rows.append(text + math.tanh(float(gate[h])) * _read(q[b, h, t], prompt_k[h], prompt_v[h]))
    return torch.stack(rows).view(B, H, T, Dh)


def _read(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The values, each by its share of one softmax over the keys."""
    shares = [math.exp(float(q @ key) / math.sqrt(Dh)) for key in keys]
    return sum((share * value for share, value in zip(shares, values, strict=True)), torch.zeros(Dh)) / sum(shares)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b, atol=1e-5)


MERGE = Exercise(
    name="13a",
    function="merge",
    judge=judge_merge,
    hints=(
        "What LoRA adds to W x is (α / r) · B (A x) = ((α / r) · B A) x: a matrix times the same x.",
        "The rank r is the size that A and B share, A.shape[0].",
        "B @ A is [out, in]; W is [in, out], as in lesson four. One of the two must be transposed.",
    ),
)

GATED = Exercise(
    name="13b",
    function="gated_attention",
    judge=judge_gated,
    hints=(
        "Two separate attentions, added. F.scaled_dot_product_attention(q, k, v, is_causal=True) is that of the text.",
        "The prompt's is the same call without a mask, on prompt_k and prompt_v, each expanded to [B, H, K, Dh].",
        "torch.tanh(gate) is [H]; .view(-1, 1, 1) makes it fit [B, H, T, Dh] head by head.",
    ),
)
