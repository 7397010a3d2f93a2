"""BitFit: only the biases are trained (the weights door).

    h = W x + b        b is trained, W is not; likewise the shift of every layer norm

They start as the base's own, so that a new BitFit changes nothing. Source: Zaken et al. 2022, §3.
Trainable numbers on GPT-2: 11·L·D + D.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minipeft.gpt2 import GPT2
from minipeft.layers import LayerNorm, Linear
from minipeft.methods.base import Attachment
from minipeft.methods.weights import shadow


@dataclass(frozen=True)
class BitFit:
    """Train every bias of the model."""

    name: ClassVar[str] = "bitfit"
    peft_type: ClassVar[str] = "BITFIT"

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "Biases"]:
        """See `Method.attach_to`: the model to run shares every other weight with the base."""
        runs, found = shadow(model), Biases()
        for name, module in _with_biases(runs):
            own = OwnBias(module)
            parent, _, child = name.rpartition(".")
            setattr(runs.get_submodule(parent), child, own)
            found.add(name, own)
        return runs, found

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return {name for name, _ in _with_biases(model)}

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`; PEFT has no such adapter."""
        return {}

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "BitFit":
        """See `Method.from_peft_config`."""
        return cls()


class OwnBias(nn.Module):
    """A frozen linear layer or layer norm with another bias, which is trained."""

    def __init__(self, frozen: Linear | LayerNorm) -> None:
        super().__init__()
        self.frozen = frozen
        self.bias = nn.Parameter(frozen.bias.detach().clone().float())

    def forward(self, x: Float[Tensor, "B T I"]) -> Float[Tensor, "B T O"]:
        if isinstance(self.frozen, Linear):
            return self.frozen.product(x, self.frozen.weight, self.bias.to(x.dtype))
        return self.frozen.normed(x, self.bias.to(self.frozen.weight.dtype))


class Biases(Attachment):
    """All biases, by their GPT-2 names."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.ParameterDict()

    def add(self, name: str, own: OwnBias) -> None:
        """Take over the bias of one layer."""
        self.biases[_key(name)] = own.bias

    def adapter_tensors(self) -> dict[str, Tensor]:
        return {f"{key.replace('_in_', '.')}.bias": bias for key, bias in self.biases.items()}

    @torch.no_grad()
    def merge_into(self, model: GPT2) -> None:
        for name, bias in self.adapter_tensors().items():
            model.get_parameter(name).copy_(bias)


def _with_biases(model: GPT2) -> Iterator[tuple[str, Linear | LayerNorm]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear | LayerNorm) and module.bias is not None:
            yield name, module


def _key(name: str) -> str:
    """A parameter's name may hold no dot."""
    return name.replace(".", "_in_")
