"""Soft prompt: P trainable vectors in front of the token embeddings (the input door).

    x = [P₁ … P_p, wte(t₁) … wte(t_T)] + wpe(0 … p+T-1)

Source: Lester et al. 2021, §2. Trainable numbers: p·D.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minipeft.gpt2 import GPT2
from minipeft.methods.base import (
    INPUT,
    Attachment,
    Doors,
    check_length,
    prompt_learning_config,
    read_prompt_length,
    starting_tokens,
)


@dataclass(frozen=True)
class SoftPrompt:
    """`length` trainable vectors, initialised as Lester et al. 2021, §2.1 do.

    init: "random" (uniform in ±0.5), "vocab" (embeddings of random common tokens), "text:…" (embeddings of that text,
    repeated or cut to length), "labels" (the mean embedding of each of `labels`, the rest as "vocab").
    """

    length: int = 20
    init: str = "vocab"
    labels: tuple[str, ...] = ()

    name: ClassVar[str] = "soft_prompt"
    peft_type: ClassVar[str] = "PROMPT_TUNING"

    def __post_init__(self) -> None:
        if self.init not in ("random", "vocab", "labels") and not self.init.startswith("text:"):
            raise ValueError(f'init is {self.init!r}; it can be "random", "vocab", "labels" or "text:some text".')

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "LearnedPrompt"]:
        """See `Method.attach_to`."""
        check_length(self.length, model)
        return model, LearnedPrompt(self._start(model, generator))

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return {INPUT}

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`. The start of training does not matter to a trained prompt, so it is not told."""
        return {**prompt_learning_config(model, self.length), "prompt_tuning_init": "RANDOM"}

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "SoftPrompt":
        """See `Method.from_peft_config`."""
        return cls(length=read_prompt_length(config, model, path), init="random")

    def _start(self, model: GPT2, generator: torch.Generator | None) -> Float[Tensor, "P D"]:
        if self.init == "random":
            return torch.rand(self.length, model.config.n_embd, generator=generator) - 0.5
        if self.init != "labels":
            return _embeddings(model, starting_tokens(self.init, self.length, model, generator))
        if not self.labels:
            raise ValueError(
                'init="labels" needs the labels: SoftPrompt(init="labels", labels=("negative", "positive")).'
            )
        start = _embeddings(model, starting_tokens("vocab", self.length, model, generator))
        for row, label in zip(start, self.labels, strict=False):  # a short prompt takes the first labels
            row.copy_(_embeddings(model, model.tokenizer.encode(" " + label.strip())).mean(dim=0))
        return start


class LearnedPrompt(Attachment):
    """The prompt itself: one parameter, [P, D]."""

    def __init__(self, start: Float[Tensor, "P D"]) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(start)

    def doors(self) -> Doors:
        return Doors(prompt=self.prompt_embeddings[None])

    def adapter_tensors(self) -> dict[str, Tensor]:
        return {"prompt_embeddings": self.prompt_embeddings}


def _embeddings(model: GPT2, ids: list[int]) -> Float[Tensor, "N D"]:
    return model.wte.weight.detach()[torch.tensor(ids, device=model.device)].float().cpu()
