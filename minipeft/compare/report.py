"""What a study found, as tables: everything in them is computed from the rows of its results, and from nothing else."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.compare.results import RESULTS_FILE, Results, Row, unpack
from minipeft.compare.statistics import Difference, Mean, differences, mean_of
from minipeft.compare.study import FINAL, SWEEP, Part, Study, StudyError
from minipeft.compare.tables import axis_told, called, chosen, dev_told, mean_told, p_told, plain, start_of, table
from minipeft.files import write_atomically

MEASURES: Mapping[str, tuple[str, float, bool]] = {
    "bleu": ("BLEU", 1.0, True),
    "as_wanted": ("% as wanted", 1.0, True),
    "accuracy": ("accuracy, %", 100.0, True),
    "perplexity": ("perplexity", 1.0, False),
}
"""The first that a test has is its measure: how it is called, what it is multiplied by, whether higher is better."""


CROSSED = ("task", "model", "contender", "examples", "size")


@dataclass(frozen=True)
class Cell:
    """One contender on one task, model, size and number of examples: the test scores of its seeds, and what it cost.

    measure: by what it is judged, the same for all contenders on a task.
    """

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
        return [row["test"][name] * MEASURES.get(name, ("", 1.0, True))[1] for row in self.rows]

    @property
    def mean(self) -> Mean:
        """Over seeds."""
        return mean_of(self.scores())

    def of(self, what: str) -> float:
        """The mean over seeds of a cost: kept, trainable, bytes, seconds, tokens, peak_bytes."""
        return sum(row.get(what) or 0 for row in self.rows) / len(self.rows)

    def told(self, numbers: bool = False) -> str:
        """Mean and interval, what is missing from them, and the numbers kept if they are asked for."""
        lost = f" ({self.diverged} of {self.diverged + len(self.rows)} diverged)" if self.diverged else ""
        return mean_told(self.mean) + lost + (f" ({self.of('kept'):,.0f})" if numbers else "")


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
        for row in self.rows(part, FINAL):
            if all(row[name] == value for name, value in wanted.items()):
                found.setdefault(tuple(row[name] for name in CROSSED), []).append(row)
        cells = []
        for key, rows in found.items():
            whole = tuple(row for row in rows if row["diverged"] is None)
            if whole:
                of = dict(zip(CROSSED, key, strict=True))
                measure = self.measure(part, of["task"])
                cells.append(Cell(**of, measure=measure, rows=whole, diverged=len(rows) - len(whole)))
        return cells

    def measure(self, part: str, task: str) -> str:
        """By what contenders on a task are judged: the first of `MEASURES` that all of their tests have."""
        tests = [row["test"] for row in self.rows(part, FINAL) if row["task"] == task and row["diverged"] is None]
        shared = (name for name in MEASURES if all(test.get(name) is not None for test in tests))
        return next(shared, "accuracy")

    def main_table(self, part: str) -> str:
        """A row per contender, a column per task and model: mean and 95 % interval over seeds; then what one costs."""
        cells = {(cell.contender, cell.task, cell.model): cell for cell in self.cells(part)}
        told = self.study.part(part)
        columns = [(task, model) for model in told.models for task in told.tasks]
        units = {task: MEASURES[self.measure(part, task)][0] for task in told.tasks}
        heads = [f"{task}, {model}: {units[task]}" for task, model in columns]
        head = ["method", *heads, *(f"numbers, {model}" for model in told.models)]
        rows = []
        for name in told.contenders:
            own = [cells.get((name, *column)) for column in columns]
            kept = [next((c for c in own if c and c.model == model), None) for model in told.models]
            numbers = ["" if cell is None else f"{cell.of('kept'):,.0f}" for cell in kept]
            rows.append([called(name), *(cell.told() if cell else "" for cell in own), *numbers])
        return table(head, rows, right=len(head) - 1)

    def cost_table(self, part: str, task: str, model: str) -> str:
        """What each contender trains, keeps, and takes, on one task and model."""
        costs = ("trained", "kept", "bytes a task", "core seconds of training", "peak memory, MB", "lr and start")
        head = ["method", "score", *costs]
        rows = []
        for cell in self.cells(part, task=task, model=model):
            trained = cell.of("seconds") > 0
            peak = cell.of("peak_bytes")
            rows.append(
                [
                    called(cell.contender),
                    cell.told(),
                    f"{cell.of('trainable'):,.0f}",
                    f"{cell.of('kept'):,.0f}",
                    f"{cell.of('bytes'):,.0f}",
                    f"{cell.of('seconds'):.0f}" if trained else "",
                    f"{peak / 1e6:,.0f}" if peak else "",
                    chosen(cell.rows[0]),
                ]
            )
        return table(head, rows, right=7)

    def curve_table(self, part: str, axis: str, task: str, model: str) -> str:
        """A row per contender, a column per value of "size" or "examples", on one task and model."""
        told = self.study.part(part)
        values: Sequence[Any] = told.sizes if axis == "size" else told.examples
        head = [f"{task}, {model}: {MEASURES[self.measure(part, task)][0]}", *map(axis_told, values)]
        rows = []
        for name in told.contenders:
            cells = {getattr(c, axis): c for c in self.cells(part, task=task, model=model, contender=name)}
            own = (cells.get(value) for value in values)
            rows.append([called(name), *(cell.told(numbers=axis == "size") if cell else "" for cell in own)])
        return table(head, rows, right=len(values))

    def paired(self, part: str, pairs: Sequence[tuple[str, str]], **wanted: Any) -> list[Difference]:
        """Differences of pairs of contenders over the tasks, models and seeds of a part that both were tested on.

        What is not trained has one score, which stands for every seed. Raises StudyError where tasks are judged by
        measures of which more is better for one and less for another.
        """
        cells = self.cells(part, **wanted)
        better = {MEASURES[cell.measure][2] for cell in cells}
        if len(better) > 1:
            raise StudyError(f"part {part}: its tasks are judged in ways that cannot be averaged.")
        scores: dict[str, dict[object, float]] = {}
        for cell in cells:
            own = dict(zip((row["seed"] for row in cell.rows), cell.scores(), strict=True))
            if not self.study.contenders[cell.contender].trials:
                own = dict.fromkeys(self.study.part(part).seeds, next(iter(own.values())))
            of_contender = scores.setdefault(cell.contender, {})
            for seed, score in own.items():
                of_contender[cell.task, cell.model, seed] = score
        return differences(scores, pairs, better != {False})

    def paired_over_examples(self, part: str, one: str, other: str, task: str, model: str) -> Mean | None:
        """By how many points `one` is right more often than `other`, example by example, each a mean over seeds.

        The interval is over test examples: another test set might say otherwise. None where either was not tested.
        """
        right = []
        for name in (one, other):
            cells = self.cells(part, task=task, model=model, contender=name)
            bits = [unpack(row["right"]) for row in cells[0].rows if "right" in row] if cells else []
            if not bits:
                return None
            right.append([100 * float(share) for share in np.mean(bits, axis=0)])
        return mean_of([own - others for own, others in zip(*right, strict=True)])

    def paired_table(self, part: str, pairs: Sequence[tuple[str, str]], **wanted: Any) -> str:
        """The same, as a table."""
        head = ["", "mean difference", "95 % interval", "pairs", "p, paired t", "p, Holm"]
        rows = [
            [
                f"{called(one.one)} − {called(one.other)}",
                f"{one.mean.value:+.1f}",
                f"{one.mean.value - one.mean.half:+.1f} … {one.mean.value + one.mean.half:+.1f}",
                str(one.mean.runs),
                p_told(one.p),
                p_told(one.adjusted),
            ]
            for one in self.paired(part, pairs, **wanted)
        ]
        return table(head, rows, right=5)

    def sweep_table(self, part: str, task: str, model: str, contender: str) -> str:
        """Dev scores of a contender's trials, a row per start and a column per learning rate."""
        grid = self.grid(part, task, model, contender)
        rates = sorted({rate for _, rate in grid})
        starts = list(dict.fromkeys(start for start, _ in grid))
        rows = [
            [start, *(dev_told(grid[start, rate]) if (start, rate) in grid else "" for rate in rates)]
            for start in starts
        ]
        return table(["start", *(f"{rate:g}" for rate in rates)], rows, right=len(rates))

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

    def whole(self, part: Part) -> list[str]:
        """The tables that fit the shape of a part, each under a heading."""
        found = []
        if part.seeds and len(part.sizes) == 1 and len(part.examples) == 1:
            found.append(self.main_table(part.name))
            found += [
                f"{task}, {model}:\n\n{self.cost_table(part.name, task, model)}"
                for task in part.tasks
                for model in part.models
            ]
        for axis, values in (("size", part.sizes), ("examples", part.examples)):
            if part.seeds and len(values) > 1:
                found += [
                    self.curve_table(part.name, axis, task, model) for task in part.tasks for model in part.models
                ]
        if not part.seeds:
            found += [
                f"{called(name)}, {task}, {model}:\n\n{self.sweep_table(part.name, task, model, name)}"
                for task in part.tasks
                for model in part.models
                for name in part.contenders
            ]
        return found


def markdown(report: Report) -> str:
    """The report as a page."""
    lines = [f"# {report.study.name}", ""]
    lines += [f"*{line}*\n" for line in report.unfinished()]
    for part in report.study.parts:
        if report.rows(part.name):
            lines += [f"## {part.name}", "", *(f"{one}\n" for one in report.whole(part))]
    return "\n".join(lines).rstrip() + "\n"


COLUMNS = (
    *("stage", "part", "task", "model", "contender", "examples", "size", "seed", "trial", "dev"),
    *("trainable", "kept", "bytes", "tokens", "seconds", "peak_bytes", "best_step", "diverged", "commit"),
)


def comma_separated(report: Report) -> str:
    """Every run of the report as a line, its test scores in columns of their own."""
    rows = [row for part in report.study.parts for row in report.rows(part.name)]
    measures = sorted({name for row in rows for name in row.get("test", {})})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"test_{name}" for name in measures)])
    for row in rows:
        test = row.get("test", {})
        writer.writerow([*(plain(row.get(name)) for name in COLUMNS), *(plain(test.get(name)) for name in measures)])
    return text.getvalue()


def write_report(study: Study, folder: str | Path) -> list[Path]:
    """Write `report.md`, `report.csv` and the pictures into the folder that holds the results; their paths.

    Raises FileNotFoundError if it holds none.
    """
    from minipeft.compare.figures import draw

    folder = Path(folder)
    if not (folder / RESULTS_FILE).exists():
        raise FileNotFoundError(f"there are no results in {folder}: minipeft compare --out {folder} makes some.")
    report = Report(study, Results(folder / RESULTS_FILE))
    for name, text in (("report.md", markdown(report)), ("report.csv", comma_separated(report))):
        write_atomically(folder / name, text.encode("utf-8"))
    return [folder / "report.md", folder / "report.csv", *draw(report, folder)]
