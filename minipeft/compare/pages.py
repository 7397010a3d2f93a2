"""A study's report as people read it: tables in Markdown, one page, and every run as a line of CSV."""

import csv
import io
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from minipeft.compare.keep import commands
from minipeft.compare.report import MEASURES, Report
from minipeft.compare.results import RESULTS_FILE, Results
from minipeft.compare.statistics import mean_of
from minipeft.compare.study import Part, Study
from minipeft.compare.tables import axis_told, called, chosen, dev_told, mean_told, p_told, plain, quoted, table
from minipeft.files import write_atomically

KEPT = (
    "Of what `minipeft tune` trains, the best mean on test (a score that is now a chosen one), once more and to keep:"
)


def main_table(report: Report, part: str, measure: str | None = None) -> str:
    """A row per contender, a column per task and model: mean and 95 % interval over seeds; then what one costs.

    `measure`: instead of the one by which contenders on a task are judged.
    """
    cells = {(cell.contender, cell.task, cell.model): cell for cell in report.cells(part)}
    told = report.study.part(part)
    columns = [(task, model) for model in told.models for task in told.tasks]
    units = {task: MEASURES[measure or report.measure(part, task)][0] for task in told.tasks}
    heads = [f"{task}, {model}: {units[task]}" for task, model in columns]
    head = ["method", *heads, *(f"numbers, {model}" for model in told.models)]
    rows = []
    for name in told.contenders:
        own = [cells.get((name, *column)) for column in columns]
        kept = [next((c for c in own if c and c.model == model), None) for model in told.models]
        numbers = ["" if cell is None else f"{cell.of('kept'):,.0f}" for cell in kept]
        rows.append([called(name), *(cell.told(measure=measure) if cell else "" for cell in own), *numbers])
    return table(head, rows, right=len(head) - 1)


def cost_table(report: Report, part: str, task: str, model: str) -> str:
    """What each contender trains, keeps, and takes, on one task and model.

    Seconds are of one run and its evaluations, or of choosing a prompt; memory is what the process came to hold beside
    PyTorch, data and model.
    """
    costs = ("trained", "kept", "bytes a task", "core seconds", "memory of training, MB", "lr and start")
    head = ["method", "score", *costs]
    rows = []
    for cell in report.cells(part, task=task, model=model):
        timed = report.timed(cell)
        memory = timed.of("peak_bytes") - timed.of("bytes_before") if timed else 0.0
        rows.append(
            [
                called(cell.contender),
                cell.told(),
                f"{cell.of('trainable'):,.0f}",
                f"{cell.of('kept'):,.0f}",
                f"{cell.of('bytes'):,.0f}",
                f"{timed.of('seconds'):.0f}" if timed else "",
                f"{memory / 1e6:,.0f}" if memory > 0 else "",
                chosen(cell.rows[0]),
            ]
        )
    return table(head, rows, right=7)


def measures_table(report: Report, part: str, task: str, model: str) -> str:
    """Everything that was measured on test."""
    cells = report.cells(part, task=task, model=model)
    names = {name: told for name, (told, _, _) in MEASURES.items()}
    tests = [row["test"] for cell in cells for row in cell.rows]
    shared = [name for name in names if all(test.get(name) is not None for test in tests)]
    rows = [[called(cell.contender), *(mean_told(mean_of(cell.scores(name))) for name in shared)] for cell in cells]
    return table(["method", *(names[name] for name in shared)], rows, right=len(shared))


def samples_table(report: Report, part: str, task: str, model: str) -> str:
    """The first texts that each contender wrote on test, with its first seed; an empty text where it wrote none."""
    samples = {cell.contender: cell.rows[0].get("samples", []) for cell in report.cells(part, task=task, model=model)}
    given = [sample["given"] for sample in next(iter(samples.values()), [])]
    rows = [
        [quoted(given[place]) if not number else "", called(name), quoted(own[place]["written"])]
        for place in range(len(given))
        for number, (name, own) in enumerate(samples.items())
    ]
    return table(["given", "method", "written"], rows) if rows else ""


def curve_table(report: Report, part: str, axis: str, task: str, model: str) -> str:
    """A row per contender, a column per value of "size" or "examples", on one task and model."""
    told = report.study.part(part)
    values: Sequence[Any] = told.sizes if axis == "size" else told.examples
    head = [f"{task}, {model}: {MEASURES[report.measure(part, task)][0]}", *map(axis_told, values)]
    rows = []
    for name in told.contenders:
        cells = {getattr(c, axis): c for c in report.cells(part, task=task, model=model, contender=name)}
        own = (cells.get(value) for value in values)
        rows.append([called(name), *(cell.told(numbers=axis == "size") if cell else "" for cell in own)])
    return table(head, rows, right=len(values))


def models_table(report: Report, task: str, best: str = "full") -> str:
    """A row per contender that was tested on several models: its score on each, and how far behind `best` it is there.

    Empty where no contender was.
    """
    found = report.over_models(task)
    models = list(dict.fromkeys(model for cells in found.values() for model in cells))
    ahead = found.get(best, {})
    gaps = [model for model in models if model in ahead]
    rows = []
    for name, cells in found.items():
        own = [cells[model].told() if model in cells else "" for model in models]
        behind = [report.behind(cells[m], ahead[m]) if m in cells and name != best else None for m in gaps]
        rows.append([called(name), *own, *("" if gap is None else mean_told(gap) for gap in behind)])
    head = ["method", *models, *(f"behind {called(best)}, {model}" for model in gaps)]
    return table(head, rows, right=len(head) - 1) if rows else ""


def paired_table(report: Report, part: str, pairs: Sequence[tuple[str, str]], **wanted: Any) -> str:
    """The differences of pairs of contenders, run for run: see `Report.paired`."""
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
        for one in report.paired(part, pairs, **wanted)
    ]
    return table(head, rows, right=5)


def sweep_table(report: Report, part: str, task: str, model: str, contender: str) -> str:
    """Dev scores of a contender's trials, a row per start and a column per learning rate."""
    grid = report.grid(part, task, model, contender)
    rates = sorted({rate for _, rate in grid})
    starts = list(dict.fromkeys(start for start, _ in grid))
    rows = [
        [start, *(dev_told(grid[start, rate]) if (start, rate) in grid else "" for rate in rates)] for start in starts
    ]
    return table(["start", *(f"{rate:g}" for rate in rates)], rows, right=len(rates))


def _whole(report: Report, part: Part) -> list[str]:
    """The tables that fit the shape of a part, each under a heading."""
    found = []
    if part.seeds and len(part.sizes) == 1 and len(part.examples) == 1:
        found.append(main_table(report, part.name))
        for task, model in product(part.tasks, part.models):
            told = [make(report, part.name, task, model) for make in (cost_table, measures_table, samples_table)]
            found.append(f"{task}, {model}:\n\n" + "\n\n".join(filter(None, told)))
    for axis, values in (("size", part.sizes), ("examples", part.examples)):
        if part.seeds and len(values) > 1:
            found += [curve_table(report, part.name, axis, task, model) for task in part.tasks for model in part.models]
    if not part.seeds:
        found += [
            f"{called(name)}, {task}, {model}:\n\n{sweep_table(report, part.name, task, model, name)}"
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
            lines += [f"## {part.name}", "", *(f"{one}\n" for one in _whole(report, part))]
            if kept := "\n".join(commands(report, part.name)):
                lines += [f"{KEPT}\n\n```\n{kept}\n```\n"]
    over = {task: models_table(report, task) for task in report.study.tasks}
    if any(over.values()):
        lines += ["## From model to model", "", *(f"{task}:\n\n{told}\n" for task, told in over.items() if told)]
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
