"""The figures of the lessons: colour-blind safe, the finding in the title, readable at notebook width."""

from collections.abc import Sequence

from minipeft.plots import GREEN, GREY, ORANGE

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
