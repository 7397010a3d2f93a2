"""Several methods at once on one model, each at its own place: a soft prompt on a LoRA, adapters beside BitFit.

Places are the two doors and the layers; two methods at one place would be another method, so that is refused.
"""

from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2
from minipeft.methods.base import INPUT, MEMORY, Attachment, Doors, Method
from minipeft.methods.full import FullFinetuning
from minipeft.methods.hard_prompt import HardPrompt


@dataclass(frozen=True)
class Stack:
    """`methods` together: `Stack((LoRA(targets=("attn.c_attn",)), SoftPrompt(length=20)))`; all of them are trained."""

    methods: tuple[Method, ...]

    name: ClassVar[str] = "stack"
    peft_type: ClassVar[str] = "STACK"

    def __post_init__(self) -> None:
        if len(self.methods) < 2:
            raise ValueError(f"a stack needs at least two methods, got {len(self.methods)}; attach one by itself.")
        if any(isinstance(method, Stack) for method in self.methods):
            raise ValueError("a stack in a stack; put all their methods into one.")
        if any(isinstance(method, HardPrompt) for method in self.methods):
            raise ValueError(
                "a hard prompt changes the text and not the model, so it is no part of a stack; put its words around "
                "the text beforehand."
            )

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return set().union(*(method.places(model) for method in self.methods))

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "Stacked"]:
        """See `Method.attach_to`. Raises ValueError if two methods share a place."""
        for one, other in combinations(self.methods, 2):
            if shared := _shared(one.places(model), other.places(model)):
                way = "Take one, and a longer one" if shared in (INPUT, MEMORY) else "Give them different layers"
                raise ValueError(f"{one.name} and {other.name} cannot be stacked: both want {shared}. {way}.")
        parts: dict[int, Attachment] = {}
        # Finetuning trains a copy of what it finds, so it comes first: a copy of another part would be nobody's.
        for n in sorted(range(len(self.methods)), key=lambda n: not isinstance(self.methods[n], FullFinetuning)):
            model, parts[n] = self.methods[n].attach_to(model, generator)
        return model, Stacked([parts[n] for n in range(len(parts))], [method.name for method in self.methods])

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`; PEFT has no such adapter, but every part is told as alone."""
        return {"parts": [{"peft_type": m.peft_type, **m.peft_config(model)} for m in self.methods]}

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "Stack":
        """See `Method.from_peft_config`."""
        from minipeft.methods import method_of  # the table of all methods, this one among them

        parts = config.get("parts")
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise CheckpointError(f"{path}: parts must be a list of the settings of each method.")
        return cls(tuple(method_of(part, model, path) for part in parts))


class Stacked(Attachment):
    """The trainable parts of all methods, in their order; in files the tensors of part 0 are called "0.…"."""

    def __init__(self, parts: list[Attachment], names: list[str]) -> None:
        super().__init__()
        self.parts, self._names = nn.ModuleList(parts), names

    def doors(self) -> Doors:
        prompt, memory = None, None
        for part in self._each():
            doors = part.doors()
            prompt, memory = doors.prompt if prompt is None else prompt, doors.memory if memory is None else memory
        return Doors(prompt, memory)

    def adapter_tensors(self) -> dict[str, Tensor]:
        return {f"{n}.{name}": t for n, part in enumerate(self._each()) for name, t in part.adapter_tensors().items()}

    def load_adapter_tensors(self, tensors: dict[str, Tensor]) -> None:
        for n, part in enumerate(self._each()):
            own = f"{n}."
            part.load_adapter_tensors({key[len(own) :]: t for key, t in tensors.items() if key.startswith(own)})

    def merge_into(self, model: GPT2) -> None:
        for part in self._each():
            part.merge_into(model)

    def unmergeable(self) -> str | None:
        why = zip(self._names, (part.unmergeable() for part in self._each()), strict=True)
        return next((f"of its parts, {name} cannot: {reason}" for name, reason in why if reason), None)

    def _each(self) -> list[Attachment]:
        return [cast(Attachment, part) for part in self.parts]


def _shared(some: set[str], others: set[str]) -> str | None:
    """A place of both, or of one that lies in a place of the other."""
    for one, other in product(sorted(some), sorted(others)):
        if f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}."):
            return max(one, other, key=len)
    return None
