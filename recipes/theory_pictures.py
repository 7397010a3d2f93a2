"""The pictures of the three `theory_*.py`: what they found in the title, every seed a dot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jaxtyping import Float
from torch import Tensor

from minipeft.plots import BLUE, GREEN, GREY, ORANGE, figures, write_figure

COLOURS = {"prefix": BLUE, "soft prompt": GREEN, "LoRA": ORANGE, "prefix, 8 times the numbers": "#7FB8D8"}


def draw_gated_sum(
    gates: Float[Tensor, "LH T"], words: Sequence[str], heads: int, found: Mapping[str, Any], path: Path
) -> None:
    """λ of every layer, head and position of one text, as a map."""
    pyplot = figures()
    figure, axes = pyplot.subplots(figsize=(11, 7), layout="constrained")
    image = axes.imshow((100 * gates).tolist(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    layers = len(gates) // heads
    for layer in range(1, layers):
        axes.axhline(layer * heads - 0.5, color="white", linewidth=4)
    axes.set_xticks(range(len(words)), [word.strip() for word in words], fontsize=10, rotation=60, ha="right")
    axes.set_yticks(range(len(gates)), [f"h.{n // heads}  head {n % heads}" for n in range(len(gates))], fontsize=9)
    axes.set_xlabel("token that looks back", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="λ: share of its attention on the prefix, in %").outline.set_visible(False)
    worst = max(max(one["largest_error_by_layer"]) for one in found["prefixes"].values())
    shares = found["prefixes"]["shakespeare"]["mean_lambda_by_layer"]
    least, most = (f"{100 * share:.0f} % in h.{shares.index(share)}" for share in (min(shares), max(shares)))
    axes.set_title(
        f"Attention with a prefix is (1 − λ) · that to the text + λ · that to the prefix, to within {power(worst)}.\n"
        f"λ of the prefix `shakespeare`, by layer, head and token; "
        f"over {found['texts']} texts, a layer has from {least} to {most}",
        fontsize=12,
        loc="left",
    )
    write_figure(figure, path)


def draw_elicit_or_teach(found: Mapping[str, Any], path: Path) -> None:
    """Answers that are right by model and method; right digits by place; attention among the text before and after."""
    pyplot = figures()
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 5), width_ratios=(5, 4, 4), layout="constrained")
    _bars_of_cases(found, left)
    unseen = found["unseen"]
    for name, row in unseen["methods"].items():
        by_place = [100 * mean(digit) for digit in zip(*row["digits"], strict=True)]
        middle.plot(range(1, len(by_place) + 1), by_place, "o-", color=COLOURS[name], markersize=4, label=name)
    middle.set_xticks(range(1, unseen["digits"] + 1))
    middle.set_ylim(0, 103)
    middle.set_xlabel("place of the digit in the answer", fontsize=10)
    middle.set_ylabel("right, given the digits before it, in %", fontsize=10)
    middle.set_title("Never seen, one layer: which digits are right", fontsize=11, loc="left")
    for name in ("LoRA", "prefix"):
        row = unseen["methods"][name]
        before, after = ([100 * share for share in part] for part in row["shares_of_first_layer"])
        moved = row["share_moved_by_layer"][0]
        label = f"{name}: changed by up to {f'{100 * moved:.0f} %' if moved > 0.01 else power(moved)}"
        right.scatter(before, after, s=9, color=COLOURS[name], label=label, alpha=0.8)
    right.set(xscale="log", yscale="log", xlim=(0.1, 130), ylim=(0.1, 130))
    for axis in (right.xaxis, right.yaxis):
        axis.set_ticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    right.set_xlabel("frozen model, in %", fontsize=10)
    right.set_ylabel("tuned model, in %", fontsize=10)
    right.legend(frameon=False, fontsize=10, loc="lower center", bbox_to_anchor=(0.5, -0.32), markerscale=2)
    right.set_title(
        "Why: each token's share of the attention\nthat goes to the text, first layer", fontsize=11, loc="left"
    )
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    done = {
        name: {which: f"{100 * mean(row['exact']):.0f} %" for which, row in case["methods"].items()}
        for name, case in found.items()
    }
    seen, new, deep = done["seen"], done["unseen"], done.get("unseen, two layers")
    figure.suptitle(
        f"In one layer a prefix elicits a task that was in pretraining ({seen['prefix']} of the answers right) but "
        f"cannot teach it ({new['prefix']});\nLoRA of as many numbers does both ({seen['LoRA']}, {new['LoRA']})"
        + (f". In two layers a prefix teaches much of it ({deep['prefix']})" if deep else ""),
        fontsize=13,
        x=0.01,
        ha="left",
    )
    write_figure(figure, path)


def _bars_of_cases(found: Mapping[str, Any], axes: Any) -> None:
    place, ticks, told = 0.0, [], set()
    for case in found.values():
        start = place
        for name, row in case["methods"].items():
            values = [100 * exact for exact in row["exact"]]
            label = None if name in told else name
            axes.bar(place, mean(values), 0.8, color=COLOURS[name], label=label)
            axes.scatter([place] * len(values), values, s=14, color="black", zorder=3, clip_on=False)
            axes.text(place, max(values) + 2, f"{mean(values):.0f}", ha="center", fontsize=9)
            told.add(name)
            place += 1
        alone = 100 * case["by_itself"]["descending"]
        axes.plot([start - 0.5, place - 0.5], [alone, alone], "--", color=GREY, linewidth=1.5)
        ticks.append(((start + place - 1) / 2, _case_text(case)))
        place += 0.7
    axes.set_xticks(*zip(*ticks, strict=True), fontsize=10)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 108)
    axes.set_ylabel("answers wholly right, in %", fontsize=10)
    axes.set_title("Sorting downwards; dots: seeds, dashed: nothing tuned", fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _case_text(case: Mapping[str, Any]) -> str:
    seen = "seen in pretraining" if "descending" in case["tasks"] else "never seen"
    return f"{seen},\n{case['layers']} layer{'s' * (case['layers'] > 1)}"


def draw_compile(found: Mapping[str, Any], path: Path) -> None:
    """How far each fit is from its target while it is fitted, a panel for each target."""
    pyplot = figures()
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 5), sharey=True, layout="constrained")
    titles = {"compiled": "Target: a compiled soft prompt", "trained": "Target: a trained prefix"}
    titles["random"] = "Target: a prefix of random numbers"
    labels = {"soft_prompt": "soft prompt", "long_soft_prompt": "soft prompt, 12 times as long", "prefix": "prefix"}
    colours = {"soft_prompt": GREEN, "long_soft_prompt": ORANGE, "prefix": BLUE}
    for axes, (target, fits) in zip(panels, found["targets"].items(), strict=True):
        for name, fit in fits.items():
            label = f"{labels[name]}, {fit['trained']:,} numbers"
            axes.plot(*zip(*fit["curve"], strict=True), "o-", color=colours[name], markersize=4, label=label)
        for name, where in (("soft_prompt", "place behind ten"), ("long_soft_prompt", "place behind the long one")):
            label = f"nothing in front, text at the {where}"
            axes.axhline(
                fits[name]["kl_of_bare_model"], color=colours[name], linestyle="--", linewidth=1.2, label=label
            )
        axes.set_yscale("log")
        axes.set_xlabel("step of fitting", fontsize=10)
        axes.set_title(titles[target], fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    panels[0].set_ylabel("KL to the target on dev texts, nats a token", fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=10
    )
    rest = {name: 100 * fit["kl"] / fit["kl_of_bare_model"] for name, fit in found["targets"]["trained"].items()}
    figure.suptitle(
        f"A soft prompt compiles to a prefix exactly (KL {power(found['exact']['kl'])}); a prefix has no soft prompt "
        f"like it. Of a trained prefix's effect\na fitted soft prompt misses {rest['soft_prompt']:.1f} %, "
        f"one of as many numbers {rest['long_soft_prompt']:.1f} %, another prefix {rest['prefix']:.1f} %",
        fontsize=13,
        x=0.01,
        ha="left",
    )
    write_figure(figure, path)


def power(number: float) -> str:
    """A small number as people write it: 4·10⁻⁶."""
    digits, exponent = f"{number:.0e}".split("e")
    return f"{digits}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
