"""What can be said of a few seeds: a mean with its 95 % interval, and differences between contenders, run for run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean of `runs` values and half the width of its 95 % interval by Student's t; NaN of a single one."""

    value: float
    half: float
    runs: int


@dataclass(frozen=True)
class Difference:
    """How much better `one` is than `other`, over `runs` pairs: the mean, its interval, and Student's paired p."""

    one: str
    other: str
    mean: Mean
    p: float
    adjusted: float
    """p after Holm's correction for all pairs that were asked about."""


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one value. Raises ValueError if scipy is not installed."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return Mean(mean, math.nan, 1)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return Mean(mean, float(_stats().t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / math.sqrt(n), n)


def differences(
    scores: Mapping[str, Mapping[object, float]], pairs: Sequence[tuple[str, str]], higher_is_better: bool = True
) -> list[Difference]:
    """Each pair over the runs that both have: same task, model and seed, and so the same batches.

    The test is Student's for paired values; with all pairs asked at once p is corrected (Holm 1979). Seeds of one task
    are pairs like those of different tasks, so what is tested holds of these tasks, not of tasks in general. A pair
    without two runs in common is left out; p is NaN, not defined, where all differences are the same.
    """
    found: list[tuple[str, str, Mean, float]] = []
    for one, other in pairs:
        common = [key for key in scores.get(one, {}) if key in scores.get(other, {})]
        gains = [scores[one][key] - scores[other][key] for key in common]
        gains = gains if higher_is_better else [-gain for gain in gains]
        if len(gains) > 1:
            mean = mean_of(gains)
            spread = max(gains) > min(gains)
            p = float(_stats().ttest_1samp(gains, 0.0).pvalue) if spread else math.nan
            found.append((one, other, mean, p))
    adjusted = holm([p for _, _, _, p in found], len(pairs))
    return [Difference(*row, adjusted=own) for row, own in zip(found, adjusted, strict=True)]


def holm(p_values: Sequence[float], asked: int | None = None) -> list[float]:
    """The p values so corrected that the chance of any false alarm among them stays what each one says.

    `asked`: for how many, if more were asked about than have a p.
    """
    order = sorted(range(len(p_values)), key=lambda place: (math.isnan(p_values[place]), p_values[place]))
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        own = p_values[place]
        if not math.isnan(own):
            highest = max(highest, min(1.0, ((asked or len(order)) - rank) * own))
        adjusted[place] = own if math.isnan(own) else highest
    return adjusted


def check_statistics() -> None:
    """Raise ValueError where scipy is not installed."""
    _stats()


def _stats():  # type: ignore[no-untyped-def]
    try:
        from scipy import stats
    except ImportError:
        raise ValueError('for intervals and tests, install: pip install "minipeft[compare]"') from None
    return stats
