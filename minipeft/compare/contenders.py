"""The usual contenders with the trials that each gets, and the method that one of them is on a model of some shape."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from minipeft.compare.study import Contender, StudyError
from minipeft.config import GPT2Config
from minipeft.methods import METHODS, HardPrompt, LoRA, Method
from minipeft.overview import count

MAJORITY, ZERO_SHOT, BEST_PROMPT, CALIBRATED, LINEAR_PROBE = (
    "majority",
    "zero_shot",
    "best_prompt",
    "calibrated_prompt",
    "linear_probe",
)
POOLS = ("last", "mean")
BARE = (MAJORITY, ZERO_SHOT, BEST_PROMPT, CALIBRATED)
"""What needs no training."""
KNOBS = ("length", "rank", "width")
"""The setting of a method that makes it larger or smaller."""
TEXT_STARTS = ("text:Is it good or bad? I thought it was", "text:In a word, was it good or bad?")


def _rates(*rates: float, **settings: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple({"lr": rate, **settings} for rate in rates)


USUAL: Mapping[str, Contender] = {
    one.name: one
    for one in (
        *(Contender(name, name) for name in BARE),
        Contender(LINEAR_PROBE, LINEAR_PROBE, {}, (*_rates(1e-2, 1e-1, pool="last"), *_rates(1e-2, 1e-1, pool="mean"))),
        Contender(
            "soft_prompt",
            "soft_prompt",
            {"length": 20},
            (*_rates(0.01, 0.03, 0.1, init="vocab"), *_rates(0.03, init="random")),
        ),
        Contender("soft_prompt_labels", "soft_prompt", {"length": 20}, _rates(0.003, 0.01, 0.03, 0.1, init="labels")),
        Contender(
            "p_tuning",
            "p_tuning",
            {"length": 20},
            (*_rates(3e-3, encoder="lstm"), *_rates(3e-3, 1e-2, 3e-2, encoder="mlp")),
        ),
        Contender(
            "prefix",
            "prefix",
            {"length": 10, "reparam": None},
            (*_rates(0.01, 0.03, 0.1, init="vocab"), *_rates(0.03, init="random")),
        ),
        Contender(
            "prefix_mlp",
            "prefix",
            {"length": 10, "reparam": 512},
            (*_rates(3e-4, 1e-3, 3e-3, init="random"), *_rates(1e-3, init="vocab")),
        ),
        Contender(
            "deep_prompt_text",
            "prefix",
            {"length": 10, "reparam": None},
            (*_rates(0.01, 0.03, 0.1, init=TEXT_STARTS[0]), *_rates(0.03, init=TEXT_STARTS[1])),
        ),
        Contender("lora", "lora", {"rank": 8, "alpha": 16}, _rates(3e-4, 1e-3, 3e-3, 1e-2)),
        Contender("ia3", "ia3", {}, _rates(0.01, 0.03, 0.1, 0.3)),
        Contender("adapter", "adapter", {"width": 64}, _rates(3e-4, 1e-3, 3e-3, 1e-2)),
        Contender("llama_adapter", "llama_adapter", {"length": 10}, _rates(3e-3, 1e-2, 3e-2, 0.1)),
        Contender("bitfit", "bitfit", {}, _rates(1e-3, 3e-3, 1e-2, 3e-2)),
        Contender("top2", "full", {"top_layers": 2}, _rates(1e-4, 3e-4, 1e-3, 3e-3)),
        Contender("full", "full", {}, _rates(1e-4, 3e-4, 1e-3, 3e-3)),
    )
}
"""Each with four trials about the best that the sweeps of docs/sweep.md found."""


def check_contender(contender: Contender) -> None:
    """Raise StudyError where there is no such method, or it has no such setting."""
    if contender.method in BARE:
        if contender.trials or contender.settings:
            raise StudyError(f"contender {contender.name}: {contender.method} is not trained, so it has no settings.")
        return
    trained = [name for name in METHODS if name != HardPrompt.name]
    if contender.method != LINEAR_PROBE and contender.method not in trained:
        raise StudyError(
            f"contender {contender.name}: there is no method {contender.method!r} to compare; "
            f"there are {', '.join([*trained, LINEAR_PROBE, *BARE])}."
        )
    known = {"pool"} if contender.method == LINEAR_PROBE else {one.name for one in fields(METHODS[contender.method])}
    if not contender.trials:
        raise StudyError(f"contender {contender.name} is trained, so it needs trials, such as [{{lr = 0.001}}].")
    for trial in contender.trials:
        rate = trial.get("lr")
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < math.inf:
            raise StudyError(f"contender {contender.name}: every trial needs an lr above 0; one has {rate!r}.")
        if unknown := sorted({*contender.settings, *trial} - known - {"lr"}):
            told = f"has no setting {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}"
            raise StudyError(f"contender {contender.name}: {contender.method} {told}.")
        pool = {**contender.settings, **trial}.get("pool")
        if contender.method == LINEAR_PROBE and pool not in POOLS:
            raise StudyError(f"contender {contender.name}: pool is {pool!r}; it can be {' or '.join(POOLS)}.")


def method_of(contender: Contender, trial: int, size: str | None, shape: GPT2Config) -> Method:
    """The method that a contender is in a trial, made as large as `size` says on a model of this shape.

    Raises StudyError if it has no such size, and ValueError as the method does for settings that make no sense.
    """
    own = {name: value for name, value in contender.trials[trial].items() if name != "lr"}
    settings = {**contender.settings, **own}
    lists = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    method: Method = METHODS[contender.method](**{**settings, **lists})
    if size is None:
        return method
    what, _, number = size.partition("=")
    if what == "length":
        if not hasattr(method, "length"):
            raise StudyError(f"contender {contender.name}: {contender.method} has no length.")
        return resized(method, "length", int(number))
    return _as_many_as(method, contender, int(number), shape)


def resized(method: Method, knob: str, value: int) -> Method:
    """The same method, larger or smaller; LoRA's alpha goes with its rank, so that its scale stays."""
    if isinstance(method, LoRA):
        return replace(method, rank=value, alpha=method.alpha / method.rank * value)
    return replace(method, **{knob: value})


def _as_many_as(method: Method, contender: Contender, numbers: int, shape: GPT2Config) -> Method:
    """The method of the size whose file holds a count of numbers nearest to `numbers`; the smaller of two as near."""
    knob = next((name for name in KNOBS if hasattr(method, name)), None)
    if knob is None:
        raise StudyError(f"contender {contender.name}: {contender.method} has one size, so it cannot have {numbers:,}.")

    def kept(value: int) -> int:
        return count(unstarted(resized(method, knob, value)), shape).kept

    one, a_step = kept(1), kept(2) - kept(1)  # all of them grow by as much with every step
    below = max(1, 1 + (numbers - one) // a_step)
    nearest = below if numbers - kept(below) <= a_step / 2 else below + 1
    return resized(method, knob, nearest)


def unstarted(method: Method) -> Method:
    """The same method from random numbers, which can be counted without a model's words."""
    return replace(method, init="random") if hasattr(method, "init") else method
