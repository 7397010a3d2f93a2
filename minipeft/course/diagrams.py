"""Diagrams of the lessons: what stands where in a block, and what each row of a batch reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minipeft.course.figures import GREEN, ORANGE, PURPLE, SKY, YELLOW
from minipeft.plots import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEARNED, FROZEN = ORANGE, SKY
PADDING = "#ececec"
TASKS = (ORANGE, GREEN, PURPLE, YELLOW)


@dataclass(frozen=True)
class ServedRow:
    """One row of a batch: its task's name and bytes, the slots of memory that it fills, its tokens, what it wrote."""

    task: str
    nbytes: int
    slots: int
    tokens: tuple[str, ...]
    written: str


def batch_of_tasks(rows: Sequence[ServedRow], title: str) -> None:
    """Of each row its memory, its text and what it wrote; grey numbers are positions; padding is pale and has none."""
    from matplotlib import pyplot

    most, longest = max(row.slots for row in rows), max(len(row.tokens) for row in rows)
    letters = max(len(piece) for row in rows for piece in row.tokens)
    slot, token, text = 0.38, max(1.2, 0.28 * letters), 0.38 * most + 0.5
    end = text + token * longest
    _, axes = pyplot.subplots(figsize=(10, 0.72 * len(rows) + 1.1), layout="constrained")
    for y, (row, colour) in enumerate(zip(rows, TASKS, strict=False)):
        axes.annotate(row.task, (-0.3, y - 0.1), ha="right", va="center", fontsize=10.5)
        axes.annotate(f"{row.nbytes:,} bytes", (-0.3, y + 0.27), ha="right", va="center", fontsize=8.5, color=GREY)
        empty = most - row.slots
        for place in range(most):
            _cell(axes, slot * place, y, slot, colour if place >= empty else None)
        if row.slots:
            middle = slot * (empty + row.slots / 2)
            positions = f"0 … {row.slots - 1}"
            axes.annotate(positions, (middle, y + 0.4), ha="center", va="center", fontsize=8.5, color=GREY)
        padding = longest - len(row.tokens)
        for place in range(longest):
            x = text + token * place
            _cell(axes, x, y, token, FROZEN if place >= padding else None)
            if place >= padding:
                piece, position = row.tokens[place - padding].replace(" ", "␣"), row.slots + place - padding
                axes.annotate(piece, (x + token / 2, y), ha="center", va="center", fontsize=9.5)
                axes.annotate(
                    str(position), (x + token / 2, y + 0.4), ha="center", va="center", fontsize=8.5, color=GREY
                )
        axes.annotate(row.written, (end + 0.2, y), ha="left", va="center", fontsize=9.5, style="italic")
    for x, name in (
        (slot * most / 2, f"memory: keys and values, {most} slots"),
        (text + token * longest / 2, "text"),
        (end + 0.2, "what the row goes on with"),
    ):
        axes.annotate(name, (x, -0.75), ha="left" if x > end else "center", va="center", fontsize=10, color=GREY)
    axes.set_xlim(-3.4, end + 6.6)
    axes.set_ylim(len(rows) - 0.35, -1.0)
    axes.axis("off")
    axes.set_title(title, fontsize=12, loc="left")
    pyplot.show()


def _cell(axes: "Axes", x: float, y: float, width: float, colour: str | None) -> None:
    """A box of a row; without a colour it is padding."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x + 0.03, y - 0.24), width - 0.06, 0.48, color=colour or PADDING, linewidth=0))


def block_with_prefix(heads: int, head_size: int, length: int, title: str) -> None:
    """The attention of a block, as it is and with a prefix of `length` keys and values, side by side."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 5.6), layout="constrained")
    for place, P in zip(axes, (0, length), strict=True):
        place.set_xlim(0, 12)
        place.set_ylim(0, 12.6)
        place.axis("off")
        place.set_title("a block" if not P else f"the same block with a prefix of {P}", fontsize=11)
        _attention(place, heads, head_size, P)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    pyplot.show()


def _attention(axes: "Axes", H: int, Dh: int, P: int) -> None:
    D, keys = H * Dh, f"{P} + T" if P else "T"
    _box(axes, 6, 11.6, 5.4, "ln_1(x)", FROZEN)
    _box(axes, 6, 9.6, 11.4, "c_attn", FROZEN)
    _arrow(axes, 6, 11.2, 10.0, f"[T, {D}]")
    for x, name in ((1.8, "q"), (6, "k"), (10.2, "v")):
        _arrow(axes, x, 9.2, 8.0, f"[{H}, T, {Dh}]")
        _box(axes, x, 7.6, 3.4, name, FROZEN)
    if P:
        for x, name in ((6, "P_k"), (10.2, "P_v")):
            _box(axes, x, 6.75, 3.4, f"${name}$  [{H}, {P}, {Dh}]", LEARNED)
    for x, shape in ((1.8, f"[{H}, T, {Dh}]"), (6, f"[{H}, {keys}, {Dh}]"), (10.2, f"[{H}, {keys}, {Dh}]")):
        _arrow(axes, x, 7.2 if x < 2 or not P else 6.35, 5.2, shape)
    k, v = ("[P_k;\\,k]", "[P_v;\\,v]") if P else ("k", "v")
    _box(axes, 6, 4.7, 11.4, rf"softmax($q\,{k}^\top/\sqrt{{D_h}}$) ${v}$", FROZEN)
    axes.annotate(f"weights [{H}, T, {keys}]", (11.7, 3.85), ha="right", va="center", fontsize=8.5, color=GREY)
    _arrow(axes, 6, 4.3, 3.0, f"[T, {D}]")
    _box(axes, 6, 2.6, 5.4, "c_proj", FROZEN)
    _arrow(axes, 6, 2.2, 0.9, f"[T, {D}]")
    axes.annotate("added to x", (6, 0.45), ha="center", va="center", fontsize=10)
    for y, colour, meaning in ((1.6, FROZEN, "the model's"), (0.7, LEARNED, "learned")):
        if P:
            _box(axes, 9.9, y, 2.9, meaning, colour)


def _box(axes: "Axes", x: float, y: float, width: float, text: str, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - 0.38)
    axes.add_patch(FancyBboxPatch(corner, width, 0.76, boxstyle="round,pad=0,rounding_size=0.15", color=colour))
    axes.annotate(text, (x, y), ha="center", va="center", fontsize=10.5)


def _arrow(axes: "Axes", x: float, top: float, bottom: float, shape: str) -> None:
    axes.annotate("", (x, bottom), (x, top), arrowprops={"arrowstyle": "->", "color": "black", "linewidth": 1.2})
    axes.annotate(shape, (x + 0.15, (top + bottom) / 2), ha="left", va="center", fontsize=8.5, color=GREY)
