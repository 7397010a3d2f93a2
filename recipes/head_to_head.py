"""Write docs/head_to_head.md, its tables and pictures, from the study and the rows in docs/results.

    minipeft compare --study recipes/head_to_head.toml --out runs/head_to_head
    python recipes/head_to_head.py runs/head_to_head     # takes its rows over, then writes the page
    python recipes/head_to_head.py                       # writes the page of what is there
    python recipes/head_to_head.py --check               # changes nothing; fails if the page would change

The words are a person's, in recipes/head_to_head.md; {{words in double braces}} there are computed from the rows.
"""

import argparse
import math
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from minipeft.compare import pages, read_study
from minipeft.compare.figures import draw
from minipeft.compare.report import Cell, Report
from minipeft.compare.results import RESULTS_FILE, Results
from minipeft.compare.statistics import Mean, holm, mean_of
from minipeft.compare.study import FINAL, SWEEP
from minipeft.compare.tables import axis_told, called, mean_told, p_told, table
from minipeft.files import write_atomically

ROOT = Path(__file__).parents[1]
STUDY, WORDS = ROOT / "recipes" / "head_to_head.toml", ROOT / "recipes" / "head_to_head.md"
ROWS, PAGE = ROOT / "docs" / "results" / "head_to_head.jsonl", ROOT / "docs" / "head_to_head.md"
PICTURES = ROOT / "docs" / "head_to_head"
PAIRS = (
    ("prefix", "soft_prompt"),
    ("prefix_mlp", "prefix"),
    ("deep_prompt_text", "prefix"),
    ("soft_prompt_labels", "soft_prompt"),
    ("soft_prompt", "calibrated_prompt"),
    ("soft_prompt", "linear_probe"),
    ("lora", "prefix"),
    ("full", "lora"),
)
"""Asked about on nano before anything ran."""
BY_SIZE = ("numbers", "lengths")
"""Parts at each of whose sizes the first pair is asked about."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="what minipeft compare filled")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if the page would change")
    options = parser.parse_args()
    if options.folder and options.check:
        parser.error("--check changes nothing, so it takes no folder")
    report = Report(read_study(STUDY), Results(options.folder / RESULTS_FILE if options.folder else ROWS))
    if wrong := unfit(report):
        sys.exit(f"docs/head_to_head.md is not written: {wrong}")
    if options.folder:
        shutil.copyfile(options.folder / RESULTS_FILE, ROWS)
    page = written(WORDS.read_text(encoding="utf-8"), report)
    if options.check:
        sys.exit(page != PAGE.read_text(encoding="utf-8") and "docs/head_to_head.md is not what its rows say.")
    PICTURES.mkdir(exist_ok=True)
    for picture in draw(report, PICTURES):
        if picture.name not in page:
            picture.unlink()
    write_atomically(PAGE, page.encode("utf-8"))


def unfit(report: Report) -> str:
    """Why a page of these rows would mislead; empty if it would not."""
    if missing := list(report.unfinished()):
        return missing[0]
    for part in report.study.parts:
        rows = report.rows(part.name, FINAL)
        commits, machines = ({row[what] for row in rows} for what in ("commit", "machine"))
        if len(commits) > 1 or any(commit.endswith("+") for commit in commits):
            return f"the final runs of {part.name} are of {', '.join(sorted(commits))}, and not of one commit."
        if len(machines) > 1:
            return f"the final runs of {part.name} are of {'; '.join(sorted(machines))}, so that they do not compare."
    return ""


def signed(mean: Mean) -> str:
    """A difference with its interval."""
    return f"{mean.value:+.1f} ± {mean.half:.1f}"


def written(words: str, report: Report) -> str:
    """The page: every {{name and arguments}} replaced by what it computes. Raises KeyError for an unknown name."""
    known = computed(report)

    def filled(found: re.Match[str]) -> str:
        name, *arguments = found[1].split()
        return known[name](*arguments)

    told = "Written by recipes/head_to_head.py from docs/results/head_to_head.jsonl: change recipes/head_to_head.md."
    return f"<!-- {told} -->\n\n{re.sub(r'{{(.+?)}}', filled, words)}"


def computed(report: Report) -> dict[str, Callable[..., str]]:
    """What a page can ask for."""

    def cell(part: str, task: str, model: str, contender: str) -> Cell:
        return report.cells(part, task=task, model=model, contender=contender)[0]

    def score(part: str, task: str, model: str, contender: str, measure: str = "") -> str:
        one = cell(part, task, model, contender)
        values = one.scores(measure or None)
        return mean_told(one.mean) if not measure else f"{sum(values) / len(values):.1f}"

    def difference(part: str, model: str, one: str, other: str, measure: str = "") -> str:
        """The mean over tasks and seeds, with its interval, in points."""
        return signed(report.paired(part, [(one, other)], measure or None, model=model)[0].mean)

    def over_tasks(part: str, model: str, one: str, other: str) -> str:
        """The same with tasks as units: each task's mean over seeds counts once."""
        tasks = report.study.part(part).tasks
        means = [report.paired(part, [(one, other)], model=model, task=task)[0].mean.value for task in tasks]
        return signed(mean_of(means))

    def described(part: str, model: str) -> str:
        """The pairs with their intervals, and no tests."""
        rows = [
            [f"{called(one.one)} − {called(one.other)}", signed(one.mean)]
            for one in report.paired(part, PAIRS, model=model)
        ]
        return table([model, "difference"], rows, right=1)

    def means_of(part: str, model: str, what: Callable[[Cell], float]) -> dict[str, float]:
        """The mean over tasks, those where it is known, of something of each contender, most first."""
        found: dict[str, list[float]] = {}
        for one in report.cells(part, model=model):
            if not math.isnan(value := what(one)):
                found.setdefault(one.contender, []).append(value)
        means = {name: sum(own) / len(own) for name, own in found.items()}
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def spent(one: Cell, what: str) -> float:
        """A cost, seconds and memory as they are without neighbours."""
        timed = report.timed(one) if what in ("seconds", "peak_bytes") else one
        return math.nan if timed is None else timed.of(what)

    def goodness(one: Cell) -> float:
        return one.sign * one.mean.value

    def rank(part: str, model: str, place: str) -> str:
        """The contender that stands at a place by its mean, and that mean."""
        name, mean = list(means_of(part, model, goodness).items())[int(place) - 1]
        return f"{called(name)} ({abs(mean):.1f})"

    def frontier(part: str, model: str, cost: str) -> str:
        """Contenders that no other equals by its mean at no more cost, cheapest first: cost and mean."""
        means, costs = means_of(part, model, goodness), means_of(part, model, partial(spent, what=cost))
        told, best = [], -math.inf
        for name in sorted(means, key=lambda name: (costs[name], -means[name])):
            if means[name] > best:
                told.append(f"{called(name)} ({costs[name]:,.0f}: {abs(means[name]):.1f})")
                best = means[name]
        return ", ".join(told)

    def edges(part: str, end: str) -> str:
        """Contenders for which dev chose the "highest" or "lowest" rate on offer, how often, of how many choices."""
        pick = {"highest": max, "lowest": min}[end]
        found: dict[str, list[bool]] = {}
        for one in report.cells(part):
            if trials := report.study.contenders[one.contender].trials:
                rates = [trial["lr"] for trial in trials]
                found.setdefault(one.contender, []).append(rates[one.rows[0]["trial"]] == pick(rates))
        return ", ".join(f"{called(name)} ({sum(own)} of {len(own)})" for name, own in found.items() if any(own))

    def steered(model: str, contender: str) -> str:
        """% as wanted over both directions, so that a leaning to one counts nothing; the interval over seeds."""
        both = [
            report.by_seed(cell("steering", task, model, contender)) for task in report.study.part("steering").tasks
        ]
        return mean_told(mean_of([sum(own[seed] for own in both) / len(both) for seed in both[0]]))

    def gap(task: str, contender: str, best: str) -> str:
        """How far behind another contender one is, from model to model."""
        ours, theirs = (report.over_models(task)[name] for name in (contender, best))
        gaps = [report.behind(ours[model], theirs[model]) for model in ours if model in theirs]
        return " → ".join(mean_told(one) for one in gaps if one is not None)

    def apart(part: str, other: str) -> str:
        """How far from each other the scores are that a trained setting and seed came to in two parts, in points."""
        found = []
        for one in (cell for cell in report.cells(other) if report.study.contenders[cell.contender].trials):
            for again in report.cells(part, task=one.task, model=one.model, contender=one.contender):
                both = report.by_seed(again), report.by_seed(one)
                found += [abs(both[0][seed] - both[1][seed]) for seed in both[0].keys() & both[1].keys()]
        return f"{sum(found) / len(found):.1f} points in the mean, {max(found):.1f} at most"

    def parts() -> str:
        """What each part took."""
        rows = []
        for part in report.study.parts:
            own = report.rows(part.name)
            counts = [sum(row["stage"] == stage for row in own) for stage in (SWEEP, FINAL)]
            on = ", ".join(sorted({row["machine"].split(",")[0] for row in own}))
            rows.append([part.name, on, *map(str, counts), f"{sum(row['seconds_in_all'] for row in own) / 60:,.0f}"])
        return table(["part", "on", "trials", "final runs", "minutes"], rows, right=3)

    def total(what: str) -> str:
        rows = [row for part in report.study.parts for row in report.rows(part.name)]
        counts = {
            "runs": len(rows),
            "trials": sum(row["stage"] == SWEEP for row in rows),
            "finals": sum(row["stage"] == FINAL for row in rows),
            "diverged": sum(row["diverged"] is not None for row in rows),
        }
        return f"{counts[what]:,.0f}"

    def by_size() -> str:
        """The first pair at each size of two parts, p corrected for asking at all of them."""
        one, other = PAIRS[0]
        found = [
            (axis_told(size), report.paired(part, [(one, other)], size=size)[0])
            for part in BY_SIZE
            for size in report.study.part(part).sizes
        ]
        adjusted = holm([difference.p for _, difference in found])
        rows = [
            [size, signed(own.mean), str(own.mean.runs), p_told(own.p), p_told(p)]
            for (size, own), p in zip(found, adjusted, strict=True)
        ]
        return table(
            [f"{called(one)} − {called(other)}", "difference", "seeds", "p, paired t", "p, Holm"], rows, right=4
        )

    def over_examples(part: str, model: str) -> str:
        """The pairs on each task, with the interval that test examples leave."""
        tasks = report.study.part(part).tasks
        rows = []
        for one, other in PAIRS:
            means = (report.paired_over_examples(part, one, other, task, model) for task in tasks)
            told = ["" if mean is None else signed(mean) for mean in means]
            rows.append([f"{called(one)} − {called(other)}", *told])
        return table([model, *tasks], rows, right=len(tasks))

    return {
        "main": partial(pages.main_table, report),
        "costs": partial(pages.cost_table, report),
        "measures": partial(pages.measures_table, report),
        "samples": partial(pages.samples_table, report),
        "curve": partial(pages.curve_table, report),
        "models": partial(pages.models_table, report),
        "over_examples": over_examples,
        "by_size": by_size,
        "starts": partial(pages.sweep_table, report),
        "paired": lambda part, model: pages.paired_table(report, part, PAIRS, model=model),
        "score": score,
        "cost": lambda part, task, model, contender, what: f"{spent(cell(part, task, model, contender), what):,.0f}",
        "difference": difference,
        "over_tasks": over_tasks,
        "described": described,
        "rank": rank,
        "frontier": frontier,
        "steered": steered,
        "gap": gap,
        "apart": apart,
        "edges": edges,
        "parts": parts,
        "judge": lambda: f"{100 * report.rows('steering', FINAL)[0]['judge']:.1f}",
        "total": total,
    }


if __name__ == "__main__":
    main()
