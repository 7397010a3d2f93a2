"""IA³: learned factors on what flows through frozen layers (the weights door).

    h = l ⊙ (W x + b)  of keys and values        h = W (l ⊙ x) + b  in the second layer of the MLP

All factors start at one, so that a new IA³ changes nothing. Source: Liu et al. 2022, §3.3.
Trainable numbers on GPT-2, where PEFT scales all of attn.c_attn and the input of mlp.c_proj: 3·L·D + 4·L·D.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2
from minipeft.methods.base import Attachment
from minipeft.methods.weights import LINEAR, chosen, linear, modules_named, peft_name, replace, shadow, shortened


@dataclass(frozen=True)
class IA3:
    """Factors on the output of `targets` and on the input of `feedforward`; names as for LoRA's targets.

    The paper scales keys and values; GPT-2's one matrix makes queries, too, and PEFT, whose files we share, scales all.
    """

    targets: tuple[str, ...] = ("attn.c_attn",)
    feedforward: tuple[str, ...] = ("mlp.c_proj",)

    name: ClassVar[str] = "ia3"
    peft_type: ClassVar[str] = "IA3"

    def __post_init__(self) -> None:
        if not (self.targets or self.feedforward):
            raise ValueError(f"IA3 has nothing to scale; name some of {', '.join(LINEAR)}.")

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "Factors"]:
        """See `Method.attach_to`: the model to run shares every weight with the base."""
        outputs, inputs = chosen(model, self.targets), chosen(model, self.feedforward)
        if both := set(outputs) & set(inputs):
            layer, name = min(both)
            raise ValueError(f"h.{layer}.{name} is in targets and in feedforward; scale its output or its input.")
        runs, found = shadow(model), Factors()
        for layer, name in outputs + inputs:
            scaled = ScaledLinear(linear(runs, layer, name), on_input=(layer, name) in inputs)
            replace(runs, layer, name, scaled)
            found.add(layer, name, scaled)
        return runs, found

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return {f"h.{layer}.{name}" for layer, name in chosen(model, (*self.targets, *self.feedforward))}

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`."""
        outputs, inputs = chosen(model, self.targets), chosen(model, self.feedforward)
        return {
            "target_modules": list(shortened(sorted(outputs + inputs), model)),
            "feedforward_modules": list(shortened(inputs, model)),
            "fan_in_fan_out": True,
            "modules_to_save": None,
            "init_ia3_weights": True,
        }

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "IA3":
        """See `Method.from_peft_config`. What older versions of PEFT leave out has PEFT's defaults for a GPT-2."""
        for key in ("modules_to_save", "exclude_modules"):
            if config.get(key):
                raise CheckpointError(f"{path}: {key} is {config[key]!r}; minipeft reads IA3 without that.")
        names = modules_named(config.get("target_modules") or ["c_attn", "mlp.c_proj"], model)
        forward = config.get("feedforward_modules")
        inputs = set(modules_named(["mlp.c_proj"] if forward is None else forward, model)) if forward != [] else set()
        return cls(
            shortened(chosen(model, [name for name in names if name not in inputs]), model),
            shortened(chosen(model, [name for name in names if name in inputs]), model),
        )


class ScaledLinear(nn.Module):
    """A frozen linear layer with a factor for each number of its output, or of its input."""

    def __init__(self, frozen: nn.Linear, on_input: bool) -> None:
        super().__init__()
        self.frozen, self.on_input = frozen, on_input
        self.factors = nn.Parameter(torch.ones(frozen.in_features if on_input else frozen.out_features))

    def forward(self, x: Float[Tensor, "B T I"]) -> Float[Tensor, "B T O"]:
        factors = self.factors.to(x.dtype)
        return self.frozen(x * factors) if self.on_input else self.frozen(x) * factors


class Factors(Attachment):
    """All factors, by the layer whose flow they scale."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ParameterDict()
        self._scaled: dict[tuple[int, str], ScaledLinear] = {}  # not registered: the frozen weights are not ours

    def add(self, layer: int, name: str, scaled: ScaledLinear) -> None:
        """Take over the factors of one linear layer."""
        self._scaled[layer, name] = scaled
        self.factors[f"h_{layer}_{name.replace('.', '_')}"] = scaled.factors

    def adapter_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for (layer, name), scaled in self._scaled.items():
            factors = scaled.factors[None, :] if scaled.on_input else scaled.factors[:, None]  # [1, I] or [O, 1]
            tensors[f"{peft_name(layer, name)}.ia3_l"] = factors
        return tensors

    @torch.no_grad()
    def merge_into(self, model: GPT2) -> None:
        for (layer, name), scaled in self._scaled.items():
            plain, factors = linear(model, layer, name), scaled.factors
            if scaled.on_input:
                plain.weight.copy_(plain.weight.float() * factors)
            else:
                plain.weight.copy_(plain.weight.float() * factors[:, None])
                plain.bias.copy_(plain.bias.float() * factors)
