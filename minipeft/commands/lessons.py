"""`minipeft lessons`: the course, and how far one is."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from minipeft.commands.console import plain_console

if TYPE_CHECKING:
    from minipeft.course.notebooks import Lesson


def lessons(
    open_number: Annotated[str | None, typer.Option("--open", help="Open this one in JupyterLab, such as 07.")] = None,
) -> None:
    """Show the lessons and which exercises you have solved, or open one.

    Examples:

    `minipeft lessons`

    `minipeft lessons --open 07`
    """
    from minipeft.course.notebooks import folder, read_lessons

    here = folder()
    if open_number is not None:
        found = sorted(here.glob(f"{open_number}_*.ipynb"))
        if not found:
            raise FileNotFoundError(f"lesson {open_number} has no notebook in {here}; make it with: make lessons")
        os.chdir(here)
        os.execvp(sys.executable, [sys.executable, "-m", "jupyter", "lab", found[0].name])
    plain_console().print(_table(read_lessons(here / "src")))


def _table(found: "list[Lesson]") -> Table:
    from minipeft.checks import EXERCISES, progress

    table = Table(title="lessons")
    for column in ("", "lesson", "exercise", "tries"):
        table.add_column(column)
    done = progress.read()
    for lesson in found:
        names = [name for name in EXERCISES if name[:2] == lesson.number]
        solved = sum(bool(done.get(name, {}).get("passed")) for name in names)
        state = "solved" if names and solved == len(names) else f"{solved} of {len(names)}"
        tries = sum(done.get(name, {}).get("tries", 0) for name in names)
        table.add_row(lesson.number, lesson.title, state, str(tries or ""))
    return table
