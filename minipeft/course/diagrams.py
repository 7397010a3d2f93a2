"""Diagrams of the lessons: what stands where in a block, with the shape at each arrow."""

from typing import TYPE_CHECKING

from minipeft.course.figures import ORANGE, SKY
from minipeft.plots import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEARNED, FROZEN = ORANGE, SKY


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
