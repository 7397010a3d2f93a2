"""`minipeft check`: a lesson's exercises, judged from the learner's notebook."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def check(
    names: Annotated[list[str] | None, typer.Argument(help="Lessons, such as 07.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every lesson.")] = False,
    notebook: Annotated[Path | None, typer.Option(help="Your notebook, if it is not in lessons/.")] = None,
) -> None:
    """Check the exercises of your notebooks: green if right, else what is wrong. Ends with 1 if one is wrong.

    Runs the cells of the notebook that are marked as setup or exercise, and nothing else. Save the notebook first.

    Examples:

    `minipeft check 07`

    `minipeft check --all`
    """
    from minipeft.checks import EXERCISES, passes
    from minipeft.course.answers import answers_in
    from minipeft.course.notebooks import LessonError, folder

    if everything == bool(names):
        raise ValueError("say which lesson: minipeft check 07, or all of them: minipeft check --all")
    if notebook is not None and (everything or len(names or []) != 1):
        raise ValueError("--notebook is one lesson's; name that lesson: minipeft check 07 --notebook FILE")
    lessons = sorted({name[:2] for name in EXERCISES}) if everything else list(names or [])
    unknown = [name for name in lessons if not any(exercise[:2] == name for exercise in EXERCISES)]
    if unknown:
        raise ValueError(f"there is no exercise in lesson {unknown[0]!r}; there are {', '.join(EXERCISES)}.")
    right = True
    for lesson in lessons:
        path = notebook or next(iter(sorted(folder().glob(f"{lesson}_*.ipynb"))), None)
        if path is None:
            raise FileNotFoundError(f"lesson {lesson} has no notebook in {folder()}; make it with: make lessons")
        exercises = [exercise for name, exercise in EXERCISES.items() if name[:2] == lesson]
        try:
            answers = answers_in(path, [exercise.function for exercise in exercises])
        except LessonError as error:
            if not everything:
                raise
            print(f"minipeft: {error}", file=sys.stderr)  # and on to the other lessons
            right = False
            continue
        for exercise in exercises:
            right &= passes(exercise.name, answers[exercise.function])
    if not right:
        sys.exit(1)
