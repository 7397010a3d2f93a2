"""Figures of the lesson that compares methods; see `minipeft.course.figures`."""

from collections.abc import Mapping, Sequence
from typing import Any

from minipeft.compare.tables import called
from minipeft.course.figures import show
from minipeft.plots import GREY

Scores = Mapping[str, tuple[float, float]]
"""By contender, such as "soft_prompt": the mean over seeds, and half of its 95 % interval."""


def scores_over_costs(
    scores: Scores,
    costs: Mapping[str, Mapping[str, float]],
    line: tuple[str, float],
    title: str,
    y_name: str,
) -> None:
    """A panel for each kind of cost, on a logarithmic scale where they are unlike by more than ten; a point a method.

    Bars are 95 % intervals over seeds; `line` is what costs nothing. A method without a cost is left out there.
    """
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(costs), figsize=(9, 5.4), sharey=True, layout="constrained", squeeze=False)
    styles = {name: _style(name, place) for place, name in enumerate(scores)}
    handles: dict[str, Any] = {}
    for axes, (what, of) in zip(panels[0], costs.items(), strict=True):
        for name, (mean, half) in scores.items():
            if name in of:
                handles[name] = axes.errorbar(of[name], mean, yerr=half, **styles[name])
        axes.axhline(line[1], color=GREY, linestyle=":", linewidth=1)
        if _is_wide(of):
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1.1 * max(of.values()))
        axes.set_xlabel(what, fontsize=10)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(y_name, fontsize=10)
    panels[0][-1].annotate(
        line[0], (0.02, line[1]), (0, -4), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="left", va="top", fontsize=9, color=GREY,
    )  # fmt: skip
    names = [name for name in scores if name in handles]
    told = [called(name) for name in names]
    figure.legend(
        [handles[name] for name in names], told, loc="outside lower center", ncols=4, fontsize=9, frameon=False
    )
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    pyplot.show()


def scores_within_budget(
    scores: Scores, costs: Mapping[str, float], budget: float, title: str, x_name: str, y_name: str
) -> None:
    """A point a method, pale where its cost is above the budget; the line is the best score that a budget buys."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    if _is_wide(costs):
        axes.set_xscale("log")
    best: list[tuple[float, float]] = []
    style = {name: _style(name, place) for place, name in enumerate(scores)}
    for name in sorted(costs, key=lambda name: (costs[name], -scores[name][0])):
        within, (mean, half) = costs[name] <= budget, scores[name]
        axes.errorbar(costs[name], mean, yerr=half, alpha=1.0 if within else 0.25, **style[name])
        if not best or mean > best[-1][1]:
            best.append((costs[name], mean))
            axes.annotate(
                called(name), (costs[name], mean), (6, 5), textcoords="offset points", fontsize=9,
                color="black" if within else GREY,
            )  # fmt: skip
    bought = [one for one in best if one[0] <= budget]
    places, heights = zip(*bought, (budget, bought[-1][1]), strict=True)
    axes.step(places, heights, where="post", color=GREY, linewidth=1.2, zorder=0)
    axes.axvline(budget, color=GREY, linestyle="--", linewidth=1)
    axes.annotate("budget", (budget, 0), (3, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                  fontsize=9, color=GREY)  # fmt: skip
    axes.margins(x=0.12)
    axes.set_ylabel(y_name, fontsize=10)
    show(axes, title, x_name)


def scores_over_models(scores: Mapping[str, Scores], models: Sequence[str], title: str, y_name: str) -> None:
    """A line for each method from model to model, named at its end; bars are 95 % intervals over seeds."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=(9, 3.8), layout="constrained")
    shifts = [0.03 * (place - (len(scores) - 1) / 2) for place in range(len(scores))]  # so that no bar hides another
    for place, (name, found) in enumerate(scores.items()):
        means, halves = ([found[model][which] for model in models] for which in (0, 1))
        style = {**_style(name, place), "linestyle": "-"}
        axes.errorbar([at + shifts[place] for at in range(len(models))], means, yerr=halves, **style)
        end = (len(models) - 1, means[-1])
        axes.annotate(called(name), end, (22, 0), textcoords="offset points", color=style["color"], va="center")
    axes.set_xticks(range(len(models)), models, fontsize=10)
    axes.set_xlim(-0.15, len(models) - 0.3)
    axes.set_ylabel(y_name, fontsize=10)
    show(axes, title, "")


def _is_wide(costs: Mapping[str, float]) -> bool:
    """Whether costs differ by more than ten times, which only a logarithmic scale shows."""
    return max(costs.values()) > 10 * min(costs.values())


def _style(contender: str, place: int) -> dict[str, Any]:
    """Colour by the door a method comes in by, marker by its place."""
    from minipeft.compare.figures import MARKERS, colour_of

    marker, colour = MARKERS[place % len(MARKERS)], colour_of(contender)
    return {"fmt": marker, "color": colour, "markersize": 7, "linewidth": 1.5, "elinewidth": 1.2, "capsize": 2.5}
