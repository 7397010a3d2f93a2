"""Figures of the lessons that show single values as dots; see `minipeft.course.figures`."""

from collections.abc import Sequence
from typing import Any

from minipeft.course.figures import PURPLE, RED, show
from minipeft.plots import BLUE, GREEN, GREY, ORANGE


def dots_and_a_line(dots: dict[str, dict[str, float]], line: tuple[str, float, float], title: str, x_name: str) -> None:
    """Dots of each kind at the rows that they name; a line with its name, value and standard error across all."""
    from matplotlib import pyplot

    rows = list(next(iter(dots.values())))
    name, value, error = line
    _, axes = pyplot.subplots(figsize=(9, 0.33 * len(rows) + 1.6), layout="constrained")
    axes.axvspan(value - 2 * error, value + 2 * error, color=ORANGE, alpha=0.25, linewidth=0)
    axes.axvline(value, color=RED, linewidth=2)
    axes.annotate(name, (value, -0.9), (6, 0), textcoords="offset points", color=RED, va="center", fontsize=10)
    for (kind, values), colour, marker in zip(dots.items(), (GREY, BLUE, GREEN), "osD", strict=False):
        axes.plot([values[row] for row in rows], range(len(rows)), marker, color=colour, markersize=8, label=kind)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -1.5)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_xlabel(x_name, fontsize=10)
    axes.figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(dots), borderpad=0)
    axes.spines[["top", "right"]].set_visible(False)
    pyplot.show()


def dots_with_errors(rows: dict[str, float], error: float, title: str, x_name: str) -> None:
    """A dot a row, its number written beside it, with two standard errors to the left and right."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 0.42 * len(rows) + 1.1), layout="constrained")
    values, places = list(rows.values()), range(len(rows))
    axes.errorbar(values, places, xerr=2 * error, fmt="o", color=BLUE, markersize=8, elinewidth=1.5, capsize=4)
    for place, value in zip(places, values, strict=True):
        beside = (value + 2 * error, place)
        axes.annotate(f"{value:.1f}", beside, (8, 0), textcoords="offset points", va="center", fontsize=10)
    axes.set_yticks(places, list(rows), fontsize=10)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    show(axes, title, x_name)


def dots_over_numbers(
    rows: dict[str, tuple[int, Sequence[float]]],
    line: tuple[str, float],
    note: str,
    pictures: dict[str, Any],
    title: str,
    x_name: str,
    y_name: str,
) -> None:
    """A dot for every seed and a bar for their mean, over how many numbers each row trains; a line across.

    `rows` go from few numbers to many. `pictures` stand beside it, from red at -2 to blue at 2.
    """
    import torch
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(9, 4.6), layout="constrained")
    grid = figure.add_gridspec(len(pictures) + 1, 2, width_ratios=(3.8, 1), height_ratios=(*[12] * len(pictures), 1))
    axes = figure.add_subplot(grid[:, 0])
    axes.set_xscale("log")
    lowest, last = min(min(scores) for _, scores in rows.values()), list(rows)[-1]
    step = (min(rows[last][1]) - lowest) / len(rows)
    for place, (name, (numbers, scores)) in enumerate(rows.items()):
        right = name == last  # the others have room on their right, above the names of those before
        height = min(scores) - step / 2 if right else lowest + (place - 1) * step
        colour, mean = (BLUE, RED, GREEN, PURPLE)[place % 4], sum(scores) / len(scores)
        axes.plot([numbers] * len(scores), scores, "o", color=colour, markersize=6, alpha=0.6, markeredgewidth=0)
        axes.plot([numbers / 1.13, numbers * 1.13], [mean, mean], color=colour, linewidth=2.5)
        axes.plot([numbers, numbers], [min(scores), height], color=colour, linewidth=0.8)
        axes.annotate(
            f"{name}: {numbers:,}", (numbers, height), (-4 if right else 4, 0), textcoords="offset points",
            ha="right" if right else "left", va="center", fontsize=10, color=colour,
        )  # fmt: skip
    axes.axhline(line[1], color=GREY, linestyle="--", linewidth=1)
    axes.annotate(line[0], (0.995, line[1]), (0, -4), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", va="top", fontsize=9, color=GREY)  # fmt: skip
    axes.annotate(note, (0.995, 0.01), xycoords="axes fraction", ha="right", va="bottom", fontsize=9, color=GREY)
    axes.margins(x=0.06)
    axes.set_ylabel(y_name, fontsize=10)
    axes.set_xlabel(x_name, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    for place, (name, picture) in enumerate(pictures.items()):
        beside = figure.add_subplot(grid[place, 1])
        shown = torch.as_tensor(picture).detach().float()
        image = beside.imshow(shown, cmap="RdBu", vmin=-2, vmax=2, interpolation="nearest")
        beside.set_title(name, fontsize=10)
        beside.set_xticks([])
        beside.set_yticks([])
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[-1, 1]), orientation="horizontal", extend="both")
    bar.set_ticks([-2, -1, 0, 1, 2])
    bar.set_label("pixel: 0 is paper, 1 is ink", fontsize=9)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    pyplot.show()


def before_and_after(pairs: dict[str, tuple[Any, Any]], least: float, title: str, x_name: str, y_name: str) -> None:
    """Dots at what was and what is, tenfold from tick to tick, from `least` to 100; what stayed lies on the line."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    axes.plot([least, 100], [least, 100], color=GREY, linewidth=1)
    for (name, (before, after)), colour, marker in zip(pairs.items(), (ORANGE, BLUE, GREEN), "o^s", strict=False):
        axes.plot(before, after, marker, color=colour, markersize=4, label=name, linestyle="none")
    axes.set(xscale="log", yscale="log", xlim=(least, 130), ylim=(least, 130))
    ticks = [tick for tick in (0.01, 0.1, 1, 10, 100) if tick >= least]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylabel(y_name, fontsize=10)
    axes.legend(frameon=False, fontsize=10, loc="upper left", bbox_to_anchor=(1, 1), markerscale=2)
    show(axes, title, x_name)
