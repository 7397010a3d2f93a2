"""Hard prompt: words around the text. Nothing is trained; it is what people do by hand.

Source: the prompting of Brown et al. 2020, §2, with no examples in the prompt.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2
from minipeft.methods.base import Attachment

SLOT = "{text}"


@dataclass(frozen=True)
class HardPrompt:
    """Words around the text: `HardPrompt("Review: {text} Sentiment:")`. Raises ValueError without one {text}."""

    template: str = SLOT

    name: ClassVar[str] = "hard_prompt"
    peft_type: ClassVar[str] = "HARD_PROMPT"

    def __post_init__(self) -> None:
        if self.template.count(SLOT) != 1:
            raise ValueError(f"the template {self.template!r} must contain {SLOT} exactly once.")

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "Words"]:
        """See `Method.attach_to`."""
        return model, Words()

    def around(self, text: str) -> str:
        """The text with the words around it."""
        return self.template.replace(SLOT, text)

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return set()

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`; PEFT knows no hard prompts."""
        return {"template": self.template}

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "HardPrompt":
        """See `Method.from_peft_config`."""
        if not isinstance(config.get("template"), str):
            raise CheckpointError(f"{path}: template is {config.get('template')!r}; it must be a text.")
        return cls(config["template"])


class Words(Attachment):
    """Nothing to train and nothing to store."""

    def adapter_tensors(self) -> dict[str, Tensor]:
        return {}
