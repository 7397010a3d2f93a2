"""What a language model makes of given tokens: the cost of each in nats, and whether it was the likeliest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from minipeft.gpt2 import GPT2
from minipeft.tokenizer import Tokenizer
from minipeft.tuned import Tuned

LOGITS_AT_ONCE = 1024
"""Positions whose logits exist at once: 200 MB for GPT-2's vocabulary."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a model as it is, or with a method attached."""

    model: GPT2
    hidden: Callable[..., Tensor]
    room: int

    @classmethod
    def of(cls, model: GPT2 | Tuned) -> "Subject":
        """Either of the two, in evaluation mode from now on."""
        model.eval()
        if isinstance(model, Tuned):
            return cls(model.model, model.hidden, model.room)
        return cls(model, model.hidden, model.config.n_positions)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.model.tokenizer


@dataclass(frozen=True)
class Row:
    """Token ids, of which those from `scored_from` (at least 1) on are scored, each after all that stand before it."""

    ids: Sequence[int]
    scored_from: int


@dataclass(frozen=True)
class Scored:
    """One number for each scored token of a row: nats, and whether it was the likeliest."""

    nats: Float[Tensor, "N"]
    likeliest: Bool[Tensor, "N"]


@torch.no_grad()
def score(
    subject: Subject, rows: Sequence[Row], batch_size: int, tick: Callable[[str], None] = lambda note: None
) -> list[Scored]:
    """Every row, in the order given; rows of similar length share a batch. `tick` is called once a batch."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    found: dict[int, Scored] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        found |= dict(zip(numbers, _score_batch(subject, [rows[number] for number in numbers]), strict=True))
        tick("")
    return [found[number] for number in range(len(rows))]


def batches(rows: Sequence[Row], batch_size: int) -> int:
    """How often `score` calls `tick`."""
    return -(-len(rows) // batch_size)


def _score_batch(subject: Subject, rows: Sequence[Row]) -> list[Scored]:
    T = max(len(row.ids) for row in rows)
    # Padded on the right, where causal attention never looks: no mask is needed.
    tokens = torch.tensor([[*row.ids, *[0] * (T - len(row.ids))] for row in rows], device=subject.model.device)
    wanted = torch.tensor([[row.scored_from <= t < len(row.ids) for t in range(1, T)] for row in rows]).to(
        tokens.device
    )
    hidden, targets = subject.hidden(tokens[:, :-1], only=wanted), tokens[:, 1:][wanted]  # [N, D], [N]
    nats, likeliest = torch.empty(len(targets)), torch.empty(len(targets), dtype=torch.bool)
    for start in range(0, len(targets), LOGITS_AT_ONCE):
        part = slice(start, start + LOGITS_AT_ONCE)
        logits = subject.model.logits(hidden[part]).float()
        nats[part] = F.cross_entropy(logits, targets[part], reduction="none").cpu()
        likeliest[part] = (logits.argmax(dim=-1) == targets[part]).cpu()
    sizes = [len(row.ids) - row.scored_from for row in rows]
    return [Scored(*both) for both in zip(nats.split(sizes), likeliest.split(sizes), strict=True)]
