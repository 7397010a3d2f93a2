"""Draw docs/doors.png, the project's own picture: one frozen GPT-2, and the three doors through which methods enter.

    python recipes/doors.py

The numbers are of GPT-2 small, counted by the package.
"""

from pathlib import Path
from typing import Any

from minipeft.course.figures import ORANGE, PURPLE, SKY, YELLOW
from minipeft.downloads import PUBLIC
from minipeft.methods import LoRA, Method, Prefix, SoftPrompt
from minipeft.overview import BYTES, count, size_told
from minipeft.plots import GREY, figures, write_figure

OUT = Path(__file__).parents[1] / "docs" / "doors.png"
BLOCKS, TOKENS, LEARNED = ("block 1", "block 2", "…", "block 12"), 5, 3
DOORS: tuple[tuple[str, str, str, str, Method, str], ...] = (
    (
        "input",
        "vectors before the text",
        "soft prompt, P-tuning",
        "a soft prompt of 20",
        SoftPrompt(20, "random"),
        YELLOW,
    ),
    ("memory", "keys and values in every block", "prefix", "a prefix of 10", Prefix(10, None, "random"), PURPLE),
    (
        "weights",
        "modules beside the weights",
        "LoRA, IA³, adapters, LLaMA-Adapter, BitFit",
        "LoRA of rank 8",
        LoRA(8),
        ORANGE,
    ),
)


def main() -> None:
    figure, panels = figures().subplots(1, 3, figsize=(10, 4.2), layout="constrained")
    for axes, (door, what, methods, name, method, colour) in zip(panels, DOORS, strict=True):
        kept = count(method, PUBLIC["gpt2"].config)
        axes.set_title(f"{door}: {what}", fontsize=11, loc="center")
        model(axes, door, colour)
        told = f"{methods}\n{name}: {kept.kept:,} numbers, {size_told(kept.size)}"
        axes.annotate(told, (5, -0.75), ha="center", va="top", fontsize=9.5, linespacing=1.5)
        axes.set(xlim=(-0.6, 10.6), ylim=(-2.2, 6.6))
        axes.axis("off")
    base = PUBLIC["gpt2"].config.num_parameters()
    figure.supxlabel(
        f"blue is frozen: GPT-2 small, {base:,} numbers, {size_told(BYTES * base)}, one for all tasks",
        fontsize=10,
        color=GREY,
    )
    write_figure(figure, OUT)


def model(axes: Any, door: str, colour: str) -> None:
    """A frozen model from its text at the bottom to the next token, and what is learned where it enters."""
    for place in range(TOKENS):
        box(axes, 3.3 + 0.9 * place, 0, 0.75, 0.62, SKY)
    for place in range(LEARNED if door == "input" else 0):
        box(axes, 0.35 + 0.9 * place, 0, 0.75, 0.62, colour)
    for place, block in enumerate(BLOCKS):
        y = 1.35 + 1.15 * place
        axes.annotate("", (5.5, y), (5.5, y - 0.5), arrowprops={"arrowstyle": "->", "color": GREY})
        box(axes, 3.3, y, 4.35, 0.75, SKY)
        axes.annotate(block, (5.5, y + 0.375), ha="center", va="center", fontsize=9.5)
        for slot in range(LEARNED if door == "memory" else 0):
            box(axes, 0.35 + 0.9 * slot, y + 0.07, 0.75, 0.62, colour)
        if door == "weights":
            box(axes, 8.05, y + 0.07, 1.6, 0.62, colour)
            axes.plot([7.65, 8.05], [y + 0.38, y + 0.38], color=GREY, linewidth=1)
    top = 1.35 + 1.15 * len(BLOCKS)
    axes.annotate("next token", (5.5, top + 0.35), ha="center", va="center", fontsize=9.5)
    axes.annotate("", (5.5, top + 0.1), (5.5, top - 0.4), arrowprops={"arrowstyle": "->", "color": GREY})


def box(axes: Any, x: float, y: float, width: float, height: float, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, color=colour, linewidth=0))


if __name__ == "__main__":
    main()
