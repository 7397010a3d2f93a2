"""The order in which training data is read: a function of the seed and the step, so that any step can be resumed."""

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

BATCHES_SORTED_TOGETHER = 8
Rows = TypeVar("Rows", bound=Any)
"""A batch: a list or a tensor of rows."""


class ShuffledStream:
    """The numbers 0 … n-1 in one random order after another, without end.

    With `labels`, one per number, every stretch of the stream holds each label in about its share of the whole.
    """

    def __init__(self, n: int, seed: int, labels: Sequence[str] = ()) -> None:
        self.n, self.seed, self.labels = n, seed, labels
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def batch(self, step: int, size: int) -> list[tuple[int, int]]:
        """(epoch, number) of each of the `size` rows that step 0, 1, … reads."""
        places = (divmod(place, self.n) for place in range(step * size, (step + 1) * size))
        return [(epoch, int(self._order(epoch)[index])) for epoch, index in places]

    def _shuffle(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(self.n)
        if not self.labels:
            return order
        starts = {label: random.random() for label in sorted(set(self.labels))}
        return order[_interleaved([self.labels[row] for row in order], starts)]


class BucketedBatches:
    """Batches of rows of similar length, so that little of a batch is padding.

    Eight batches' worth of the shuffled stream are sorted by length, cut into batches, and those read in random order:
    what stands in a batch, and when it comes, still changes from epoch to epoch. With `labels`, one per row, a batch
    holds each label in its share: else the gradient of a few trained vectors mostly follows which label is in excess.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, labels: Sequence[str] = ()) -> None:
        self.lengths, self.batch_size, self.seed, self.labels = lengths, batch_size, seed, labels
        self._stream = ShuffledStream(len(lengths), seed, labels)

    def __call__(self, step: int) -> list[int]:
        """The row numbers of the batch of step 0, 1, …"""
        group, place = divmod(step, BATCHES_SORTED_TOGETHER)
        rows = [row for _, row in self._stream.batch(group, self.batch_size * BATCHES_SORTED_TOGETHER)]
        rows.sort(key=lambda row: self.lengths[row])
        if self.labels:
            rows = [rows[i] for i in _interleaved([self.labels[row] for row in rows])]
        start = int(self._order(group)[place]) * self.batch_size
        return rows[start : start + self.batch_size]

    def length_of(self, steps: int) -> int:
        """The lengths of all rows that so many steps read, added up."""
        return sum(self.lengths[row] for step in range(steps) for row in self(step))

    def _order(self, group: int) -> np.ndarray:
        return np.random.default_rng((self.seed, group, 2)).permutation(BATCHES_SORTED_TOGETHER)


class MicroBatches:
    """How many rows of a batch go through the model at once.

    Gradients add up, so the step is the same, but for rounding and for which numbers dropout draws.
    """

    def __init__(self, most: int, asked: int | str = "whole") -> None:
        """`most`: rows at once, at least 1; `asked`: the setting that they come from."""
        if most < 1:
            raise ValueError(f"the micro-batch must be at least 1 row, got {most}.")
        self.most, self.asked = most, asked

    def cut(self, rows: Rows, processes: int = 1) -> Iterator[Rows]:
        """The batch in parts, one after another, each of which so many processes take together."""
        for start in range(0, len(rows), self.most * processes):
            yield rows[start : start + self.most * processes]

    def go_on_with(self, most: int) -> None:
        """Take as many at once as before a run was stopped, or say that there is room for fewer now."""
        if most > self.most:
            print(
                f"minipeft: there was room for {most} rows at a time, now for {self.most}; same batch, but sums are "
                "rounded otherwise.",
                file=sys.stderr,
            )
        self.most = min(most, self.most)

    def use_fewer(self) -> bool:
        """Take half as many at once from here on, and say so; False where it was one alone."""
        if self.most == 1:
            return False
        self.most = (self.most + 1) // 2
        print(f"minipeft: out of memory; from here on {self.most} rows at a time, same batch.", file=sys.stderr)
        return True


def _interleaved(labels: Sequence[str], starts: dict[str, float] | None = None) -> np.ndarray:
    """The order that keeps each label's items in their order and spreads them evenly over the whole.

    The item number i of a label with n items goes to the place (i + start) / n of the way; a start is 0.5 unless given.
    """
    array, places = np.asarray(labels), np.empty(len(labels))
    for label in set(labels):
        items = np.flatnonzero(array == label)
        places[items] = (np.arange(len(items)) + (starts[label] if starts else 0.5)) / len(items)
    return np.argsort(places, kind="stable")
