"""What a task is: texts and what should follow them, in three splits, and how both become token ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minipeft.gpt2 import NOT_SCORED
from minipeft.tokenizer import Tokenizer

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Example:
    """A text, what should follow it, and where it stands in its file (for error messages)."""

    text: str
    target: str
    where: str = ""


@dataclass(frozen=True)
class Task:
    """Examples in three splits. With `labels` the target is one of a few words, else it is free text.

    The model reads text + joint and is to write the target: a label's word in `words`, or the text and its end.
    """

    name: str
    splits: dict[str, tuple[Example, ...]] = field(repr=False)
    labels: tuple[str, ...] = ()
    words: dict[str, str] = field(default_factory=dict)
    joint: str = ""
    hard_prompts: tuple[str, ...] = ("{text}",)
    """Templates that a person would try; the words of the labels follow them."""

    def word(self, target: str) -> str:
        """What the model writes for a label."""
        return self.words.get(target, " " + target)


@dataclass(frozen=True)
class Encoded:
    """One example as token ids, of which those from `target_starts` on are scored."""

    ids: list[int]
    target_starts: int

    @property
    def scored(self) -> int:
        """How many of them count in a loss; the first has nothing before it to be predicted from."""
        return len(self.ids) - max(1, self.target_starts)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right; labels are -100 where nothing is scored."""

    tokens: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(self.tokens.to(device), self.labels.to(device), self.attention_mask.to(device))


class TooLong(ValueError):
    """An example needs more positions than the model has."""


class Encoder:
    """Examples of a task to token ids, as a method wants them: with its hard prompt, within its room.

    `template` holds "{text}" and replaces the task's joint. `room`: positions that the method leaves to the text.
    With `truncate` a text that is too long loses its end; else TooLong names it.
    Labels of which one begins another ("refund", "refund request") are all followed by `<|endoftext|>`: without an end
    the shorter one would always be the likelier.
    """

    def __init__(
        self, task: Task, tokenizer: Tokenizer, room: int, template: str | None = None, truncate: bool = False
    ) -> None:
        self.task, self.tokenizer, self.room, self.truncate = task, tokenizer, room, truncate
        before, after = ("", task.joint) if template is None else template.split("{text}")
        self.before = tokenizer.encode(before, allow_special=True)
        self.after = tokenizer.encode(after, allow_special=True)
        self.label_ids = _told_apart([(label, tokenizer.encode(task.word(label))) for label in task.labels], tokenizer)

    def context(self, example: Example) -> list[int]:
        """What stands before the target, which need not be known if it is a label. Raises TooLong."""
        return self._before_target(example, [] if self.task.labels else self._target(example))

    def encode(self, example: Example) -> Encoded:
        """Context and target. Raises TooLong."""
        target = self._target(example)
        context = self._before_target(example, target)
        if len(context) + len(target) > self.room:
            if not self.truncate:
                raise self._too_long(example, len(context) + len(target))
            target = target[: self.room - len(context)]
        return Encoded(context + target, len(context))

    def _target(self, example: Example) -> list[int]:
        if self.task.labels:
            return self.label_ids[example.target]
        return [*self.tokenizer.encode(example.target), self.tokenizer.eot]

    def _before_target(self, example: Example, target: list[int]) -> list[int]:
        """The text, with positions kept for the target: as many for every label; for a long text half the room."""
        reserved = max(map(len, self.label_ids.values())) if self.task.labels else min(len(target), self.room // 2)
        return self._around(self.tokenizer.encode(example.text), reserved, example)

    def _around(self, text: list[int], reserved: int, example: Example) -> list[int]:
        fixed = len(self.before) + len(self.after)
        spare = self.room - fixed - reserved
        if len(text) > spare:
            if not self.truncate or spare < 1:
                raise self._too_long(example, fixed + len(text) + reserved)
            text = text[:spare]
        return [*self.before, *text, *self.after]

    def _too_long(self, example: Example, needed: int) -> TooLong:
        return TooLong(
            f"{example.where or 'a text'} needs {needed} positions with its target, but the model and method leave "
            f"{self.room}; shorten it, use a shorter --length, or cut long texts with --truncate."
        )


def collate(rows: Sequence[Encoded], filler: int) -> Batch:
    """Encoded examples as one batch, padded on the right."""
    T = max(len(row.ids) for row in rows)
    tokens = torch.full((len(rows), T), filler)
    labels = torch.full((len(rows), T), NOT_SCORED)
    real = torch.zeros(len(rows), T, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = len(row.ids)
        tokens[i, :n] = torch.tensor(row.ids)
        labels[i, row.target_starts : n] = tokens[i, row.target_starts : n]
        real[i, :n] = True
    return Batch(tokens, labels, real)


def _told_apart(labels: Sequence[tuple[str, list[int]]], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The token ids of labels, with an end where one begins another."""
    begins = any(one != other and longer[: len(ids)] == ids for one, ids in labels for other, longer in labels)
    return {label: [*ids, tokenizer.eot] if begins else ids for label, ids in labels}
