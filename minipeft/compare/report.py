"""What a study found: scores, costs and differences, all computed from the rows of its results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.compare.results import Results, Row, unpack
from minipeft.compare.statistics import Difference, Mean, differences, mean_of
from minipeft.compare.study import FINAL, SWEEP, Study, StudyError
from minipeft.compare.tables import mean_told, start_of

MEASURES: Mapping[str, tuple[str, float, bool]] = {
    "bleu": ("BLEU", 1.0, True),
    "rouge_l": ("ROUGE-L", 1.0, True),
    "nist": ("NIST", 1.0, True),
    "as_wanted": ("% as wanted", 1.0, True),
    "distinct_1": ("distinct-1, %", 1.0, True),
    "distinct_2": ("distinct-2, %", 1.0, True),
    "accuracy": ("accuracy, %", 100.0, True),
    "balanced_accuracy": ("balanced accuracy, %", 100.0, True),
    "perplexity": ("perplexity", 1.0, False),
    "base_perplexity": ("the bare model's perplexity", 1.0, False),
    "words": ("words", 1.0, True),
    "ended": ("% that ended", 1.0, True),
}
"""What a test may have: how it is called, what it is multiplied by, whether higher is better."""
JUDGED_BY = ("bleu", "as_wanted", "accuracy", "perplexity")
"""The first of these that all tests have is the measure of a task."""

CROSSED = ("task", "model", "contender", "examples", "size")


@dataclass(frozen=True)
class Cell:
    """One contender on one task, model, size and number of examples: the test scores of its seeds, and what it cost.

    measure: by what it is judged, the same for all contenders on a task.
    """

    part: str
    task: str
    model: str
    contender: str
    examples: int | None
    size: str | None
    measure: str
    rows: tuple[Row, ...]
    diverged: int
    """How many of its runs have no score."""

    def scores(self, measure: str | None = None) -> list[float]:
        """A measure of each seed, as tables show it."""
        name = measure or self.measure
        return [row["test"][name] * MEASURES[name][1] for row in self.rows]

    @property
    def mean(self) -> Mean:
        """Over seeds."""
        return mean_of(self.scores())

    @property
    def sign(self) -> int:
        """1 where more of its measure is better, -1 where less is."""
        return 1 if MEASURES[self.measure][2] else -1

    def of(self, what: str) -> float:
        """The mean over seeds of a cost: kept, trainable, bytes, seconds, tokens, peak_bytes."""
        return sum(row.get(what) or 0 for row in self.rows) / len(self.rows)

    def told(self, numbers: bool = False, measure: str | None = None) -> str:
        """Mean and interval, what is missing from them, and the numbers kept if they are asked for."""
        lost = f" ({self.diverged} of {self.diverged + len(self.rows)} diverged)" if self.diverged else ""
        return mean_told(mean_of(self.scores(measure))) + lost + (f" ({self.of('kept'):,.0f})" if numbers else "")


class Report:
    """A study and the rows that it has so far."""

    def __init__(self, study: Study, results: Results) -> None:
        self.study = study
        self._found = {part.name: list(results.of(study, part)) for part in study.parts}
        """Of each part its runs with their rows."""
        self._missing = {part.name: results.missing(study, part) for part in study.parts}

    def rows(self, part: str, stage: str | None = None) -> list[Row]:
        """The rows of a part, of one stage or both."""
        return [row for run, row in self._found[part] if stage in (None, run.stage)]

    def cells(self, part: str, **wanted: Any) -> list[Cell]:
        """The cells of a part that have been tested, in the order of the study, those with the `wanted` values."""
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in (*self.rows(part, FINAL), *self._borrowed(part)):
            if all(row[name] == value for name, value in wanted.items()):
                found.setdefault(tuple(row[name] for name in CROSSED), []).append(row)
        cells = []
        for key, rows in found.items():
            whole = tuple(row for row in rows if row["diverged"] is None)
            if whole:
                of = dict(zip(CROSSED, key, strict=True))
                measure = self.measure(part, of["task"])
                cells.append(Cell(part, **of, measure=measure, rows=whole, diverged=len(rows) - len(whole)))
        return cells

    def _borrowed(self, name: str) -> list[Row]:
        """What another part tested of this one's curve over examples: see `Study.is_borrowed`."""
        part = self.study.part(name)
        if part.chosen_by is None or None not in part.examples or not self.study.is_borrowed(part, None):
            return []
        wanted = {"task": part.tasks, "model": part.models, "contender": part.contenders}
        rows = self.rows(part.chosen_by, FINAL)
        return [row for row in rows if row["seed"] in part.seeds and all(row[one] in of for one, of in wanted.items())]

    def measure(self, part: str, task: str) -> str:
        """By what contenders on a task are judged: the first of `JUDGED_BY` that all of their tests have."""
        tests = [row["test"] for row in self.rows(part, FINAL) if row["task"] == task and row["diverged"] is None]
        if not tests:
            return "accuracy"
        shared = (name for name in JUDGED_BY if all(test.get(name) is not None for test in tests))
        return next(shared, "accuracy")

    def by_seed(self, cell: Cell, measure: str | None = None) -> dict[int, float]:
        """The scores of a cell; what is neither trained nor drawn has one, which stands for every seed."""
        own = dict(zip((row["seed"] for row in cell.rows), cell.scores(measure), strict=True))
        if self.study.contenders[cell.contender].trials or len(own) > 1:
            return own
        return dict.fromkeys(self.study.part(cell.part).seeds, next(iter(own.values())))

    def timed(self, cell: Cell) -> Cell | None:
        """The cell whose seconds and memory stand for those of `cell`: of the part that its part is timed by, if any;
        None where that has no such run."""
        if (timer := self.study.part(cell.part).timed_by) is None:
            return cell
        crossed = {name: getattr(cell, name) for name in CROSSED}
        return next(iter(self.cells(timer, **crossed)), None)

    def over_models(self, task: str) -> dict[str, dict[str, Cell]]:
        """By contender and model: what was tested on a task at the usual size with all examples, in any part."""
        found: dict[str, dict[str, Cell]] = {}
        for part in self.study.parts:
            for cell in self.cells(part.name, task=task, size=None, examples=None):
                found.setdefault(cell.contender, {}).setdefault(cell.model, cell)
        return {name: cells for name, cells in found.items() if len(cells) > 1}

    def behind(self, cell: Cell, other: Cell) -> Mean | None:
        """By how much a cell is worse than another of the same task, seed by seed; None without a seed in common."""
        ours, theirs = self.by_seed(cell), self.by_seed(other)
        gaps = [cell.sign * (theirs[seed] - score) for seed, score in ours.items() if seed in theirs]
        return mean_of(gaps) if gaps else None

    def paired(
        self, part: str, pairs: Sequence[tuple[str, str]], measure: str | None = None, **wanted: Any
    ) -> list[Difference]:
        """Differences of pairs of contenders over all that a part crosses, or what is `wanted` of it, and seeds.

        `measure`: instead of the one by which contenders on a task are judged. Raises StudyError where tasks are judged
        by measures of which more is better for one and less for another.
        """
        cells = self.cells(part, **wanted)
        better = {MEASURES[measure or cell.measure][2] for cell in cells}
        if len(better) > 1:
            raise StudyError(f"part {part}: its tasks are judged in ways that cannot be averaged.")
        scores: dict[str, dict[object, float]] = {}
        for cell in cells:
            of_contender = scores.setdefault(cell.contender, {})
            for seed, score in self.by_seed(cell, measure).items():
                of_contender[cell.task, cell.model, cell.examples, cell.size, seed] = score
        return differences(scores, pairs, better != {False})

    def paired_over_examples(
        self, part: str, one: str, other: str, task: str, model: str, size: str | None = None
    ) -> Mean | None:
        """By how many points `one` is right more often than `other`, example by example, each a mean over seeds.

        The interval is over test examples: another test set might say otherwise. None where either was not tested.
        """
        right = []
        for name in (one, other):
            cells = self.cells(part, task=task, model=model, contender=name, size=size, examples=None)
            bits = [unpack(row["right"]) for row in cells[0].rows if "right" in row] if cells else []
            if not bits:
                return None
            right.append([100 * float(share) for share in np.mean(bits, axis=0)])
        return mean_of([own - others for own, others in zip(*right, strict=True)])

    def grid(self, part: str, task: str, model: str, contender: str) -> dict[tuple[str, float], float | None]:
        """Dev score by start and learning rate of the trials that were run; None where training diverged."""
        found = {}
        for run, row in self._found[part]:
            if run.stage == SWEEP and (run.task, run.model, run.contender) == (task, model, contender):
                trial = self.study.contenders[contender].trials[run.trial]
                found[start_of(trial), float(trial["lr"])] = row["dev"]
        return found

    def unfinished(self) -> Iterator[str]:
        """A line for each part that is not whole."""
        for name, missing in self._missing.items():
            if missing:
                yield f"{name}: {missing} runs are not done yet."
