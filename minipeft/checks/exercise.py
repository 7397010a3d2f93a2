"""An exercise: what it asks for, how it is judged, its hints; and the green or red line that a learner sees.

A check compares with an independent reference (PyTorch, a plain loop, a published number), never with the lesson's own
solution, and a failure names the likely mistake.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minipeft.checks import progress

GREEN, RED = "#1b7837", "#b2182b"


class Mistake(AssertionError):
    """What is wrong with an answer, said to the person who wrote it."""


@dataclass(frozen=True)
class Exercise:
    """`judge` is given the learner's function and raises `Mistake` unless it is right."""

    name: str
    function: str
    """What the learner's function is called in the notebook."""
    judge: Callable[[Callable[..., Any]], None]
    hints: tuple[str, ...]


def require(right: Any, mistake: str) -> None:
    """Raise `Mistake` unless `right`."""
    if not bool(right):
        raise Mistake(mistake)


def transformers() -> Any:
    """The library that some answers are compared with. Raises ImportError with the command that brings it."""
    try:
        import transformers
    except ImportError:
        raise ImportError("this check compares with transformers; install it: pip install transformers") from None
    return transformers


def failure(exercise: Exercise, answer: Callable[..., Any]) -> str | None:
    """What is wrong with an answer, in a sentence; None if it is right. Nothing that the answer does escapes."""
    try:
        exercise.judge(answer)
    except NotImplementedError:
        return f"{exercise.function} is still empty: write it, run its cell, and then this one again."
    except Mistake as mistake:
        return str(mistake)
    except Exception as error:  # whatever a learner's code may raise is told to the learner
        what = f"{type(error).__name__}{_line_of(answer, error)}"
        return f"{exercise.function} raised {what}: {next(iter(str(error).splitlines()), '')}"
    return None


def check(name: str, answer: Callable[..., Any]) -> None:
    """Judge an answer and show a green or a red line. Raises ValueError if there is no such exercise."""
    passes(name, answer)


def passes(name: str, answer: Callable[..., Any]) -> bool:
    """What `check` does, and whether the answer is right."""
    exercise = find(name)
    wrong = failure(exercise, answer)
    progress.record(exercise.name, passed=wrong is None)
    if wrong is None:
        _show(GREEN, "✔", f"Exercise {name}: right.")
    else:
        _show(RED, "✘", f"Exercise {name}: {wrong}")
        if progress.hints_seen(name) < len(exercise.hints):
            _show("", "", f'For a hint: hint("{name}")')
    return wrong is None


def hint(name: str) -> None:
    """Show the next hint of an exercise; after the last one, all of them. Raises ValueError if there is no exercise."""
    exercise = find(name)
    seen = progress.hints_seen(name)
    for number, text in enumerate(exercise.hints[: seen + 1], start=1):
        _show("", "", f"Hint {number} of {len(exercise.hints)}: {text}")
    progress.record_hint(name, min(seen + 1, len(exercise.hints)))


def find(name: str) -> Exercise:
    """The exercise of this name, such as "07". Raises ValueError if there is none."""
    from minipeft.checks import EXERCISES

    if name not in EXERCISES:
        raise ValueError(f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}.")
    return EXERCISES[name]


def _line_of(answer: Callable[..., Any], error: Exception) -> str:
    """In which line of the learner's own function it went wrong."""
    code, trace, line = getattr(answer, "__code__", None), error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code is code:
            line = trace.tb_lineno - code.co_firstlineno + 1
        trace = trace.tb_next
    return "" if line is None else f" in its line {line}"


def _show(colour: str, sign: str, text: str) -> None:
    """A coloured line, in a notebook or in a terminal."""
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from html import escape

        from IPython.display import HTML, display

        style = f"color: {colour}; font-weight: bold" if colour else ""
        display(HTML(f'<div style="{style}">{sign} {escape(text)}</div>'))
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(f"{sign} {text}".strip(), style=f"bold {colour}" if colour else ""))
