"""The order in which training data is read: a function of the seed and the step, so that any step can be resumed."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

BATCHES_SORTED_TOGETHER = 8


class ShuffledStream:
    """The numbers 0 … n-1 in one random order after another, without end."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def batch(self, step: int, size: int) -> list[tuple[int, int]]:
        """(epoch, number) of each of the `size` rows that step 0, 1, … reads."""
        places = (divmod(place, self.n) for place in range(step * size, (step + 1) * size))
        return [(epoch, int(self._order(epoch)[index])) for epoch, index in places]

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.n)


class BucketedBatches:
    """Batches of rows of similar length, so that little of a batch is padding.

    Eight batches' worth of the shuffled stream are sorted by length, cut into batches, and those read in random order:
    what stands in a batch, and when it comes, still changes from epoch to epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self._stream = ShuffledStream(len(lengths), seed)

    def __call__(self, step: int) -> list[int]:
        """The row numbers of the batch of step 0, 1, …"""
        group, place = divmod(step, BATCHES_SORTED_TOGETHER)
        rows = [row for _, row in self._stream.batch(group, self.batch_size * BATCHES_SORTED_TOGETHER)]
        rows.sort(key=lambda row: self.lengths[row])
        start = int(self._order(group)[place]) * self.batch_size
        return rows[start : start + self.batch_size]

    def _order(self, group: int) -> np.ndarray:
        return np.random.default_rng((self.seed, group, 2)).permutation(BATCHES_SORTED_TOGETHER)
