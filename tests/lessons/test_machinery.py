"""What lessons are made with: stubs, answers that are never overwritten, hints, progress, and `minipeft check`."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nbformat import v4

from minipeft import cli
from minipeft.checks import check, exercise, hint, progress
from minipeft.checks.exercise import Exercise, Mistake, failure
from minipeft.course import controls, notebooks
from minipeft.course.answers import answers_in
from minipeft.course.controls import Choice, Slider, explore
from minipeft.course.notebooks import (
    Lesson,
    LessonError,
    figure_of,
    for_learners,
    holds_answers,
    read_lessons,
    read_notebook,
    solved,
    text_of,
)

ROOT = Path(__file__).parents[2]
SOURCE = """# %% [markdown]
# # A title
#
# More.

# %% tags=["setup"]
start = 3

# %% tags=["exercise"]
def double(x):
    \"\"\"Twice x.\"\"\"
    # BEGIN SOLUTION
    return 2 * x
    # END SOLUTION

# %% tags=["check"]
print(double(start))
"""


@pytest.fixture(autouse=True)
def own_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "progress" / "progress.json"
    monkeypatch.setenv("MINIPEFT_PROGRESS", str(path))
    return path


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    (tmp_path / "01_title.py").write_text(SOURCE)
    (found,) = notebooks.read_lessons(tmp_path)
    return found


def test_a_lesson_becomes_a_stub_with_the_solution_folded_away(lesson: Lesson) -> None:
    assert (lesson.number, lesson.name, lesson.title) == ("01", "01_title", "A title")
    sources = [cell.source for cell in for_learners(lesson).cells]
    assert sources[2] == 'def double(x):\n    """Twice x."""\n    raise NotImplementedError("your turn")'
    assert sources[4] == (
        '<details><summary>Solution</summary>\n\n```python\ndef double(x):\n    """Twice x."""\n    return 2 * x\n```'
        "\n\n</details>"
    )
    assert [cell.source for cell in solved(lesson).cells][2] == 'def double(x):\n    """Twice x."""\n    return 2 * x'
    assert text_of(for_learners(lesson)) == text_of(for_learners(lesson))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    # END SOLUTION\n", "", "must have one '# BEGIN SOLUTION' and, after it, one '# END SOLUTION'"),
        ("    # BEGIN SOLUTION\n", "", "must have one '# BEGIN SOLUTION'"),
        ("# # A title", "# A title", "the first cell must begin with '# ' and the lesson's title"),
    ],
)
def test_a_lesson_that_is_badly_written_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "01_title.py").write_text(SOURCE.replace(old, new))
    (lesson,) = notebooks.read_lessons(tmp_path)
    with pytest.raises(LessonError, match=message) as caught:
        print(for_learners(lesson), lesson.title)
    assert "01_title.py" in str(caught.value)


def test_a_learners_answers_are_noticed(lesson: Lesson, tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    notebook = for_learners(lesson)
    path.write_text(text_of(notebook))
    assert not holds_answers(path)
    notebook.cells[3].outputs = [v4.new_output("stream", text="6")]  # having run it is no answer
    path.write_text(text_of(notebook))
    assert not holds_answers(path)
    notebook.cells[2].source = "def double(x):\n    return x + x"
    path.write_text(text_of(notebook))
    assert holds_answers(path)
    assert answers_in(path, ["double"])["double"](4) == 8


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("def other(x):\n    return x", "defines no function double"),
        ("double = 3", "defines no function double"),
        ("def double(x)\n    return x", r"the cell that begins 'def double\(x\)' fails"),
        ("import not_there", "fails: No module named 'not_there'"),
    ],
)
def test_a_notebook_without_an_answer_is_told_so(cell: str, message: str, lesson: Lesson, tmp_path: Path) -> None:
    notebook = for_learners(lesson)
    notebook.cells[2].source = cell
    (tmp_path / "lesson.ipynb").write_text(text_of(notebook))
    with pytest.raises(LessonError, match=message):
        answers_in(tmp_path / "lesson.ipynb", ["double"])
    (tmp_path / "lesson.ipynb").write_text("no notebook")
    with pytest.raises(LessonError, match="is no notebook"):
        answers_in(tmp_path / "lesson.ipynb", ["double"])


# -- judging, hints, progress -----------------------------------------------------------------------------------------


def judge(answer: Any) -> None:
    if answer(2) != 4:
        raise Mistake("twice two is four.")


DOUBLE = Exercise("99", "double", judge, ("Think.", "Add x to itself."))


@pytest.fixture
def exercises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipeft.checks.EXERCISES", {"99": DOUBLE})


def not_yet(x: int) -> int:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: 2 * x, None),
        (lambda x: x, "twice two is four."),
        (not_yet, "double is still empty: write it, run its cell, and then this one again."),
        (lambda x: x / 0, "double raised ZeroDivisionError in its line 1: division by zero"),
        (lambda: 4, "double raised TypeError: "),
    ],
)
def test_an_answer_is_judged_in_one_sentence(answer: Any, said: str | None) -> None:
    found = failure(DOUBLE, answer)
    assert found is None if said is None else str(found).startswith(said)


def test_a_check_shows_a_line_and_remembers(
    exercises: None, own_progress: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check("99", lambda x: x)
    assert "✘ Exercise 99: twice two is four." in capsys.readouterr().out
    assert not progress.passed("99")
    check("99", lambda x: 2 * x)
    assert "✔ Exercise 99: right." in capsys.readouterr().out
    check("99", lambda x: x)
    assert progress.passed("99")  # once solved is solved
    assert json.loads(own_progress.read_text())["99"]["tries"] == 3
    with pytest.raises(ValueError, match="there is no exercise '98'; there are 99"):
        check("98", lambda x: x)


def test_hints_come_one_after_the_other(exercises: None, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for _ in range(3):
        hint("99")
        shown.append(capsys.readouterr().out)
    assert shown[0] == "Hint 1 of 2: Think.\n"
    assert shown[1] == shown[2] == "Hint 1 of 2: Think.\nHint 2 of 2: Add x to itself.\n"


@pytest.mark.parametrize("content", ["", "[]", '{"99": 3}', '{"99": {"tries": "many", "hints": null}}'])
def test_a_damaged_file_of_progress_hinders_nobody(
    content: str, exercises: None, own_progress: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_progress.parent.mkdir()
    own_progress.write_text(content)
    check("99", lambda x: 2 * x)
    hint("99")
    assert progress.passed("99")
    own_progress.unlink()
    own_progress.mkdir()  # cannot be written at all
    check("99", lambda x: 2 * x)
    assert "right." in capsys.readouterr().out


def test_a_notebook_shows_colours(exercises: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Green and red, and nothing that a text may say is taken for HTML."""
    import IPython
    from IPython import display

    shown: list[Any] = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(display, "display", shown.append)
    exercise._show(exercise.RED, "✘", "a < b & c")
    assert "a &lt; b &amp; c" in shown[0].data
    assert exercise.RED in shown[0].data


@pytest.mark.parametrize(("library", "call"), [("jupytext", read_lessons), ("nbformat", read_notebook)])
def test_without_what_reads_notebooks_the_lessons_say_what_to_install(
    library: str, call: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LessonError, match=f"the lessons need {library}: make lab, or pip install"):
        call(tmp_path)


# -- controls ---------------------------------------------------------------------------------------------------------


def test_without_anybody_there_a_control_shows_its_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(controls.STILL, "1")
    shown: list[Any] = []
    task = Choice("good", ("bad", "good"))
    explore(lambda **values: shown.append(values), top_k=Slider(20, 1, 200, 1), task=task, text="The film")
    assert shown == [{"top_k": 20, "task": "good", "text": "The film"}]
    assert "Open this notebook in JupyterLab to change top k and task and text" in capsys.readouterr().out
    monkeypatch.setenv(controls.STILL, controls.EVERY_END)
    explore(lambda **values: shown.append(tuple(values.values())), top_k=Slider(20, 1, 200, 1), task=task, text="The")
    start = (20, "good", "The")
    ends = [(1, "good", "The"), (200, "good", "The"), (20, "bad", "The"), (20, "good", "")]
    assert shown[1:] == [start, *ends]


def test_in_a_live_notebook_a_control_is_a_widget(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython
    import ipywidgets

    made: dict[str, Any] = {}
    monkeypatch.delenv(controls.STILL, raising=False)
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": object()})())
    monkeypatch.setattr(ipywidgets, "interact", lambda show, **widgets: made.update(widgets))
    task = Choice("good", ("bad", "good"))
    sliders = {"top_k": Slider(20, 1, 200, 1), "heat": Slider(0.8, 0.0, 2.0, 0.1)}
    explore(lambda **values: None, **sliders, task=task, text="The film")
    assert isinstance(made["top_k"], ipywidgets.IntSlider)
    assert (made["top_k"].value, made["top_k"].min, made["top_k"].max) == (20, 1, 200)
    assert isinstance(made["heat"], ipywidgets.FloatSlider)
    assert isinstance(made["task"], ipywidgets.Dropdown)
    assert (made["task"].value, made["task"].options) == ("good", ("bad", "good"))
    assert (made["text"].value, made["text"].continuous_update) == ("The film", False)


def test_a_lesson_without_a_picture_is_named() -> None:
    notebook = v4.new_notebook(cells=[v4.new_code_cell("1", metadata={"tags": ["figure"]})])
    with pytest.raises(LessonError, match="no cell tagged `figure` drew a picture"):
        figure_of(notebook)


# -- commands ---------------------------------------------------------------------------------------------------------


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line: exit code, output and errors, white space made single."""

    def run(*arguments: str, there: Path = ROOT) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minipeft", *arguments])
        monkeypatch.chdir(there)
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        return code, " ".join(found.out.split()), found.err

    return run


def test_check_judges_the_learners_notebook(run: Run, tmp_path: Path) -> None:
    (lesson,) = (one for one in notebooks.read_lessons(ROOT / "lessons" / "src") if one.number == "01")
    mine = tmp_path / "mine.ipynb"
    for notebook, code, said in ((for_learners(lesson), 1, "merge is still empty"), (solved(lesson), 0, "right.")):
        mine.write_text(text_of(notebook), encoding="utf-8")
        ended, out, _ = run("check", "01", "--notebook", str(mine))
        assert ended == code
        assert said in out
    assert "solved" in run("lessons")[1]


def test_checking_all_lessons_goes_on_after_one_that_is_broken(run: Run, tmp_path: Path) -> None:
    """A course of two lessons: the first does not run, the second is solved."""
    (tmp_path / "README.md").write_text("")
    (tmp_path / "src").mkdir()
    found = notebooks.read_lessons(ROOT / "lessons" / "src")
    for lesson in found:
        (tmp_path / f"{lesson.name}.ipynb").write_text(
            text_of(solved(lesson) if lesson.number == "02" else for_learners(lesson))
        )
    broken = tmp_path / f"{found[0].name}.ipynb"
    broken.write_text(broken.read_text().replace("from minipeft", "from not_there"))
    code, out, errors = run("check", "--all", there=tmp_path)
    assert code == 1
    assert "Exercise 02: right." in out
    assert "Exercise 03a: layer_norm is still empty" in out
    assert "01_text_to_tokens.ipynb: the cell that begins" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "say which lesson: minipeft check 07"),
        (["check", "01", "--all"], "say which lesson: minipeft check 07"),
        (["check", "77"], "there is no exercise in lesson '77'; there are 01"),
        (["check", "--all", "--notebook", "x.ipynb"], "--notebook is one lesson's"),
        (["check", "01", "--notebook", "x.ipynb"], "there is no file x.ipynb"),
        (["lessons", "--open", "77"], "lesson 77 has no notebook in"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], message: str, run: Run) -> None:
    code, _, errors = run(*arguments)
    assert code == 2
    assert errors.startswith(f"minipeft: {message}")


def test_building_keeps_a_learners_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the course, in which somebody has begun to write."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "01_title.py").write_text(SOURCE)
    (tmp_path / "build.py").write_text((ROOT / "lessons" / "build.py").read_text())

    def build(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["build.py", "--unsolved", *options])
        runpy.run_path(str(tmp_path / "build.py"), run_name="__main__")
        return capsys.readouterr().out

    build()
    mine = (tmp_path / "01_title.ipynb").read_text().replace('raise NotImplementedError(\\"your turn\\")', "return x")
    assert "return x" in mine
    (tmp_path / "01_title.ipynb").write_text(mine)
    assert "01_title.ipynb holds answers of yours and stays as it is" in build()
    assert (tmp_path / "01_title.ipynb").read_text() == mine
    build("--overwrite")
    assert "your turn" in (tmp_path / "01_title.ipynb").read_text()
