"""The functions that a learner wrote, out of their notebook."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minipeft.course.notebooks import LessonError, learners_code, read_notebook


def answers_in(path: Path, functions: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The functions of these names after the notebook's setup and exercise cells were run.

    Raises FileNotFoundError, or LessonError if the file is no notebook, a cell fails, or a function is missing.
    """
    notebook = read_notebook(path)
    names: dict[str, Any] = {"__name__": "__lesson__"}
    for number, source in enumerate(learners_code(notebook), start=1):
        _run(source, f"<cell {number} of {path.name}>", names, path)
    missing = [name for name in functions if not callable(names.get(name))]
    if missing:
        raise LessonError(f"{path} defines no function {missing[0]}; is its cell there, and marked `exercise`?")
    return {name: names[name] for name in functions}


def _run(source: str, cell: str, names: dict[str, Any], path: Path) -> None:
    try:
        exec(compile(source, cell, "exec"), names)
    except Exception as error:  # whatever a learner's code may raise is told to the learner
        first = next(iter(source.strip().splitlines()), "")
        raise LessonError(f"{path}: the cell that begins {first!r} fails: {error}") from None
