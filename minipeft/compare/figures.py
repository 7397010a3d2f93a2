"""Pictures of a comparison, each drawn from the rows of its results alone."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.compare.study import Part
from minipeft.compare.tables import axis_told, called
from minipeft.plots import BLUE, GREEN, GREY, ORANGE, figures, write_figure

if TYPE_CHECKING:
    from minipeft.compare.report import Cell, Report

# Okabe & Ito 2008, without yellow, which is too light for lines.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#D55E00", "#56B4E9", GREY, "#000000")
MARKERS = "osD^vP*X<>phd"
FAMILY = {
    "soft_prompt": BLUE,
    "soft_prompt_labels": BLUE,
    "p_tuning": BLUE,
    "prefix": GREEN,
    "prefix_mlp": GREEN,
    "deep_prompt_text": GREEN,
    "full": ORANGE,
    "top2": ORANGE,
}
"""A colour for each door: input, memory, all weights; what else changes weights is pink, what trains nothing grey."""
BESIDE_WEIGHTS = "#CC79A7"
COSTS = {
    "kept": "numbers kept for a task",
    "seconds": "core seconds of training",
    "bytes": "bytes a task on disk",
}


def draw(report: "Report", folder: Path) -> list[Path]:
    """The pictures that each part's shape and rows allow, as PNG files named after the part or the task."""
    drawn = []
    for part in report.study.parts:
        paths: dict[str, Any] = {}
        if report.cells(part.name):
            if len(part.sizes) > 1:
                paths["size"] = _over_axis(report, part, "size")
            if len(part.examples) > 1:
                paths["examples"] = _over_axis(report, part, "examples")
            if not paths:
                paths["scores"] = _scores(report, part)
                paths |= {cost: _over_cost(report, part, cost) for cost in COSTS}
                paths["learning"] = _learning(report, part)
        if not part.seeds and any(row["dev"] is not None for row in report.rows(part.name)):
            paths["starts"] = _heat(report, part)
        for name, figure in paths.items():
            drawn.append(folder / f"{part.name}_{name}.png")
            write_figure(figure, drawn[-1])
    for task in report.study.tasks:
        if figure := over_models(report, task):
            drawn.append(folder / f"{task}_models.png")
            write_figure(figure, drawn[-1])
    return drawn


def colour_of(contender: str) -> str:
    """The colour of a contender's door."""
    from minipeft.compare.contenders import BARE

    return GREY if contender in (*BARE, "linear_probe") else FAMILY.get(contender, BESIDE_WEIGHTS)


def over_models(report: "Report", task: str) -> Any:
    """Test score from model to model, a line for each contender that was tested on all; None below three models."""
    found = report.over_models(task)
    models = list(dict.fromkeys(model for cells in found.values() for model in cells))
    if len(models) < 3:
        return None
    lines = {name: [cells[model] for model in models] for name, cells in found.items() if len(cells) == len(models)}
    figure, axes = figures().subplots(figsize=(7.6, 4.2), layout="constrained")
    for place, (name, cells) in enumerate(lines.items()):
        means = [cell.mean for cell in cells]
        halves = [0.0 if math.isnan(mean.half) else mean.half for mean in means]
        shifted = [
            x + 0.03 * (place - (len(lines) - 1) / 2) for x in range(len(models))
        ]  # so that no bar hides another
        axes.errorbar(
            shifted,
            [mean.value for mean in means],
            yerr=halves,
            fmt=f"{MARKERS[place % len(MARKERS)]}-",
            color=COLOURS[place % len(COLOURS)],
            label=called(name),
            markersize=6,
            linewidth=1.5,
            elinewidth=1,
            capsize=2.5,
        )
    axes.set_xticks(range(len(models)), models, fontsize=10)
    axes.set_ylabel(_measure(next(iter(lines.values()), [])), fontsize=10)
    axes.set_title(f"{task}, from model to model: mean and 95 % interval over seeds", fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scores(report: "Report", part: Part) -> Any:
    """A panel for each task and model: every contender's mean with its interval, every seed a dot."""
    pyplot = figures()
    columns = [(task, model) for model in part.models for task in part.tasks]
    across = min(len(columns), len(part.tasks)) or 1
    down = math.ceil(len(columns) / across)
    figure, axes = pyplot.subplots(
        down,
        across,
        figsize=(1.9 + 2.7 * across, down * (0.8 + 0.27 * len(part.contenders))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, (task, model) in zip(axes.flat, columns, strict=False):
        cells = {cell.contender: cell for cell in report.cells(part.name, task=task, model=model)}
        for place, name in enumerate(part.contenders):
            if name in cells:
                _dots(panel, cells[name], place)
        if "majority" in cells:
            panel.axvline(cells["majority"].mean.value, color=GREY, linestyle=":", linewidth=1)
        panel.set_title(f"{task}, {model}", fontsize=10, loc="left")
        panel.set_xlabel(_measure(list(cells.values())), fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right", "left"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(part.contenders)), [called(name) for name in part.contenders])
    for first in axes[:, 0]:
        first.tick_params(axis="y", labelsize=9)
    axes[0, 0].set_ylim(len(part.contenders) - 0.5, -0.5)
    figure.supxlabel(
        "bars: 95 % interval over seeds; pale dots: each seed; dotted: the commonest label. "
        "Blue: input; green: memory; pink: beside the weights; orange: the weights.",
        fontsize=8,
        x=0.01,
        ha="left",
        color=GREY,
    )
    return figure


def _dots(panel: Any, cell: "Cell", place: int) -> None:
    colour, mean = colour_of(cell.contender), cell.mean
    panel.plot(cell.scores(), [place] * len(cell.rows), "o", color=colour, alpha=0.35, markersize=4)
    half = 0.0 if math.isnan(mean.half) else mean.half
    panel.errorbar(mean.value, place, xerr=half, fmt="D", color=colour, markersize=4.5, capsize=2.5, elinewidth=1.1)


def _over_cost(report: "Report", part: Part, cost: str) -> Any:
    """Quality over what one more task costs: a row of panels for each model, a marker for each contender."""
    if cost == "seconds" and part.timed_by:
        timed_tasks = report.study.part(part.timed_by).tasks
        part = replace(part, tasks=tuple(task for task in part.tasks if task in timed_tasks))
    figure, panels = _grid(part, width=3.0)
    handles: dict[str, Any] = {}
    markers = dict(zip(part.contenders, MARKERS * 3, strict=False))
    for (task, model), panel in panels.items():
        cells = report.cells(part.name, task=task, model=model)
        for cell in cells:
            timed = report.timed(cell) if cost == "seconds" else cell
            answers_without_a_model = cost == "seconds" and cell.contender == "majority"
            if timed and timed.of(cost) > 0 and not answers_without_a_model and (cost != "bytes" or cell.of("kept")):
                handles[cell.contender] = panel.plot(
                    timed.of(cost),
                    cell.mean.value,
                    markers[cell.contender],
                    color=colour_of(cell.contender),
                    markersize=6,
                    linestyle="none",
                )[0]
        for flat in (cell for cell in cells if cell.contender in ("majority", "calibrated_prompt")):
            dashes = ":" if flat.contender == "majority" else "--"
            panel.axhline(flat.mean.value, color=GREY, linestyle=dashes, linewidth=1)
        panel.set_xscale("log")
        panel.set_ylabel(_measure(cells), fontsize=9)
        panel.set_xlabel(COSTS[cost] + " (log scale)", fontsize=9)
    _name(handles, part, figure)
    return figure


def _over_axis(report: "Report", part: Part, axis: str) -> Any:
    """Test score over size or number of examples, a line for each contender, a band of 95 % over seeds."""
    pyplot = figures()
    panels = [(task, model) for model in part.models for task in part.tasks]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(1.2 + 5.4 * len(panels), 4.0), squeeze=False, layout="constrained"
    )
    values: Sequence[Any] = part.sizes if axis == "size" else part.examples
    by_numbers = axis == "size" and str(values[0]).startswith("numbers")
    for panel, (task, model) in zip(axes.flat, panels, strict=True):
        for place, name in enumerate(part.contenders):
            cells = report.cells(part.name, task=task, model=model, contender=name)
            cells.sort(key=lambda cell: values.index(getattr(cell, axis)))
            if not cells:
                continue
            x = [cell.of("kept") if by_numbers else _place(cell, axis) for cell in cells]
            means = [cell.mean for cell in cells]
            low = [m.value - (0 if math.isnan(m.half) else m.half) for m in means]
            high = [m.value + (0 if math.isnan(m.half) else m.half) for m in means]
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            panel.plot(x, [m.value for m in means], f"{marker}-", color=colour, label=called(name), markersize=6)
            panel.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.set_xscale("log")
        told = "numbers kept" if by_numbers else "vectors" if axis == "size" else "training examples"
        panel.set_xlabel(f"{told} (log scale)", fontsize=10)
        panel.set_ylabel(_measure(report.cells(part.name, task=task, model=model)), fontsize=10)
        panel.set_title(f"{task}, {model}: mean and 95 % interval over seeds", fontsize=11, loc="left")
        places = [_number(value, report, part, axis) for value in values]
        panel.set_xticks(places, [axis_told(value).split()[-1] for value in values], fontsize=9)
        panel.minorticks_off()
        panel.legend(frameon=False, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _place(cell: "Cell", axis: str) -> float:
    if axis == "size":
        return float(str(cell.size).partition("=")[2])
    return float(cell.rows[0]["read"])


def _number(value: Any, report: "Report", part: Part, axis: str) -> float:
    """Where a value stands on its axis; "all" where the whole of the examples does."""
    found = next((_place(cell, axis) for cell in report.cells(part.name) if getattr(cell, axis) == value), None)
    return found if found is not None else math.nan


def _learning(report: "Report", part: Part) -> Any:
    """Score on dev over the steps of the final runs, the mean over seeds, a panel for each task and model."""
    figure, panels = _grid(part, width=3.2, sharex=True)
    handles: dict[str, Any] = {}
    markers = dict(zip(part.contenders, MARKERS * 3, strict=False))
    for (task, model), panel in panels.items():
        scale = 100 if report.measure(part.name, task) == "accuracy" else 1
        for cell in report.cells(part.name, task=task, model=model):
            curves = [row["dev_curve"] for row in cell.rows if row.get("dev_curve")]
            if curves:
                steps = [point[0] for point in curves[0]]
                scores = [scale * sum(curve[i][1] for curve in curves) / len(curves) for i in range(len(steps))]
                handles[cell.contender] = panel.plot(
                    steps,
                    scores,
                    f"{markers[cell.contender]}-",
                    color=colour_of(cell.contender),
                    markersize=4,
                    linewidth=1,
                )[0]
        panel.set_xlabel("steps", fontsize=9)
        panel.set_ylabel("accuracy on dev, %" if scale == 100 else "minus loss on dev, nats", fontsize=9)
    _name(handles, part, figure)
    return figure


def _grid(part: Part, width: float, **sharing: Any) -> tuple[Any, dict[tuple[str, str], Any]]:
    """A figure with a panel for each task and model of a part, so many inches wide; models go down, tasks across."""
    down, across = len(part.models), len(part.tasks)
    size = max(6.5, 1.2 + width * across), 0.9 + 2.7 * down  # so wide that the names fit below
    figure, axes = figures().subplots(down, across, figsize=size, squeeze=False, layout="constrained", **sharing)
    panels = dict(zip(((task, model) for model in part.models for task in part.tasks), axes.flat, strict=True))
    for (task, model), panel in panels.items():
        panel.set_title(f"{task}, {model}", fontsize=10, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _name(handles: dict[str, Any], part: Part, figure: Any) -> None:
    """The names of what was drawn, in the order of the part, below the panels."""
    names = [name for name in part.contenders if name in handles]
    drawn, told = [handles[name] for name in names], [called(name) for name in names]
    columns = 5 if len(part.tasks) > 1 else 3
    figure.legend(drawn, told, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _heat(report: "Report", part: Part) -> Any:
    """Dev score by start and learning rate, a map for each contender of the first task and model."""
    pyplot = figures()
    task, model = part.tasks[0], part.models[0]
    figure, axes = pyplot.subplots(
        1, len(part.contenders), figsize=(4.4 * len(part.contenders), 2.9), squeeze=False, layout="constrained"
    )
    grids = [report.grid(part.name, task, model, name) for name in part.contenders]
    known = [score for grid in grids for score in grid.values() if score is not None]
    scale = 100 if min(known) >= 0 else 1  # accuracies, or minus losses
    known = [scale * score for score in known]
    for panel, name, grid in zip(axes.flat, part.contenders, grids, strict=True):
        starts, rates = list(dict.fromkeys(start for start, _ in grid)), sorted({rate for _, rate in grid})
        shown = [[_shown(grid.get((start, rate)), scale) for rate in rates] for start in starts]
        panel.imshow(shown, cmap="viridis", vmin=min(known), vmax=max(known), aspect="auto")
        for down, row in enumerate(shown):
            for across, score in enumerate(row):
                dark = math.isnan(score) or score < (min(known) + max(known)) / 2
                lost = "diverged" if (starts[down], rates[across]) in grid else "not run"
                told = lost if math.isnan(score) else f"{score:.{1 if scale == 100 else 2}f}"
                panel.text(
                    across, down, told, ha="center", va="center", fontsize=10, color="white" if dark else "black"
                )
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], fontsize=9)
        panel.set_yticks(range(len(starts)), starts, fontsize=9)
        panel.set_xlabel("learning rate", fontsize=10)
        what = "accuracy on dev, %" if scale == 100 else "minus loss on dev"
        panel.set_title(f"{called(name)}: {what}", fontsize=11, loc="left")
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    return figure


def _shown(score: float | None, scale: int) -> float:
    return math.nan if score is None else scale * score


def _measure(cells: Sequence["Cell"]) -> str:
    from minipeft.compare.report import MEASURES

    return f"test {MEASURES[cells[0].measure][0]}" if cells else ""
