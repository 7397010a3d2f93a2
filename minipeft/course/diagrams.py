"""Diagrams of the lessons: what stands where in a block, and what each row of a batch reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minipeft.course.figures import GREEN, ORANGE, PURPLE, SKY, YELLOW
from minipeft.plots import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEARNED, FROZEN = ORANGE, SKY
INPUT, MEMORY, WEIGHTS = YELLOW, PURPLE, ORANGE
"""What is learned, by the door through which it enters."""
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


def block_with_every_method(title: str) -> None:
    """A whole block, attention on the left and the MLP on the right, and where each method enters it."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 8), layout="constrained")
    axes.set_xlim(0, 20)
    axes.set_ylim(0.6, 17.4)
    axes.axis("off")
    axes.set_title(title, fontsize=13, loc="left")
    left, right = 5.2, 15.0
    _line(axes, (left, 16.1), (left, 9.9))
    _line(axes, (left, 7.2), (left, 3.0))
    _line(axes, (left, 2.4), (left, 1.5), (11.9, 1.5), (11.9, 16.7), (right, 16.7), (right, 7.1))
    _line(axes, (right, 6.5), (right, 5.3))
    _attention_half(axes, left)
    _mlp_half(axes, right)
    for y, colour, meaning in (
        (3.9, FROZEN, "frozen; full finetuning trains it"),
        (3.0, INPUT, "learned, through the input door"),
        (2.1, MEMORY, "learned, through the memory door"),
        (1.2, WEIGHTS, "learned, through the weights door"),
    ):
        _box(axes, right + 1.0, y, 6.8, meaning, colour)
    pyplot.show()


def _attention_half(axes: "Axes", x: float) -> None:
    _box(axes, x, 16.5, 4.6, "embeddings of the text", FROZEN)
    _box(axes, x - 3.9, 16.5, 2.5, "soft prompt", INPUT)
    _line(axes, (x, 15.7), (x - 4.1, 15.7), (x - 4.1, 2.7), (x - 0.3, 2.7))
    _with_bias(axes, x, 14.8, "ln_1")
    axes.annotate("BitFit: every $b$", (x + 2.5, 14.8), ha="left", va="center", fontsize=10.5)
    _with_bias(axes, x, 13.2, "c_attn")
    _beside(axes, x, 13.2, "LoRA\n" + r"$(\alpha/r)\,B\,A\,x$", x)
    _box(axes, x, 11.2, 4.6, r"IA³  $l\,\odot$", WEIGHTS)
    for place, name in ((x - 1.6, "q"), (x, "k"), (x + 1.6, "v")):
        _box(axes, place, 9.9, 1.4, name, FROZEN)
    for place, name in ((x, "$P_k$"), (x + 1.6, "$P_v$")):
        _box(axes, place, 9.08, 1.4, name, MEMORY)
    axes.annotate("prefix", (x + 2.5, 9.08), ha="left", va="center", fontsize=10.5)
    for place, top in ((x - 1.6, 9.52), (x, 8.7), (x + 1.6, 8.7)):
        _line(axes, (place, top), (place, 7.6))
    _box(axes, x, 7.2, 4.6, r"softmax$(q\,k^\top/\sqrt{D_h})\,v$", FROZEN)
    _beside(axes, x, 7.2, "LLaMA-Adapter\n" + r"$\tanh(g)\cdot$ attention", x - 1.6)
    axes.annotate("$q$", (x + 3.6, 8.4), ha="center", va="center", fontsize=10.5)
    _with_bias(axes, x, 5.4, "c_proj")
    _box(axes, x, 4.0, 4.6, "adapter", WEIGHTS)
    _plus(axes, x, 2.7)


def _mlp_half(axes: "Axes", x: float) -> None:
    _line(axes, (x, 15.7), (x + 4.1, 15.7), (x + 4.1, 6.8), (x + 0.3, 6.8))
    _with_bias(axes, x, 14.8, "ln_2")
    _with_bias(axes, x, 13.4, "c_fc")
    _box(axes, x, 12.1, 4.6, "gelu", FROZEN)
    _box(axes, x, 10.8, 4.6, r"IA³  $l\,\odot$", WEIGHTS)
    _with_bias(axes, x, 9.4, "c_proj")
    _box(axes, x, 8.0, 4.6, "adapter", WEIGHTS)
    _plus(axes, x, 6.8)
    axes.annotate("the next block", (x, 4.95), ha="center", va="center", fontsize=10.5)


def _with_bias(axes: "Axes", x: float, y: float, name: str) -> None:
    """A frozen layer, its bias marked as what BitFit learns."""
    _box(axes, x - 0.65, y, 3.3, name, FROZEN)
    _box(axes, x + 1.7, y, 1.2, r"$+\,b$", WEIGHTS)


def _beside(axes: "Axes", x: float, y: float, text: str, reads: float) -> None:
    """What is learned beside the box at `x`: it reads the line at `reads`, and is added to what comes out."""
    axes.plot((reads + 0.2, x + 3), (y + 0.9, y + 0.9), color="white", linewidth=7, zorder=0.5)  # bridges the others
    _line(axes, (reads, y + 0.9), (x + 4.3, y + 0.9), (x + 4.3, y + 0.5))
    _line(axes, (x + 4.3, y - 0.5), (x + 4.3, y - 1.0), (x + 0.3, y - 1.0))
    _box(axes, x + 4.3, y, 3.5, text, WEIGHTS, 1.0)
    _plus(axes, x, y - 1.0)


def _plus(axes: "Axes", x: float, y: float) -> None:
    axes.plot([x], [y], "o", color="white", markeredgecolor="black", markersize=13)
    axes.annotate("+", (x, y), ha="center", va="center", fontsize=11)


def _line(axes: "Axes", *corners: tuple[float, float]) -> None:
    """A line around corners, with an arrow at its end."""
    across, up = zip(*corners[:-1], strict=True)
    axes.plot(across, up, color="black", linewidth=1.2, zorder=0.5)
    arrow = {"arrowstyle": "->", "color": "black", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", corners[-1], corners[-2], arrowprops=arrow, zorder=0.5)


def _box(axes: "Axes", x: float, y: float, width: float, text: str, colour: str, height: float = 0.76) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.15", color=colour))
    axes.annotate(text, (x, y), ha="center", va="center", fontsize=10.5)


def _arrow(axes: "Axes", x: float, top: float, bottom: float, shape: str) -> None:
    axes.annotate("", (x, bottom), (x, top), arrowprops={"arrowstyle": "->", "color": "black", "linewidth": 1.2})
    axes.annotate(shape, (x + 0.15, (top + bottom) / 2), ha="left", va="center", fontsize=8.5, color=GREY)
