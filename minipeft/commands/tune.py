"""`minipeft tune`: train a method on a task."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from minipeft.commands.options import (
    Data,
    Device,
    Dtype,
    Input,
    Kind,
    Model,
    Overwrite,
    Resume,
    Seed,
    Target,
    TaskName,
    Truncate,
    check_out,
    choose_task,
    load_model,
    stopped,
)

if TYPE_CHECKING:
    from minipeft.methods import Method


def tune(
    method: Annotated[
        str, typer.Argument(help="soft_prompt, p_tuning, prefix, lora, ia3, adapter, llama_adapter, bitfit or full.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for the adapter.")],
    task: TaskName = None,
    data: Data = None,
    input_column: Input = None,
    target: Target = None,
    kind: Kind = "auto",
    model: Model = "nano",
    length: Annotated[int | None, typer.Option(help="Vectors of a soft prompt (20) or prefix (10).")] = None,
    init: Annotated[str | None, typer.Option(help='random, vocab, "text:…" or, for a soft prompt, labels.')] = None,
    reparam: Annotated[int, typer.Option(help="Width of the MLP that makes a prefix while training; 0: none.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting of the method, such as rank=4; may be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 600,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the best of the method's sweep.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 8,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on the dev split.")] = 100,
    patience: Annotated[int, typer.Option(help="Stop after this many evaluations without a better one; 0: never.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Type of the frozen base.")] = Dtype.float32,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more computing.")
    ] = False,
    device: Device = "auto",
    seed: Seed = 0,
    truncate: Truncate = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Tune a method on a task and keep the best step on its development split.

    Examples:

    `minipeft tune soft_prompt --task movie --out runs/movie`

    `minipeft tune prefix --data tickets.csv --input message --target team --length 10 --out runs/tickets`

    `minipeft tune prefix --data poems.txt --out runs/poems`

    `minipeft tune lora --task movie --set rank=4 --set targets=attn.q,attn.v --out runs/lora`
    """
    from minipeft.tune import TuneConfig
    from minipeft.tune import tune as run

    chosen = _method(method, length, init, reparam, settings or [])
    what = choose_task(task, data, input_column, target, kind)
    check_out(out, resume, overwrite)
    base = load_model(model, device, dtype.value).use_checkpointing(gradient_checkpointing)
    config = TuneConfig(steps, batch_size, lr, eval_every=eval_every, patience=patience, seed=seed, truncate=truncate)
    try:
        tuned, result = run(base, chosen, what, config, out, resume=resume)
    except KeyboardInterrupt:
        stopped(out)
    Console().print(
        f"{tuned.num_trainable():,} trained numbers, best at step {result.best_step} of {result.step}, "
        f"dev score {result.best_score:.4f}, {result.seconds:.0f} s. The adapter is in {out}.",
        highlight=False,
    )


def _method(name: str, length: int | None, init: str | None, reparam: int, settings: list[str]) -> "Method":
    """The method with the options that were given; an option that it does not have is an error."""
    from minipeft.methods import METHODS

    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}.")
    given: dict[str, Any] = {"length": length, "init": init, "reparam": reparam or None}
    declared = {field.name: str(field.type) for field in fields(METHODS[name])}
    unknown = [f"--{option}" for option, value in given.items() if value is not None and option not in declared]
    if unknown:
        raise ValueError(f"{name} has no {' or '.join(unknown)}.")
    options = {option: value for option, value in given.items() if value is not None}
    if name == "prefix":
        options.setdefault("reparam", None)
    for setting in settings:
        option, equals, value = setting.partition("=")
        if not equals or option not in declared:
            names = ", ".join(declared) or "none"
            raise ValueError(f"--set {setting}: write NAME=VALUE; the names of {name} are {names}.")
        options[option] = _value(setting, value, declared[option])
    return METHODS[name](**options)


def _value(setting: str, text: str, kind: str) -> Any:
    """A setting's value, of the kind that its method declares."""
    if text == "none" and "None" in kind:
        return None
    if "tuple" in kind:
        return tuple(filter(None, text.split(",")))
    if "bool" in kind and text in ("true", "false"):
        return text == "true"
    numbers: dict[str, Callable[[str], Any]] = {"int": int, "float": float}
    for name, read in numbers.items():
        if name in kind:
            with suppress(ValueError):
                return read(text)
    if "str" in kind:
        return text
    raise ValueError(f"--set {setting}: {text!r} is not of the kind that {setting.partition('=')[0]} needs.")
