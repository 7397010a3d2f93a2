"""A task whose test split lies in an envelope: nothing is read from it before the sweep is closed."""

from collections.abc import Callable
from dataclasses import replace

from minipeft.tasks import Example, Task


class StillSealed(ValueError):
    """Somebody asked for test examples although their part's sweep is not closed."""


class SealedTask:
    """A task to choose on, and its test examples for those who come with the word that the sweep is closed."""

    def __init__(self, task: Task) -> None:
        self._test = task.splits["test"]
        self.open = replace(task, splits={**task.splits, "test": ()})
        """The task without its test examples: all that training, evaluating on dev and choosing ever get."""

    def unseal(self, is_closed: Callable[[], bool]) -> tuple[Example, ...]:
        """The test examples. Raises StillSealed unless the sweep is closed."""
        if not is_closed():
            raise StillSealed("the test examples stay sealed until the sweep is closed.")
        return self._test
