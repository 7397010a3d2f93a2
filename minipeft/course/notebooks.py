"""Lessons as they are written, and the two notebooks that each becomes.

A lesson is one file in `lessons/src/`, in Jupytext's percent format. A code cell tagged `exercise` holds the solution
between `# BEGIN SOLUTION` and `# END SOLUTION`. The learner's notebook has a stub in its place and, folded away after
the check, the solution; the solved notebook has the solution itself and was run.
"""

import hashlib
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
STUB = 'raise NotImplementedError("your turn")'
MADE = "minipeft_made_of"
"""The key of a notebook's metadata that tells whether its cells are still those that were made."""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


class LessonError(ValueError):
    """A lesson that is not written as lessons are; the message names the file."""


@dataclass(frozen=True)
class Lesson:
    """One source file: its number, such as "07", and its cells as a notebook."""

    path: Path
    notebook: Any

    @property
    def number(self) -> str:
        return self.path.name[:2]

    @property
    def name(self) -> str:
        """The name of its notebooks, without the ending."""
        return self.path.stem

    @property
    def title(self) -> str:
        """What stands behind `# ` in its first cell. Raises LessonError if nothing does."""
        first = self.notebook.cells[0].source.split("\n")[0]
        if not first.startswith("# "):
            raise LessonError(f"{self.path}: the first cell must begin with '# ' and the lesson's title.")
        return first.removeprefix("# ")


def folder() -> Path:
    """The lessons of this checkout, or of the folder that one works in. Raises FileNotFoundError if there are none."""
    for place in (Path.cwd() / "lessons", Path.cwd(), Path(__file__).parents[2] / "lessons"):
        if (place / "src").is_dir() and (place / "README.md").is_file():
            return place
    raise FileNotFoundError("the lessons are not here: they come with the whole project; work in its folder.")


def read_lessons(source: Path) -> list[Lesson]:
    """All lessons of a folder, in order. Raises LessonError if the library that reads them is not installed."""
    jupytext = _library("jupytext")
    return [Lesson(path, jupytext.read(path, fmt="py:percent")) for path in sorted(source.glob("[0-9][0-9]_*.py"))]


def for_learners(lesson: Lesson) -> Any:
    """The notebook without solutions and outputs. Raises LessonError if a marker has no partner."""
    cells = []
    answers: list[str] = []
    for cell in lesson.notebook.cells:
        source = cell.source
        if cell.cell_type == "code" and "exercise" in tags(cell):
            source, answer = _without_solution(source, lesson.path)
            answers.append(answer)
        cells.append(_cell(cell, source))
        if "check" in tags(cell) and answers:
            folded = "<details><summary>Solution</summary>\n\n```python\n" + answers.pop() + "\n```\n\n</details>"
            cells.append(_markdown(folded))
    notebook = _notebook(cells)
    notebook.metadata[MADE] = _fingerprint(notebook)
    return notebook


def holds_answers(path: Path) -> bool:
    """Whether a learner has changed the notebook since it was made. Raises LessonError if it is no notebook."""
    notebook = read_notebook(path)
    return notebook.metadata.get(MADE) != _fingerprint(notebook)


def read_notebook(path: Path) -> Any:
    """A notebook's file. Raises FileNotFoundError; LessonError if it is none, or nothing is installed to read it."""
    nbformat = _library("nbformat")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds, none of its own
        raise LessonError(f"{path} is no notebook ({type(error).__name__}); was it saved whole?") from None


def solved(lesson: Lesson) -> Any:
    """The notebook with the solutions in place, not run yet."""
    marker = re.compile(rf"^[ \t]*(?:{BEGIN}|{END})[ \t]*\n?", flags=re.MULTILINE)
    return _notebook([_cell(cell, marker.sub("", cell.source).rstrip("\n")) for cell in lesson.notebook.cells])


def run(notebook: Any, seconds: int, where: Path) -> Any:
    """The notebook with its outputs. Raises what nbclient raises if a cell fails or takes longer than `seconds`."""
    from nbclient import NotebookClient

    # The kernel would warn that its connection, which stays on this machine, is not encrypted.
    quiet = ["--log-level=40"]
    NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(where)}},
        record_timing=False,
        extra_arguments=quiet,
    ).execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return notebook


def figure_of(notebook: Any) -> bytes:
    """The PNG that the cell tagged `figure` drew. Raises LessonError if there is no such cell, or it drew nothing."""
    for cell in notebook.cells:
        if "figure" in tags(cell):
            for output in cell.outputs:
                if picture := output.get("data", {}).get("image/png"):
                    return b64decode(picture)
    raise LessonError("no cell tagged `figure` drew a picture; tag the one whose figure the map of lessons shows.")


def learners_code(notebook: Any) -> Iterator[str]:
    """What a check needs of a learner's notebook: the cells tagged `setup` and `exercise`, in order."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and {"setup", "exercise"} & set(tags(cell)):
            yield cell.source


def tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def text_of(notebook: Any) -> str:
    """The notebook as its file holds it."""
    import nbformat

    return nbformat.writes(notebook) + "\n"


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise LessonError(f'the lessons need {name}: make lab, or pip install -e ".[lessons]"') from None


def _without_solution(source: str, path: Path) -> tuple[str, str]:
    """The cell with a stub in place of the solution; and the cell with the solution."""
    lines = source.split("\n")
    marks = [number for number, line in enumerate(lines) if line.strip() in (BEGIN, END)]
    if [lines[number].strip() for number in marks] != [BEGIN, END]:
        raise LessonError(f"{path}: an exercise must have one {BEGIN!r} and, after it, one {END!r}.")
    begin, end = marks
    indentation = lines[begin][: len(lines[begin]) - len(lines[begin].lstrip())]
    stub = [*lines[:begin], indentation + STUB, *lines[end + 1 :]]
    answer = [*lines[:begin], *lines[begin + 1 : end], *lines[end + 1 :]]
    return "\n".join(stub), "\n".join(answer)


def _fingerprint(notebook: Any) -> str:
    sources = "\0".join(cell.source for cell in notebook.cells)
    return hashlib.sha256(sources.encode("utf-8")).hexdigest()[:16]


def _notebook(cells: list[Any]) -> Any:
    from nbformat import v4

    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02d}"  # the same at every build
    return v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})


def _cell(cell: Any, source: str) -> Any:
    from nbformat import v4

    metadata = {"tags": tags(cell)} if tags(cell) else {}
    if cell.cell_type == "markdown":
        return v4.new_markdown_cell(source, metadata=metadata)
    return v4.new_code_cell(source, metadata=metadata)


def _markdown(source: str) -> Any:
    from nbformat import v4

    return v4.new_markdown_cell(source)
