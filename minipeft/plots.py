"""Pictures: colour-blind safe, the finding in the title, readable at notebook width."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipeft.files import write_atomically

# Okabe & Ito 2008: told apart by every common kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"


def accuracy_bars(rows: Sequence[dict[str, Any]], title: str, path: str | Path) -> None:
    """Test accuracy of each method with its standard error, labelled with what it trains; a dashed line is chance.

    `rows`: dicts with `method`, `trainable`, `test`, `error`; the first is the baseline. Writes a PNG.
    """
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png", metadata={"Software": None})
    pyplot.close(figure)
    write_atomically(path, picture.getvalue())


def trained_text(trainable: int) -> str:
    """ "nothing trained", or how many numbers are."""
    return f"{trainable:,} numbers trained" if trainable else "nothing trained"
