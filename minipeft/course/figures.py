"""The figures of the lessons: colour-blind safe, the finding in the title, readable at notebook width."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minipeft.plots import BLUE, GREEN, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PURPLE, SKY, RED, YELLOW = "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"
PIECES = (SKY, ORANGE, GREEN, YELLOW, PURPLE, RED)
"""The light ones of Okabe & Ito 2008, on which black text can be read."""


def token_strips(rows: Sequence[Sequence[str]], labels: Sequence[str], title: str, note: str = "") -> None:
    """Each row a text as coloured boxes, one a token, its label on the left; a space shows as ␣.

    A box keeps its colour from row to row as long as it begins at the same character.
    """
    from matplotlib import pyplot

    widest = max(sum(max(1, len(piece)) for piece in row) for row in rows)
    _, axes = pyplot.subplots(figsize=(9, 0.42 * len(rows) + 0.9), layout="constrained")
    for height, row in enumerate(rows):
        start = 0
        for piece in row:
            width = max(1, len(piece))
            colour = PIECES[start % len(PIECES)]
            axes.broken_barh([(start, width)], (height + 0.08, 0.84), color=colour, edgecolor="white", linewidth=2)
            axes.text(start + width / 2, height + 0.5, piece.replace(" ", "␣"), ha="center", va="center", fontsize=12)
            start += width
    axes.set_yticks([height + 0.5 for height in range(len(rows))], labels, fontsize=10)
    axes.set_xticks([])
    axes.set_xlim(0, widest)
    axes.set_ylim(len(rows), 0)
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(note, loc="left", fontsize=10, color=GREY)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    pyplot.show()


def heat_maps(
    matrices: Sequence[Any],
    names: Sequence[str],
    title: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    row_name: str = "query",
    column_name: str = "key",
    numbers: bool = False,
    lightest: float = 0.0,
    darkest: float = 1.0,
    number: str = "{:.2f}",
) -> None:
    """Matrices of values from `lightest` to `darkest` side by side, in one scale; `numbers` writes them in as well."""
    import torch
    from matplotlib import pyplot

    shown = [torch.as_tensor(matrix).detach().float() for matrix in matrices]
    T, S = shown[0].shape
    size = 9 / len(shown)
    _, axes = pyplot.subplots(1, len(shown), figsize=(9, size * T / S + 0.9), layout="constrained", squeeze=False)
    for place, matrix, name in zip(axes[0], shown, names, strict=True):
        place.imshow(matrix, cmap="Blues", vmin=lightest, vmax=darkest, aspect="auto")
        place.hlines([t + 0.5 for t in range(T - 1)], -0.5, S - 0.5, color="white", linewidth=1)
        place.vlines([s + 0.5 for s in range(S - 1)], -0.5, T - 0.5, color="white", linewidth=1)
        place.set_title(name, fontsize=10)
        place.set_xticks(range(S), columns or range(S), rotation=90 if columns else 0, fontsize=9)
        place.set_yticks(range(T), rows or range(T), fontsize=9)
        place.set_xlabel(column_name, fontsize=10)
        place.tick_params(length=0)
        place.spines[:].set_visible(False)
        for row, column in ((t, s) for t in range(T) for s in range(S) if numbers):
            value = float(matrix[row, column])
            colour = "white" if 2 * value > lightest + darkest else "black"
            place.text(column, row, number.format(value), ha="center", va="center", fontsize=9, color=colour)
    axes[0][0].set_ylabel(row_name, fontsize=10)
    axes[0][0].figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    pyplot.show()


def curves(x: Any, lines: dict[str, Any], title: str, x_name: str, y_name: str) -> None:
    """One line a name over `x`, named where it ends."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 3), layout="constrained")
    for y, colour in zip(lines.values(), (BLUE, RED, GREEN, PURPLE), strict=False):
        axes.plot(x, y, color=colour, linewidth=2)
    axes.axhline(0, color=GREY, linewidth=0.8)
    lowest, highest = axes.get_ylim()
    room, taken = 0.09 * (highest - lowest), lowest - highest  # a line of text; names that would touch go up
    for end, name, colour in sorted(
        (float(y[-1]), name, colour)
        for (name, y), colour in zip(lines.items(), (BLUE, RED, GREEN, PURPLE), strict=False)
    ):
        taken = max(end, taken + room)
        axes.annotate(name, (float(x[-1]), taken), (6, 0), textcoords="offset points", color=colour, va="center")
    axes.set_ylabel(y_name, fontsize=10)
    show(axes, title, x_name)


def stacked_bars(rows: dict[str, dict[str, float]], title: str, x_name: str) -> None:
    """A bar a row, made of named parts; the legend stands above."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 0.5 * len(rows) + 1.5), layout="constrained")
    starts = dict.fromkeys(rows, 0.0)
    for part, colour in zip(next(iter(rows.values())), PIECES, strict=False):
        sizes = [parts[part] for parts in rows.values()]
        axes.barh(list(rows), sizes, left=list(starts.values()), color=colour, label=part, edgecolor="white")
        for (row, start), size in zip(starts.items(), sizes, strict=True):
            starts[row] = start + size
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    show(axes, title, x_name)


def maps(
    matrices: Sequence[Any],
    names: Sequence[str],
    title: str,
    row_name: str = "row",
    column_name: str = "column",
    signed: bool = False,
) -> None:
    """Large matrices as pictures side by side: dark where a number is far from zero; `signed`: red below zero."""
    import torch
    from matplotlib import pyplot

    shown = [torch.as_tensor(matrix).detach().float() for matrix in matrices]
    shown = shown if signed else [matrix.abs() for matrix in shown]
    most = max(float(matrix.abs().flatten().sort().values[int(0.98 * (matrix.numel() - 1))]) for matrix in shown)
    colours = {"cmap": "RdBu", "vmin": -most, "vmax": most} if signed else {"cmap": "Blues", "vmin": 0, "vmax": most}
    figure, axes = pyplot.subplots(1, len(shown), figsize=(9, 4.5), layout="constrained", squeeze=False)
    for place, matrix, name in zip(axes[0], shown, names, strict=True):
        place.imshow(matrix, interpolation="nearest", **colours)
        place.set_title(name, fontsize=10)
        place.tick_params(labelsize=9)
        place.set_xlabel(column_name, fontsize=10)
    axes[0][0].set_ylabel(row_name, fontsize=10)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    pyplot.show()


def bars(rows: dict[str, float], title: str, x_name: str, number: str = "{:g}", log: bool = False) -> None:
    """A bar a row, its number written beside it in the form `number`; `log`: tenfold from tick to tick."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 0.45 * len(rows) + 1.1), layout="constrained")
    axes.barh(list(rows), list(rows.values()), color=BLUE, log=log)
    for place, value in enumerate(rows.values()):
        axes.annotate(number.format(value), (value, place), (5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    show(axes, title, x_name)


def bar_columns(columns: dict[str, Sequence[float]], labels: Sequence[str], title: str, x_name: str) -> None:
    """The same labels in every column, a bar each, in one scale; a space at a label's start shows as ␣."""
    from matplotlib import pyplot

    size = (9, 0.28 * len(labels) + 1.2)
    figure, axes = pyplot.subplots(1, len(columns), figsize=size, layout="constrained", sharex=True, squeeze=False)
    names = [label.replace(" ", "␣") for label in labels]
    for place, (name, values) in zip(axes[0], columns.items(), strict=True):
        place.barh(range(len(labels)), values, color=BLUE)
        place.set_yticks(range(len(labels)), names if place is axes[0][0] else [""] * len(labels), fontsize=10)
        place.invert_yaxis()
        place.set_title(name, fontsize=10)
        place.set_xlabel(x_name, fontsize=10)
        place.tick_params(axis="y", length=0)
        place.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    pyplot.show()


def lines_with_errors(lines: dict[str, dict[int, float]], error: float, title: str, x_name: str, y_name: str) -> None:
    """One line a name through the values at whole numbers, with two standard errors up and down; `x` doubles."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    _, axes = pyplot.subplots(figsize=(9, 3.4), layout="constrained")
    axes.set_xscale("log")
    for (name, values), colour, marker, aside in zip(
        lines.items(), (BLUE, RED, GREEN), "osD", (0.985, 1.015, 1.0), strict=False
    ):
        places = sorted(values)
        heights = [values[place] for place in places]
        beside = [place * aside for place in places]  # so that bars of equal places can be told apart
        axes.errorbar(
            beside, heights, yerr=2 * error, color=colour, marker=marker, linewidth=2, capsize=4, elinewidth=1
        )
        axes.annotate(name, (beside[-1], heights[-1]), (22, 0), textcoords="offset points", color=colour, va="center")
    ticks = sorted({place for values in lines.values() for place in values})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(y_name, fontsize=10)
    show(axes, title, x_name)


def bars_in_groups(
    groups: dict[str, dict[str, Sequence[float]]], levels: Sequence[float], title: str, y_name: str, level_name: str
) -> None:
    """In each group a bar a name, as high as the mean of its values, which are dots; a dashed line at its level."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    colours = dict(zip(names, (BLUE, GREEN, ORANGE, SKY, PURPLE), strict=False))
    place, middles, told = 0.0, [], set()
    for group, level in zip(groups.values(), levels, strict=True):
        start = place
        for name, values in group.items():
            mean, label = sum(values) / len(values), None if name in told else name
            axes.bar(place, mean, 0.8, color=colours[name], label=label)
            axes.plot([place] * len(values), values, "o", color="black", markersize=4, clip_on=False)
            axes.text(place, max(values) + 3, f"{mean:.0f}", ha="center", fontsize=10)
            told.add(name)
            place += 1
        axes.plot([start - 0.5, place - 0.5], [level, level], "--", color=GREY, linewidth=2, zorder=3)
        middles.append((start + place - 1) / 2)
        place += 0.7
    axes.plot([], [], "--", color=GREY, linewidth=2, label=level_name)
    axes.set_xticks(middles, list(groups), fontsize=10)
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.1)
    axes.set_ylabel(y_name, fontsize=10)
    axes.figure.legend(frameon=False, fontsize=10, loc="outside lower center", ncols=len(names) + 1)
    show(axes, title, "")


def show(axes: "Axes", title: str, x_name: str) -> None:
    """The title, the name of what goes to the right, no frame above and beside; then the picture."""
    from matplotlib import pyplot

    axes.set_xlabel(x_name, fontsize=10)
    axes.set_title(title, loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    pyplot.show()
