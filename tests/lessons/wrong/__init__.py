"""Wrong answers to the exercises, each with what its check must say about it."""

from collections.abc import Callable
from typing import Any, TypeVar

Answer = TypeVar("Answer", bound=Callable[..., Any])


def fails_with(message: str) -> Callable[[Answer], Answer]:
    """Mark a wrong answer: the check must say something that matches this pattern."""

    def mark(answer: Answer) -> Answer:
        answer.says = message  # type: ignore[attr-defined]
        return answer

    return mark
