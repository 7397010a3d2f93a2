"""The exercises of the lessons and how each is judged: `check("07", my_function)`, `hint("07")`."""

from minipeft.checks import lesson_01, lesson_02
from minipeft.checks.exercise import Exercise, Mistake, check, failure, hint, passes

EXERCISES: dict[str, Exercise] = {exercise.name: exercise for exercise in (lesson_01.EXERCISE, lesson_02.EXERCISE)}

__all__ = ["EXERCISES", "Exercise", "Mistake", "check", "failure", "hint", "passes"]
