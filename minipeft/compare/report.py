"""What a study found, as tables: everything in them is computed from the rows of its results, and from nothing else."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.compare.results import RESULTS_FILE, Results, Row
from minipeft.compare.statistics import Difference, Mean, differences, mean_of
from minipeft.compare.study import FINAL, SWEEP, Part, Study
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
    """One contender on one task, model, size and number of examples: the test scores of its seeds, and what it cost."""

    task: str
    model: str
    contender: str
    examples: int | None
    size: str | None
    rows: tuple[Row, ...]

    @property
    def measure(self) -> str:
        """By what it is judged."""
        return next(name for name in MEASURES if self.rows[0]["test"].get(name) is not None)

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


class Report:
    """A study and the rows that it has so far."""

    def __init__(self, study: Study, results: Results) -> None:
        self.study = study
        self._rows = {part.name: list(results.of(study, part)) for part in study.parts}
        self._missing = {
            part.name: sum(1 for run in study.sweep(part) if study.key(run) not in results.rows) for part in study.parts
        }

    def rows(self, part: str, stage: str | None = None) -> list[Row]:
        """The rows of a part, of one stage or both."""
        return [row for row in self._rows[part] if stage in (None, row["stage"])]

    def cells(self, part: str, **wanted: Any) -> list[Cell]:
        """The cells of a part that have been tested, in the order of the study, those with the `wanted` values."""
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows(part, FINAL):
            if row["diverged"] is None and all(row[name] == value for name, value in wanted.items()):
                found.setdefault(tuple(row[name] for name in CROSSED), []).append(row)
        return [Cell(rows=tuple(rows), **dict(zip(CROSSED, key, strict=True))) for key, rows in found.items()]

    def main_table(self, part: str) -> str:
        """A row per contender, a column per task and model: mean and 95 % interval over seeds; then what one costs."""
        cells = {(cell.contender, cell.task, cell.model): cell for cell in self.cells(part)}
        told = self.study.part(part)
        columns = [(task, model) for model in told.models for task in told.tasks]
        head = ["method", *(f"{task}, {model}" for task, model in columns), *(f"numbers, {m}" for m in told.models)]
        rows = []
        for name in told.contenders:
            own = [cells.get((name, *column)) for column in columns]
            kept = [next((c for c in own if c and c.model == model), None) for model in told.models]
            numbers = ["" if cell is None else f"{cell.of('kept'):,.0f}" for cell in kept]
            rows.append([called(name), *map(_cell, own), *numbers])
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
                    _cell(cell),
                    f"{cell.of('trainable'):,.0f}",
                    f"{cell.of('kept'):,.0f}",
                    f"{cell.of('bytes'):,.0f}",
                    f"{cell.of('seconds'):.0f}" if trained else "",
                    f"{peak / 1e6:,.0f}" if peak else "",
                    chosen(cell.rows[0]),
                ]
            )
        return table(head, rows, right=7)

    def curve_table(self, part: str, axis: str) -> str:
        """A row per contender, a column per value of "size" or "examples"."""
        told = self.study.part(part)
        values: Sequence[Any] = told.sizes if axis == "size" else told.examples
        head = ["method", *(axis_told(value) for value in values)]
        rows = []
        for name in told.contenders:
            cells = {getattr(cell, axis): cell for cell in self.cells(part, contender=name)}
            rows.append([called(name), *(_cell(cells.get(value), numbers=axis == "size") for value in values)])
        return table(head, rows, right=len(values))

    def paired(self, part: str, pairs: Sequence[tuple[str, str]], **wanted: Any) -> list[Difference]:
        """Differences of pairs of contenders over all tasks, models and seeds of a part that both were tested on."""
        scores: dict[str, dict[object, float]] = {}
        better = True
        for cell in self.cells(part, **wanted):
            better = MEASURES[cell.measure][2]
            for row, score in zip(cell.rows, cell.scores(), strict=True):
                scores.setdefault(cell.contender, {})[cell.task, cell.model, row["seed"]] = score
        return differences(scores, pairs, better)

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
        rows = [[start, *(dev_told(grid.get((start, rate))) for rate in rates)] for start in starts]
        return table(["start", *(f"{rate:g}" for rate in rates)], rows, right=len(rates))

    def grid(self, part: str, task: str, model: str, contender: str) -> dict[tuple[str, float], float | None]:
        """Dev score by start and learning rate; None where training diverged."""
        found = {}
        for row in self.rows(part, SWEEP):
            if (row["task"], row["model"], row["contender"]) == (task, model, contender):
                trial = self.study.contenders[contender].trials[row["trial"]]
                found[start_of(trial), float(trial["lr"])] = row["dev"]
        return found

    def unfinished(self) -> Iterator[str]:
        """A line for each part that is not whole."""
        for part in self.study.parts:
            wanted = len(list(self.study.sweep(part)))
            if self._missing[part.name]:
                yield f"{part.name}: {wanted - self._missing[part.name]} of {wanted} runs of the sweep are done."

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
        if part.seeds and len(part.sizes) > 1:
            found.append(self.curve_table(part.name, "size"))
        if part.seeds and len(part.examples) > 1:
            found.append(self.curve_table(part.name, "examples"))
        if not part.seeds:
            found += [
                f"{called(name)}, {task}, {model}:\n\n{self.sweep_table(part.name, task, model, name)}"
                for task in part.tasks
                for model in part.models
                for name in part.contenders
            ]
        return found


def _cell(cell: Cell | None, numbers: bool = False) -> str:
    if cell is None:
        return ""
    return mean_told(cell.mean) + (f" ({cell.of('kept'):,.0f})" if numbers else "")


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
