"""What did best, as a command: the line of `minipeft tune` that trains it once more, to keep and use it."""

import shlex
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from minipeft.compare.report import Cell, Report
from minipeft.compare.study import Study
from minipeft.methods import METHODS

OPTIONS = {"length": "--length", "init": "--init", "reparam": "--reparam"}
"""Settings that have an option of their own; others go by `--set`."""


def commands(report: Report, part: str) -> Iterator[str]:
    """For each task and model of a part the command for what has the best mean on test of all that `tune` can train.

    None where only prompts and the like were compared, where a part takes over another's choices, or without all
    examples. A contender is left out if a run of it diverged, or if a setting of it has no option. With `--truncate`,
    as in a study; there, texts are cut to what all contenders have room for.
    """
    told = report.study.part(part)
    if told.chosen_by is not None:
        return
    for task, model in product(told.tasks, told.models):
        cells = report.cells(part, task=task, model=model, examples=None)
        if able := [cell for cell in cells if not cell.diverged and _has_command(cell.rows[0].get("settings", {}))]:
            yield shlex.join(_words(report.study, max(able, key=lambda cell: cell.sign * cell.mean.value)))


def _has_command(settings: dict[str, Any]) -> bool:
    """Whether it is a method of `tune`, and all that it is set to can be written as an option."""
    strange = any(value and isinstance(value, dict) for value in settings.values())
    return settings.get("name") in METHODS and not strange


def _words(study: Study, cell: Cell) -> Iterator[str]:
    settings = dict(cell.rows[0]["settings"])
    yield from ("minipeft", "tune", settings["name"])
    source = study.sources.get(cell.task)
    if source is None:
        yield from ("--task", cell.task)
    else:
        given = {"--data": source.data, "--input": source.input, "--target": source.target}
        yield from (word for option, value in given.items() if value for word in (option, value))
        if source.kind != "auto":
            yield from ("--kind", source.kind)
    yield from ("--model", study.models.get(cell.model, cell.model))
    yield from method_words(settings, study.contenders[cell.contender].settings.get("labels", ()))
    steps = study.steps_of(study.part(cell.part))
    every = min(study.eval_every, steps)
    seed = cell.rows[0]["seed"]
    numbers = {"steps": steps, "batch-size": study.batch_size, "eval-every": every, "lr": settings["lr"], "seed": seed}
    yield from (word for name, value in numbers.items() for word in (f"--{name}", str(value)))
    if study.dtype != "float32":
        yield from ("--dtype", study.dtype)
    place = "_".join((cell.part, cell.task, Path(cell.model).name, cell.contender))
    yield from ("--truncate", "--out", f"runs/{place}")


def method_words(settings: dict[str, Any], labels: Sequence[str] = ()) -> Iterator[str]:
    """The options of `minipeft tune` for a row's settings, but for those that a method has anyway.

    labels: those that a contender names itself; what is only in the row is the task's, which `tune` finds.
    """
    usual = METHODS[settings["name"]](**({"reparam": None} if settings["name"] == "prefix" else {}))
    for name, value in settings.items():
        if name in ("name", "lr", "labels") or value == _as_stored(getattr(usual, name)):
            continue
        if name in OPTIONS:
            yield from (OPTIONS[name], str(value))
        else:
            yield from ("--set", f"{name}={_written(value)}")
    if labels:
        yield from ("--set", f"labels={_written(list(labels))}")


def _as_stored(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
