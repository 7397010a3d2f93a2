"""P-tuning: a soft prompt that a small network makes while it is trained (the input door).

    P = head(BiLSTM(E))        head = Linear, ReLU, Linear;        or P = MLP(E), three layers

After training only P is kept: a soft prompt. Source: Liu et al. 2021 ("GPT Understands, Too"), §3.2; layers as PEFT's.
Trainable numbers of the LSTM form: p·D + 14·D² + 18·D.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2
from minipeft.methods.base import (
    INPUT,
    Attachment,
    Doors,
    check_dropout,
    check_length,
    prompt_learning_config,
    read_prompt_length,
    seeded_by,
)

ENCODERS = ("lstm", "mlp", None)


@dataclass(frozen=True)
class PTuning:
    """`length` vectors, made by the `encoder` "lstm" or "mlp" with `hidden` units (None: half the width, or the width).

    encoder None is what stays of it after training: the vectors themselves.
    """

    length: int = 20
    encoder: str | None = "lstm"
    hidden: int | None = None
    dropout: float = 0.0

    name: ClassVar[str] = "p_tuning"
    peft_type: ClassVar[str] = "P_TUNING"

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f'encoder is {self.encoder!r}; it can be "lstm", "mlp", or None for the vectors alone.')
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; it must be at least 1.")
        check_dropout(self.dropout)

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "EncodedPrompt"]:
        """See `Method.attach_to`."""
        check_length(self.length, model)
        with seeded_by(generator):
            return model, EncodedPrompt(
                self.length, model.config.n_embd, self._hidden(model), self.encoder, self.dropout
            )

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return {INPUT}

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`."""
        return {
            **prompt_learning_config(model, self.length),
            "encoder_reparameterization_type": "MLP" if self.encoder == "mlp" else "LSTM",
            "encoder_hidden_size": self._hidden(model),
            "encoder_num_layers": 2,
            "encoder_dropout": self.dropout,
        }

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "PTuning":
        """See `Method.from_peft_config`. Files hold the network's output, so what is loaded has none."""
        kind = config.get("encoder_reparameterization_type", "MLP")
        if kind not in ("MLP", "LSTM"):
            raise CheckpointError(f"{path}: encoder_reparameterization_type is {kind!r}; it must be MLP or LSTM.")
        return cls(read_prompt_length(config, model, path), encoder=None)

    def _hidden(self, model: GPT2) -> int:
        return self.hidden or model.config.n_embd // (2 if self.encoder == "lstm" else 1)


class EncodedPrompt(Attachment):
    """The table E and the network that makes the prompt of it; without a network the table is the prompt."""

    def __init__(self, length: int, width: int, hidden: int, encoder: str | None, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(length, width)
        self.lstm: nn.LSTM | None = None
        self.head: nn.Sequential | None = None
        if encoder == "lstm":
            self.lstm = nn.LSTM(width, hidden, num_layers=2, dropout=dropout, bidirectional=True, batch_first=True)
            self.head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
        elif encoder == "mlp":
            layers = [
                nn.Linear(width, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, width),
            ]
            self.head = nn.Sequential(*layers)

    def doors(self) -> Doors:
        return Doors(prompt=self._prompt()[None])

    def adapter_tensors(self) -> dict[str, Tensor]:
        return {"prompt_embeddings": self._prompt()}

    def _prompt(self) -> Float[Tensor, "P D"]:
        x = self.embedding.weight
        if self.lstm is not None:
            x = self.lstm(x[None])[0][0]
        return x if self.head is None else self.head(x)
