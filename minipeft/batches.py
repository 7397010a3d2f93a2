"""The order in which training data is read: a function of the seed and the step, so that any step can be resumed."""

from functools import lru_cache

import numpy as np


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
