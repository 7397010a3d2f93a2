"""LLaMA-Adapter: learned vectors that a frozen block attends to beside its text, through a gate that starts closed.

    head = softmax(q Kᵀ / √Dh) V + tanh(g) · softmax(q K_pᵀ / √Dh) V_p        with [K_p, V_p] = c_attn(P)

Added before the output projection; with g = 0 a new adapter changes nothing. Source: Zhang et al. 2023, §3.
Trainable numbers: K·D a layer and H gates. PEFT's form on GPT-2 differs, and its files mean that form: one gate a
layer, no tanh, added after the projection without going through it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minipeft.attention import Memory, Rows
from minipeft.gpt2 import GPT2, CausalSelfAttention
from minipeft.methods.base import Attachment, check_count, read_count
from minipeft.methods.weights import peft_name, shadow

FORMS = ("paper", "peft")


@dataclass(frozen=True)
class LlamaAdapter:
    """`length` learned vectors in each of the last `top_layers` blocks, all blocks if None.

    form: "paper", as published, or "peft", as PEFT has it on GPT-2 and as its files mean it.
    """

    length: int = 10
    top_layers: int | None = None
    form: str = "paper"

    name: ClassVar[str] = "llama_adapter"
    peft_type: ClassVar[str] = "ADAPTION_PROMPT"

    def __post_init__(self) -> None:
        check_count("length", self.length)
        if self.form not in FORMS:
            raise ValueError(f"form is {self.form!r}; it can be {' or '.join(map(repr, FORMS))}.")

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "GatedPrompts"]:
        """See `Method.attach_to`: the model to run shares every weight with the base."""
        runs, found = shadow(model), GatedPrompts()
        for layer in self._layers(model):
            gates = 1 if self.form == "peft" else model.config.n_head
            gated = GatedAttention(runs.blocks[layer].attn, self.length, gates, self.form == "peft", generator)
            runs.blocks[layer].attn = gated
            found.add(layer, gated)
        return runs, found

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return {f"h.{layer}.attn" for layer in self._layers(model)}

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`. `form` is ours: PEFT does not know the paper's on GPT-2."""
        return {
            "adapter_len": self.length,
            "adapter_layers": self.top_layers or model.config.n_layer,
            "target_modules": "attn",
            **({} if self.form == "peft" else {"peft_type": "LLAMA_ADAPTER", "form": self.form}),
        }

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "LlamaAdapter":
        """See `Method.from_peft_config`."""
        length, layers = (read_count(config, key, path) for key in ("adapter_len", "adapter_layers"))
        form = "paper" if config.get("peft_type") == "LLAMA_ADAPTER" else "peft"
        return cls(length, None if layers == model.config.n_layer else layers, form)

    def _layers(self, model: GPT2) -> range:
        layers = model.config.n_layer
        if self.top_layers is not None and not 1 <= self.top_layers <= layers:
            raise ValueError(f"top_layers is {self.top_layers}; this model has blocks 1 to {layers}.")
        return range(layers)[-(self.top_layers or layers) :]


class GatedAttention(CausalSelfAttention):
    """The parts of a frozen attention, and beside it the same queries asking learned vectors."""

    def __init__(
        self, frozen: CausalSelfAttention, length: int, gates: int, after: bool, generator: torch.Generator | None
    ) -> None:
        nn.Module.__init__(self)  # the parts are there already
        self.n_head, self.dropout, self.attend = frozen.n_head, frozen.dropout, frozen.attend
        self.c_attn, self.c_proj, self.after = frozen.c_attn, frozen.c_proj, after
        width = frozen.c_attn.in_features
        self.prompt = nn.Parameter(torch.randn(length, width, generator=generator))
        self.gate = nn.Parameter(torch.zeros(gates))

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "#B 1 T S"] | Rows | None, memory: Memory | None, layer: int
    ) -> Float[Tensor, "B T D"]:
        from_text, added = super().forward(x, mask, memory, layer), self._from_prompt(x)
        return from_text + (added if self.after else F.linear(added, self.c_proj.weight.to(added.dtype)))

    def _from_prompt(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """gate · softmax(q K_pᵀ / √Dh) V_p, heads joined."""
        q = self.c_attn(x).chunk(3, dim=-1)[0]
        _, k, v = self.c_attn(self.prompt.to(x.dtype)[None]).chunk(3, dim=-1)
        q, k, v = (self._split_heads(part) for part in (q, k, v))  # [B or 1, H, T or K, Dh]
        shares = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1, dtype=torch.float32)
        gate = self.gate if self.after else torch.tanh(self.gate)
        heads_out = (gate.view(-1, 1, 1) * shares).to(x.dtype) @ v  # [B, H, T, Dh]
        return heads_out.transpose(1, 2).flatten(2)


class GatedPrompts(Attachment):
    """The vectors and gates of every adapted block, under PEFT's names."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts, self.gates = nn.ParameterDict(), nn.ParameterDict()

    def add(self, layer: int, gated: GatedAttention) -> None:
        """Take over what one block has learned."""
        self.prompts[str(layer)], self.gates[str(layer)] = gated.prompt, gated.gate

    def adapter_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for layer in self.prompts:
            stem = peft_name(int(layer), "attn")
            tensors[f"{stem}.adaption_prompt"] = self.prompts[layer][None]
            tensors[f"{stem}.adaption_gate"] = self.gates[layer]
        return tensors
