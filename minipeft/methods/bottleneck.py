"""Bottleneck adapters: small two-layer networks between the frozen ones (the weights door).

    h + W₂ gelu(W₁ h + b₁) + b₂

Houlsby: after each of the two halves of a block, before its input is added. Lin: one after each block, on
LayerNorm(h) with a norm of its own. W₂ starts at zero, so that a new adapter changes nothing; Houlsby et al.'s code
draws it as small as W₁, which moves the logits of nano by 1e-3 before any training.
Source: Houlsby et al. 2019, §2.1; Lin et al. 2020, §3.
Trainable numbers: 2·L·(2·D·m + D + m) or, of Lin's, L·(2·D·m + D + m + 2·D).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipeft.attention import Memory, Rows
from minipeft.gpt2 import GPT2, Block
from minipeft.methods.base import Attachment, check_count, read_count
from minipeft.methods.weights import linear, replace, shadow

FORMS = ("houlsby", "lin")


@dataclass(frozen=True)
class BottleneckAdapter:
    """Adapters of `width` hidden units, in the form of "houlsby" (two a block) or "lin" (one a block).

    norms: train the model's own layer norms, too, as Houlsby et al. do.
    """

    width: int = 64
    form: str = "houlsby"
    norms: bool = False

    name: ClassVar[str] = "adapter"
    peft_type: ClassVar[str] = "BOTTLENECK_ADAPTER"

    def __post_init__(self) -> None:
        check_count("width", self.width)
        if self.form not in FORMS:
            raise ValueError(f"form is {self.form!r}; it can be {' or '.join(map(repr, FORMS))}.")

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "Adapters"]:
        """See `Method.attach_to`: the model to run shares every weight with the base."""
        runs, found = shadow(model), Adapters()
        D, gelu = model.config.n_embd, runs.blocks[0].mlp.gelu
        for layer, block in enumerate(runs.blocks):
            if self.norms:
                for norm in ("ln_1", "ln_2"):
                    own = OwnNorm(block.get_submodule(norm))
                    setattr(block, norm, own)
                    found.add(f"h.{layer}.{norm}", own)
            if self.form == "houlsby":
                for name in ("attn.c_proj", "mlp.c_proj"):
                    adapter = Bottleneck(D, self.width, gelu, generator)
                    replace(runs, layer, name, nn.Sequential(linear(runs, layer, name), adapter))
                    found.add(f"h.{layer}.{name}", adapter)
            else:
                adapter = Bottleneck(D, self.width, gelu, generator, norm=True)
                runs.h[layer] = BlockThenAdapter(block, adapter)
                found.add(f"h.{layer}", adapter)
        if self.norms:
            last = OwnNorm(runs.ln_f)
            setattr(runs, "ln_f", last)  # noqa: B010, one of another class in its place
            found.add("ln_f", last)
        return runs, found

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        names = ["attn.c_proj", "mlp.c_proj"] if self.form == "houlsby" else ["adapter"]
        names += ["ln_1", "ln_2"] if self.norms else []
        places = {f"h.{layer}.{name}" for layer in range(model.config.n_layer) for name in names}
        return places | ({"ln_f"} if self.norms else set())

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`; PEFT has no such adapter."""
        return {"width": self.width, "form": self.form, "norms": self.norms}

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "BottleneckAdapter":
        """See `Method.from_peft_config`."""
        return cls(read_count(config, "width", path), str(config.get("form")), bool(config.get("norms")))


class Bottleneck(nn.Module):
    """h -> h + W₂ gelu(W₁ h + b₁) + b₂, on LayerNorm(h) where it has a norm."""

    def __init__(
        self, width: int, hidden: int, gelu: str, generator: torch.Generator | None, norm: bool = False
    ) -> None:
        super().__init__()
        self.gelu = gelu
        self.W1, self.b1 = nn.Parameter(_near_zero(hidden, width, generator)), nn.Parameter(torch.zeros(hidden))
        self.W2, self.b2 = nn.Parameter(torch.zeros(width, hidden)), nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.ones(width)) if norm else None
        self.bias = nn.Parameter(torch.zeros(width)) if norm else None

    def forward(self, h: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        to = h.dtype
        x = h
        if self.weight is not None and self.bias is not None:
            x = F.layer_norm(h, h.shape[-1:], self.weight.to(to), self.bias.to(to))
        x = F.gelu(F.linear(x, self.W1.to(to), self.b1.to(to)), approximate=self.gelu)
        return h + F.linear(x, self.W2.to(to), self.b2.to(to))


class BlockThenAdapter(Block):
    """The parts of a frozen block, and an adapter behind it."""

    def __init__(self, block: Block, adapter: Bottleneck) -> None:
        nn.Module.__init__(self)  # the parts are there already
        self.ln_1, self.attn, self.ln_2, self.mlp = block.ln_1, block.attn, block.ln_2, block.mlp
        self.adapter = adapter
        if block._compiled_call_impl is not None:
            self.compile(dynamic=True)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "#B 1 T S"] | Rows | None,
        memory: Memory | None,
        layer: int,
        only: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "#B _ D"]:
        return self.adapter(super().forward(x, mask, memory, layer, only))


class OwnNorm(nn.Module):
    """A layer norm with weight and bias of its own, which start as the frozen one's."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        assert isinstance(frozen, nn.LayerNorm)
        self.eps = frozen.eps
        self.weight = nn.Parameter(frozen.weight.detach().clone().float())
        self.bias = nn.Parameter(frozen.bias.detach().clone().float())

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Adapters(Attachment):
    """All adapters and trained norms, by the layer that they follow or replace."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        self._names: dict[str, str] = {}

    def add(self, name: str, part: nn.Module) -> None:
        """Take over one adapter or norm."""
        self._names[name.replace(".", "_")] = name
        self.parts[name.replace(".", "_")] = part

    def adapter_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for key, name in self._names.items():
            stem = name if isinstance(self.parts[key], OwnNorm) else f"{name}.adapter"
            tensors |= {f"{stem}.{own}": parameter for own, parameter in self.parts[key].named_parameters()}
        return tensors


def _near_zero(rows: int, columns: int, generator: torch.Generator | None) -> Float[Tensor, "rows columns"]:
    """Normal with a deviation of 1e-3, cut at two deviations: Houlsby et al.'s code; their §3.6 says 1e-2."""
    return nn.init.trunc_normal_(torch.empty(rows, columns), std=1e-3, a=-2e-3, b=2e-3, generator=generator)
