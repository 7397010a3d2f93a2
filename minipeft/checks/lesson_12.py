"""Lesson 12: what is unfair in a table of results, and sizes that keep as many numbers, against counted tensors."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from minipeft.checks.exercise import Exercise, require

Table = list[dict[str, Any]]
FAULTS = {
    "steps": "the two were trained for unlike numbers of steps",
    "examples": "the two learned from unlike numbers of examples",
    "trials": "one of the two was given more trials than the other",
    "seeds": "one of the two was tested with more seeds than the other",
    "chosen on test": "a trial was scored on test, so that test chose",
    "seed of the sweep": "a run that was tested has a seed that a trial had, so that a lucky draw counts twice",
}
LIKELY = {
    "trials": " Trials are the rows whose stage is sweep; the others are tests.",
    "seeds": " Seeds are those of the rows whose stage is final; every trial has the sweep's.",
    "chosen on test": " That a final run is scored on test is as it should be.",
    "seed of the sweep": " Trials may share a seed with one another; a final run must not have it.",
}
"""What may have led to finding a fault that is not there."""
SHAPES = (
    *((6, 256, 6_144), (6, 256, 30_720), (2, 8, 100), (12, 768, 92_160), (12, 768, 1), (3, 12, 91)),
    *((2, 8, 60), (2, 8, 112)),  # in the middle between two odd and even sizes, which Python rounds to the even one
)
"""Blocks, width, budget."""
SIZES = ("soft_prompt", "prefix", "lora")


def judge_unfair(unfair: Callable[..., Any]) -> None:
    """Tables with no fault, with each alone, and with each pair; whichever method has it, whatever else they hold."""
    tables = [_table((), counts=((4, 3), (6, 1)))]  # as many rows of each method, and two faults
    for number, faults in enumerate(faults for count in range(3) for faults in combinations(FAULTS, count)):
        tables.append(_table(faults, culprit=number % 2))
    for name in FAULTS:
        tables.append(_table((name,), culprit=0, counts=((5, 2), (5, 2)), sweep_seed=7, names=("a", "b")))
        tables.append(list(reversed(_table((name,), counts=((3, 6), (3, 6)), sweep_seed=11))))
    tables += [_table((), counts=((2, 5), (2, 5)), sweep_seed=3)]
    tables += [_table((), counts=((4, 3), (4, 0))), _table((), counts=((4, 3), (0, 3)))]
    for name in ("steps", "examples"):  # among the trials alone
        odd = ("soft_prompt", "sweep")
        tables.append([{**row, name: 99} if (row["method"], row["stage"]) == odd else row for row in _table(())])
    lent = [dict(row) for row in _table(())]  # a final run of one method with the seed of the other's trials
    for row in lent:
        if (row["method"], row["stage"]) == ("prefix", "sweep") or (row["method"], row["seed"]) == ("soft_prompt", 3):
            row["seed"] = 7
    tables += [lent, list(reversed(lent))]
    for table in tables:
        found, wanted = unfair([dict(row) for row in table]), _found(table)
        require(isinstance(found, set), f"unfair must return a set of names, not a {type(found).__name__}.")
        unknown = sorted(map(str, found - FAULTS.keys()))
        require(not unknown, f"{unknown[0] if unknown else ''!r} is none of the names: {', '.join(FAULTS)}.")
        alone = "" if len(wanted) < 2 else " (It is not the only fault of that table: several may be wrong at once.)"
        for name, why in FAULTS.items():
            missed, imagined = name in wanted - found, name in found - wanted
            require(not missed, f"“{name}”: in a table where {why}, it was not found.{alone}")
            require(not imagined, f"“{name}” was found in a table without that fault.{LIKELY.get(name, '')}")


def _table(
    faults: Sequence[str],
    *,
    culprit: int = 1,
    counts: Sequence[tuple[int, int]] = ((4, 3), (4, 3)),
    sweep_seed: int = 0,
    names: tuple[str, str] = ("prefix", "soft_prompt"),
) -> Table:
    """Two methods, so many trials and tests of each, and the one called `culprit` treated as `faults` say."""
    rows = []
    for place, name in enumerate(names):
        own, (trials, tests) = faults if place == culprit else (), counts[place]
        steps, examples = 800 if "steps" in own else 400, 500 if "examples" in own else 6384
        same = {"method": name, "steps": steps, "examples": examples}
        trials, tests = trials + 3 * ("trials" in own), tests + 2 * ("seeds" in own)
        for trial in range(trials):  # of all that are judged on dev, one on test is enough
            split = "test" if "chosen on test" in own and trial == trials - 1 else "dev"
            rows.append({**same, "stage": "sweep", "seed": sweep_seed, "split": split, "score": 0.50 + 0.01 * trial})
        first = sweep_seed + ("seed of the sweep" not in own)
        tested = {**same, "stage": "final", "split": "test"}
        rows += [{**tested, "seed": seed, "score": 0.55 + 0.01 * seed} for seed in range(first, first + tests)]
    return rows


def _found(table: Table) -> set[str]:
    """The faults of a table, one rule after another in plain loops."""
    by_method: dict[str, Table] = {}
    for row in table:
        by_method.setdefault(row["method"], []).append(row)
    found = set()
    for name in ("steps", "examples"):
        values = []
        for row in table:
            if row[name] not in values:
                values.append(row[name])
        if len(values) > 1:
            found.add(name)
    for name, stage in (("trials", "sweep"), ("seeds", "final")):
        counts = [len([row for row in rows if row["stage"] == stage]) for rows in by_method.values()]
        if min(counts) != max(counts):
            found.add(name)
    for row in table:
        if row["stage"] == "sweep" and row["split"] == "test":
            found.add("chosen on test")
        for other in table:
            if row["stage"] == "final" and other["stage"] == "sweep" and row["seed"] == other["seed"]:
                found.add("seed of the sweep")
    return found


def judge_matched(matched: Callable[..., Any]) -> None:
    """Every size up to the budget and past it, counted as tensors on models of several shapes."""
    for L, D, numbers in SHAPES:
        found = matched(numbers, L, D)
        require(isinstance(found, dict), f"matched must return a dict, not a {type(found).__name__}.")
        require(set(found) == set(SIZES), f"the names must be {', '.join(SIZES)}, got {', '.join(map(str, found))}.")
        for name in SIZES:
            _judge_size(found, name, numbers, L, D)


def _judge_size(found: dict[str, Any], name: str, numbers: int, L: int, D: int) -> None:
    size, one = found[name], kept(name, 1, L, D)
    what = f"{name} with {L} blocks of width {D} and {numbers:,} numbers"
    whole = isinstance(size, int) and not isinstance(size, bool)
    require(whole, f"{what}: a size is a whole number, not {size!r}.")
    require(size >= 1, f"{what}: got {size}; a method of size {size} is none: at least 1.")
    right = _nearest(numbers, one)
    if size == right:
        return
    for mistake, step in (
        ("a prefix keeps keys and values: twice as much.", L * D if name == "prefix" else 0),
        ("a prefix stands in every block: L times as much.", 2 * D if name == "prefix" else 0),
        ("a LoRA stands in every block: L times as much.", 4 * D if name == "lora" else 0),
        ("c_attn is three times as wide as D: A has r · D numbers, B 3 · D · r.", 2 * L * D if name == "lora" else 0),
    ):
        require(step == 0 or size != _nearest(numbers, step), f"{what}: got {size}; {mistake}")
    require(size != right - 1, f"{what}: got {size}; rounded down: one more is nearer to the budget.")
    up = "rounded up: one less is nearer to the budget, or as near and smaller."
    require(size != right + 1, f"{what}: got {size}; {up}")
    told = f"size {size} keeps {kept(name, size, L, D):,}, size {right} keeps {kept(name, right, L, D):,}"
    require(False, f"{what}: {told}, which is nearer.")


def _nearest(numbers: int, step: int) -> int:
    """The size from 1 on that comes nearest to a budget where each adds `step` numbers; the smaller of two."""
    return min(range(1, numbers // step + 3), key=lambda size: (abs(size * step - numbers), size))


def kept(name: str, size: int, L: int, D: int) -> int:
    """How many numbers a method of this size keeps on L blocks of width D: its tensors, one after another."""
    shapes: list[tuple[int, ...]]
    if name == "soft_prompt":
        shapes = [(size, D)]
    elif name == "prefix":
        shapes = [(size, D) for _ in range(L) for _ in ("keys", "values")]
    else:
        shapes = [shape for _ in range(L) for shape in ((size, D), (3 * D, size))]
    return sum(math.prod(shape) for shape in shapes)


UNFAIR = Exercise(
    name="12a",
    function="unfair",
    judge=judge_unfair,
    hints=(
        "Sort the rows by method first, and each method's by stage: sweep or final.",
        "Steps and examples: how many different values are there in the whole table? Trials and seeds: count rows.",
        "The last two are about single rows: a trial that was scored on test; a final run with a trial's seed.",
    ),
)

MATCHED = Exercise(
    name="12b",
    function="matched",
    judge=judge_matched,
    hints=(
        "What does a size of 1 keep? A soft prompt D, a prefix 2 · L · D. And a LoRA beside c_attn, [3 D, D]?",
        "All three grow in proportion to their size, so the nearest size is one of two: below the budget, and above.",
        "Where both are as near, the smaller; and never less than 1.",
    ),
)
