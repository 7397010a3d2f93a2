"""Pictures: colour-blind safe, the finding in the title, readable at notebook width."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.files import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

# Okabe & Ito 2008: told apart by every common kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"


def accuracy_bars(rows: Sequence[dict[str, Any]], title: str, path: str | Path) -> None:
    """Test accuracy of each method with its standard error, labelled with what it trains; a dashed line is chance.

    `rows`: dicts with `method`, `trainable`, `test`, `error`; the first is the baseline. Writes a PNG.
    """
    pyplot = figures()
    figure, axes = pyplot.subplots(figsize=(8, 0.62 * len(rows) + 1.4), layout="constrained")
    names = [f"{row['method']}\n{trained_text(row['trainable'])}" for row in rows]
    colours = [GREY if not row["trainable"] else ORANGE if row["method"].startswith("full") else BLUE for row in rows]
    places = range(len(rows))
    values, errors = [100 * row["test"] for row in rows], [200 * row["error"] for row in rows]
    axes.barh(places, values, xerr=errors, color=colours, error_kw={"elinewidth": 1.2, "capsize": 3})
    for place, value, error in zip(places, values, errors, strict=True):
        axes.text(value + error + 0.6, place, f"{value:.1f}", va="center", fontsize=11)
    axes.axvline(values[0], color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(places, names, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(40, max(values) + 8)
    axes.set_xlabel("test accuracy in % (bars: ± 2 standard errors; axis starts at 40)", fontsize=10)
    axes.set_title(title, fontsize=12, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)


def head_map(mass: "Float[Tensor, 'L H']", title: str, note: str, path: str | Path) -> None:
    """A share of each head, from 0 to 1, as a map: a row for each block, a column for each head. Writes a PNG.

    The numbers stand in it, in percent, as long as they can be read.
    """
    pyplot = figures()
    L, H = mass.shape
    inches = min(9, 2.4 + 0.62 * H), min(9, 1.9 + 0.42 * L)
    figure, axes = pyplot.subplots(figsize=inches, layout="constrained")
    most = max(float(mass.max()), 0.01)
    image = axes.imshow((100 * mass).tolist(), cmap="Blues", vmin=0, vmax=100 * most, aspect="auto")
    if L <= 24 and H <= 16:
        for layer, head in ((layer, head) for layer in range(L) for head in range(H)):
            share = float(mass[layer, head])
            colour = "white" if share > 0.55 * most else "black"
            axes.text(head, layer, f"{100 * share:.0f}", ha="center", va="center", fontsize=10, color=colour)
    axes.set_xticks(range(H), [str(head) for head in range(H)], fontsize=9)
    axes.set_yticks(range(L), [f"h.{layer}" for layer in range(L)], fontsize=9)
    axes.set_xlabel("head", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of the attention in %").outline.set_visible(False)
    figure.suptitle(textwrap.fill(title, int(8 * inches[0])), fontsize=12, x=0.02, ha="left")
    figure.supxlabel(textwrap.fill(note, int(12 * inches[0])), fontsize=9, x=0.02, ha="left", color=GREY)
    write_figure(figure, path)


def training_curves(rows: Sequence[dict[str, Any]], name: str, path: str | Path) -> None:
    """The loss of each step and its mean over a stretch, what was measured on held-out text, and the learning rate.

    `rows`: those of `metrics.jsonl`. Writes a PNG.
    """
    pyplot = figures()
    steps = [row["step"] for row in rows]
    losses = [math.nan if row["loss"] is None else row["loss"] for row in rows]
    stretch = max(1, len(rows) // 50)
    means, places = [], []
    for start in range(0, len(rows), stretch):
        part = [loss for loss in losses[start : start + stretch] if math.isfinite(loss)]
        if part:
            means.append(sum(part) / len(part))
            places.append(sum(steps[start : start + stretch]) / len(steps[start : start + stretch]))
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 5), height_ratios=(4, 1), sharex=True, layout="constrained"
    )
    above.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="training, each step")
    above.plot(places, means, color=BLUE, linewidth=1.8, label=f"training, mean of {stretch}" if stretch > 1 else None)
    found = ((row["step"], _held_out_loss(row)) for row in rows)
    measured = [(step, loss) for step, loss in found if loss is not None]
    if measured:
        above.plot(*zip(*measured, strict=True), "o-", color=ORANGE, markersize=5, label="held out")
        best = min(measured, key=lambda one: one[1])
        above.annotate(f"{best[1]:.2f}", best, xytext=(0, 8), textcoords="offset points", ha="center", fontsize=10)
    above.set_ylabel("loss in nats a token", fontsize=10)
    above.set_title(f"{name}: loss {means[-1]:.2f} after {steps[-1]:,} steps", fontsize=12, loc="left")
    above.legend(frameon=False, fontsize=10)
    below.plot(steps, [row["lr"] for row in rows], color=GREY)
    below.set_ylim(0)
    below.set_ylabel("rate", fontsize=10)
    below.set_xlabel("step", fontsize=10)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)


def _held_out_loss(row: dict[str, Any]) -> float | None:
    """Nats a token on held-out text, by the name that pretraining or tuning gives it."""
    if "perplexity" in row:
        return math.log(row["perplexity"])
    return row.get("dev_loss")


def trained_text(trainable: int) -> str:
    """ "nothing trained", or how many numbers are."""
    return f"{trainable:,} numbers trained" if trainable else "nothing trained"


def figures() -> Any:
    """matplotlib for files, without a window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def write_figure(figure: Any, path: str | Path) -> None:
    """The figure as a PNG, with the same bytes for the same picture; it is closed."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png", metadata={"Software": None})
    figures().close(figure)
    write_atomically(path, picture.getvalue())
