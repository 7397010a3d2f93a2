"""The exercises of the lessons and how each is judged: `check("07", my_function)`, `hint("07")`."""

from minipeft.checks import (
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
    lesson_10,
    lesson_11,
    lesson_12,
    lesson_13,
    lesson_14,
)
from minipeft.checks.exercise import Exercise, Mistake, check, failure, hint, passes

_ALL = (
    lesson_01.EXERCISE,
    lesson_02.EXERCISE,
    lesson_03.LAYER_NORM,
    lesson_03.GELU,
    lesson_04.EXERCISE,
    lesson_05.EXERCISE,
    lesson_06.EXERCISE,
    lesson_07.EXERCISE,
    lesson_08.START,
    lesson_08.NEAREST,
    lesson_09.ATTENTION,
    lesson_09.FOLD,
    lesson_10.COMPILE,
    lesson_10.SERVE,
    lesson_11.GATED_SUM,
    lesson_11.SHARES,
    lesson_12.UNFAIR,
    lesson_12.MATCHED,
    lesson_13.MERGE,
    lesson_13.GATED,
    lesson_14.BORDER,
    lesson_14.TRAINING,
)
EXERCISES: dict[str, Exercise] = {exercise.name: exercise for exercise in _ALL}

__all__ = ["EXERCISES", "Exercise", "Mistake", "check", "failure", "hint", "passes"]
