"""The lessons: in step with their sources, their checks fair, their prose true, every solved notebook runs."""

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import minipeft
from minipeft.checks import EXERCISES, failure
from minipeft.course.answers import answers_in
from minipeft.course.controls import EVERY_END, STILL
from minipeft.course.notebooks import (
    Lesson,
    figure_of,
    for_learners,
    holds_answers,
    read_lessons,
    read_notebook,
    run,
    solved,
    tags,
    text_of,
)
from tests.lessons import right

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "lessons"
LESSONS = read_lessons(FOLDER / "src")
SECONDS_A_CELL = 120
HEADINGS = ("## A guess", "## Exercise", "## A common wrong answer", "## In the package", "## On the real GPT-2")
SOURCES = sorted([*FOLDER.glob("README.md"), *FOLDER.glob("src/*.py")])

pytestmark = pytest.mark.skipif(not LESSONS, reason="the lessons come with the whole project")
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


def wrong_answers() -> list[Any]:
    found = []
    for name in EXERCISES:
        module = importlib.import_module(f"tests.lessons.wrong.lesson_{name}")
        marked = [value for value in vars(module).values() if hasattr(value, "says")]
        assert len(marked) >= 2, f"exercise {name} needs at least two wrong answers"
        found += [pytest.param(name, answer, id=f"{name} {answer.__name__}") for answer in marked]
    return found


# -- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "answer"), wrong_answers())
def test_a_wrong_answer_is_told_its_mistake(name: str, answer: Callable[..., Any]) -> None:
    said = failure(EXERCISES[name], answer)
    assert said is not None
    assert re.search(answer.says, said), said  # type: ignore[attr-defined]
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("11a", right.gate_by_logarithms),
        ("11b", right.divided_by_what_the_prefix_leaves),
        ("11b", right.in_numpy),
        ("14a", right.by_index),
    ],
)
def test_a_right_answer_may_be_written_otherwise(name: str, answer: Callable[..., Any]) -> None:
    assert failure(EXERCISES[name], answer) is None


@pytest.mark.parametrize("name", EXERCISES)
def test_the_blank_stub_is_not_right_and_the_solution_is(name: str, tmp_path: Path) -> None:
    lesson = next(lesson for lesson in LESSONS if lesson.number == name[:2])
    exercise = EXERCISES[name]
    for notebook, expected in ((for_learners(lesson), f"{exercise.function} is still empty"), (solved(lesson), None)):
        (tmp_path / "lesson.ipynb").write_text(text_of(notebook), encoding="utf-8")
        said = failure(exercise, answers_in(tmp_path / "lesson.ipynb", [exercise.function])[exercise.function])
        assert (said or "").startswith(expected) if expected else said is None, said


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_has_hints_and_belongs_to_a_lesson(name: str) -> None:
    assert len(EXERCISES[name].hints) >= 2
    assert any(lesson.number == name[:2] for lesson in LESSONS)


# -- notebooks --------------------------------------------------------------------------------------------------------


@each_lesson
def test_notebooks_are_what_the_sources_say(lesson: Lesson) -> None:
    """Mend it with: make lessons."""
    unsolved, done = FOLDER / f"{lesson.name}.ipynb", FOLDER / "solutions" / f"{lesson.name}.ipynb"
    assert unsolved.read_text(encoding="utf-8") == text_of(for_learners(lesson))
    assert not holds_answers(unsolved)
    sources = [(cell.cell_type, cell.source, tags(cell)) for cell in solved(lesson).cells]
    assert [(cell.cell_type, cell.source, tags(cell)) for cell in read_notebook(done).cells] == sources
    assert done.stat().st_size < 3_000_000


@each_lesson
def test_the_notebook_runs_solved_and_goes_on_unsolved(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind each check the exercise is put back as a learner finds it, so that all that follows runs without it.

    Every control is moved to its ends, too.
    """
    monkeypatch.setenv("MINIPEFT_PROGRESS", os.devnull)
    monkeypatch.setenv(STILL, EVERY_END)
    blank = [cell for cell in for_learners(lesson).cells if {"exercise", "check"} & set(tags(cell))]
    for cell in blank:
        cell["id"] += "-blank"
    notebook, cells = solved(lesson), []
    for cell in notebook.cells:
        cells.append(cell)
        if "check" in tags(cell):
            cells += [blank.pop(0), blank.pop(0)]
    notebook.cells = cells
    run(notebook, SECONDS_A_CELL, FOLDER)
    said = [str(cell.outputs) for cell in cells if "check" in tags(cell)]
    assert all("right." in one for one in said[::2])
    assert all("is still empty" in one for one in said[1::2])


def test_a_learner_who_solves_nothing_can_still_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One notebook as it is handed out; of the others the test above says it."""
    monkeypatch.setenv("MINIPEFT_PROGRESS", os.devnull)
    monkeypatch.setenv(STILL, "1")
    notebook = run(for_learners(LESSONS[0]), SECONDS_A_CELL, FOLDER)
    assert all("is still empty" in str(cell.outputs) for cell in notebook.cells if "check" in tags(cell))


@each_lesson
def test_a_lesson_defines_nothing_that_the_package_has(lesson: Lesson) -> None:
    public = set(minipeft.__all__)
    for cell in lesson.notebook.cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in public, node.name
            imported = []
            if isinstance(node, ast.Import):
                imported = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [str(node.module)]
            assert not {name.split(".")[0] for name in imported} & {"lessons", "nbimporter", "requests"}


@each_lesson
def test_a_lesson_has_all_its_parts(lesson: Lesson) -> None:
    first = lesson.notebook.cells[0].source
    assert first.startswith("# ")
    assert "You will be able to" in first
    assert re.search(r"\*[\w-]+( \w+)? minutes", first)
    text = "\n".join(cell.source for cell in lesson.notebook.cells if cell.cell_type == "markdown")
    for heading in (
        "## A guess",
        "## Exercise",
        "## A common wrong answer",
        "## In the package",
        "## On the real GPT-2",
    ):
        assert heading in text, heading
    assert "what to read next" in text
    exercises = [name for name in EXERCISES if name[:2] == lesson.number]
    assert exercises
    for tag in ("exercise", "check"):  # one of each for every exercise
        assert sum(tag in tags(cell) for cell in lesson.notebook.cells) == len(exercises), tag


def test_without_peft_lesson_12_tells_what_was_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells from there on, where no PEFT can be imported; where it can, they hold what was recorded against it."""
    lesson = next(lesson for lesson in LESSONS if lesson.number == "12")
    cells = [cell.source for cell in lesson.notebook.cells if cell.cell_type == "code"]
    (setup,) = (cell.source for cell in lesson.notebook.cells if "setup" in tags(cell))
    last = [source for source in cells if "recorded[" in source or "recorded = " in source]
    assert len(last) == 2
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.chdir(ROOT)
    there: dict[str, Any] = {}
    for source in (setup, *last):
        exec(source, there)
    told = capsys.readouterr().out
    assert "PEFT or transformers is not here" in told
    assert len(there["recorded"]) == 3
    assert all(words in told for words in there["recorded"].values())


# -- prose ------------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?<![\w./#-])\d[\d,]*(?:\.\d+)?(?![\w/-])")


def numbers_in(code: str) -> set[str]:
    return {number.replace("_", "") for number in re.findall(r"\d[\d_]*(?:\.\d+)?", code)}


@each_lesson
def test_every_number_in_the_prose_is_asserted(lesson: Lesson) -> None:
    """In some code cell of the lesson, of something that was computed; years and section numbers are no claims."""
    asserted: set[str] = set()
    for cell in lesson.notebook.cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Assert) and any(isinstance(part, ast.Name) for part in ast.walk(node)):
                    asserted |= numbers_in(ast.get_source_segment(cell.source, node) or "")
    for cell in lesson.notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"\$\$.*?\$\$", "", cell.source, flags=re.DOTALL)
            prose = re.sub(r"`[^`]*`|\$[^$]*\$|\(\d{4}\)|\]\([^)]*\)|algorithm \d+|[0-9]+ of 3", "", prose)
            for number in NUMBER.findall(prose):
                assert number.rstrip(",").replace(",", "") in asserted, f"{number} in: {cell.source[:80]!r}"


@pytest.mark.parametrize(
    "path", sorted([*FOLDER.glob("README.md"), *FOLDER.glob("src/*.py")]), ids=lambda path: path.name
)
def test_links_and_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not link.startswith("http"):
            assert (FOLDER / link).exists(), link
            assert path.suffix == ".md" or (FOLDER / "solutions" / link).exists(), link  # from either notebook
    for name in re.findall(r"`((?:minipeft|lessons|docs|tests)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_map_names_every_lesson_and_shows_its_figure() -> None:
    text, front = (path.read_text(encoding="utf-8") for path in (FOLDER / "README.md", ROOT / "README.md"))
    for lesson in LESSONS:
        assert f"| {lesson.number} | [{lesson.title}]({lesson.name}.ipynb) |" in text
        assert f"](figures/{lesson.number}.png)](solutions/{lesson.name}.ipynb)" in text
        assert f"](lessons/figures/{lesson.number}.png)](lessons/solutions/{lesson.name}.ipynb)" in front
        assert sum("figure" in tags(cell) for cell in lesson.notebook.cells) == 1
        picture = (FOLDER / "figures" / f"{lesson.number}.png").read_bytes()
        assert picture == figure_of(read_notebook(FOLDER / "solutions" / f"{lesson.name}.ipynb"))
    assert {path.stem for path in (FOLDER / "figures").iterdir()} == {lesson.number for lesson in LESSONS}
