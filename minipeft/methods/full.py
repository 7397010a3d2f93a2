"""Full finetuning: every weight is trained, or those of the last blocks (the weights door, wide open).

The base stays as it was: what is trained is a copy, and that copy per task is the price of this method.
Source: Radford et al. 2018, §3.2; the last blocks alone: Li & Liang 2021, §5 ("FT-top2").
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2
from minipeft.kernels.allocator import page_out
from minipeft.methods.base import Attachment
from minipeft.methods.weights import copied


@dataclass(frozen=True)
class FullFinetuning:
    """Train all weights, or only the last `top_layers` blocks with the final layer norm.

    The weights are fp32, whatever the base's are; for mixed precision call `GPT2.use_activations` on the base before.
    """

    top_layers: int | None = None

    name: ClassVar[str] = "full"
    peft_type: ClassVar[str] = "FULL"

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "TrainedCopy"]:
        """See `Method.attach_to`: the model to run is an fp32 copy."""
        if self.top_layers is not None and not 1 <= self.top_layers <= model.config.n_layer:
            raise ValueError(f"top_layers is {self.top_layers}; this model has blocks 1 to {model.config.n_layer}.")
        trained = copied(model, torch.float32).requires_grad_(self.top_layers is None)
        if model.device.type == "cpu":
            page_out(model.parameters())
        if self.top_layers is not None:
            trained.ln_f.requires_grad_()
            for block in trained.blocks[-self.top_layers :]:
                block.requires_grad_()
        return trained, TrainedCopy(trained)

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        if self.top_layers is None:
            return {name for name, _ in model.named_children()}
        return {"ln_f", *(f"h.{layer}" for layer in range(model.config.n_layer)[-self.top_layers :])}

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`; PEFT has no such adapter."""
        return {"top_layers": self.top_layers}

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "FullFinetuning":
        """See `Method.from_peft_config`."""
        top_layers = config.get("top_layers")
        if top_layers is not None and not isinstance(top_layers, int):
            raise CheckpointError(f"{path}: top_layers is {top_layers!r}; it must be a whole number or null.")
        return cls(top_layers)


class TrainedCopy(Attachment):
    """The copy's trained weights, under their GPT-2 names."""

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model
        self._trained = [name for name, p in model.named_parameters() if p.requires_grad]
        """Now: whoever freezes the copy later has not untrained it."""

    def adapter_tensors(self) -> dict[str, Tensor]:
        return {name: self.model.get_parameter(name) for name in self._trained}

    @torch.no_grad()
    def merge_into(self, model: GPT2) -> None:
        for name, trained in self.adapter_tensors().items():
            model.get_parameter(name).copy_(trained)
