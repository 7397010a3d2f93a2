"""Writes the notebooks from `lessons/src/`: `python lessons/build.py`, which is what `make lessons` does.

Every lesson gives three files: `lessons/NN_title.ipynb`, for the learner; `lessons/solutions/NN_title.ipynb`, solved
and run; and `lessons/figures/NN.png`, the picture of it in `lessons/README.md`.
Two lessons run at a time; how long each took is printed.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from minipeft.course.notebooks import (
    Lesson,
    figure_of,
    for_learners,
    holds_answers,
    read_lessons,
    run,
    solved,
    text_of,
)
from minipeft.files import write_atomically

HERE = Path(__file__).parent
SECONDS_A_CELL = 120


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "numbers", nargs="*", help="which lessons, such as 07; without any, all of them"
    )
    parser.add_argument(
        "--unsolved", action="store_true", help="only the learners' notebooks, which run nothing"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace notebooks that hold a learner's answers",
    )
    options = parser.parse_args()
    wanted = options.numbers
    lessons = [
        lesson for lesson in read_lessons(HERE / "src") if not wanted or lesson.number in wanted
    ]
    if not lessons:
        sys.exit(f"there is no lesson {', '.join(wanted)} in {HERE / 'src'}.")
    for lesson in lessons:
        path = HERE / f"{lesson.name}.ipynb"
        if path.exists() and holds_answers(path) and not options.overwrite:
            print(
                f"{path.name} holds answers of yours and stays as it is; --overwrite would replace it."
            )
            continue
        write_atomically(path, text_of(for_learners(lesson)).encode())
    if options.unsolved:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MINIPEFT_LESSONS_STILL"] = (
        "1"  # pictures instead of controls that only live notebooks show
    )
    os.environ["MINIPEFT_PROGRESS"] = os.devnull  # building is not learning
    started = time.perf_counter()
    with ProcessPoolExecutor(max_workers=2) as pool:
        for lesson, seconds in zip(lessons, pool.map(build, lessons), strict=True):
            print(f"{lesson.number} {lesson.title}: {seconds:.0f} s", flush=True)
    print(f"in all: {(time.perf_counter() - started) / 60:.1f} minutes")


def build(lesson: Lesson) -> float:
    """Run a lesson and write the solved notebook; the seconds that it took."""
    started = time.perf_counter()
    notebook = run(solved(lesson), SECONDS_A_CELL, HERE)
    write_atomically(HERE / "solutions" / f"{lesson.name}.ipynb", text_of(notebook).encode())
    write_atomically(HERE / "figures" / f"{lesson.number}.png", figure_of(notebook))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
