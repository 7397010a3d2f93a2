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
    from minipeft.gpt2 import GPT2
    from minipeft.methods import Method


def tune(
    method: Annotated[
        str,
        typer.Argument(
            help="soft_prompt, p_tuning, prefix, lora, ia3, adapter, llama_adapter, bitfit or full; "
            "or several with a + between."
        ),
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
        list[str] | None,
        typer.Option(
            "--set", help="Another setting of the method, such as rank=4 (of several, lora.rank=4); repeatable."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 600,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the best of the method's sweep.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 8,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on the dev split.")] = 100,
    patience: Annotated[int, typer.Option(help="Stop after this many evaluations without a better one; 0: never.")] = 0,
    dtype: Annotated[
        Dtype, typer.Option(help="Type of the frozen base; of full finetuning: of its activations.")
    ] = Dtype.float32,
    micro_batch: Annotated[
        str,
        typer.Option(
            help='Rows of a batch at once: a number, "whole", or "auto" for as many as fit. Results stay the same.'
        ),
    ] = "whole",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more computing.")
    ] = False,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the blocks: no gain on two CPU cores, where it needs a C++ compiler."),
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

    `minipeft tune full --task movie --dtype bfloat16 --batch-size 32 --micro-batch auto --out runs/full`

    `minipeft tune lora+soft_prompt --task movie --set lora.rank=4 --length 10 --out runs/both`
    """
    from minipeft.tune import TuneConfig
    from minipeft.tune import tune as run

    chosen = _methods(method, {"length": length, "init": init, "reparam": reparam or None}, settings or [])
    what = choose_task(task, data, input_column, target, kind)
    check_out(out, resume, overwrite)
    base = _base(model, device, dtype, full="full" in method.split("+")).use_checkpointing(gradient_checkpointing)
    if compile:
        base.use_compile()
    config = TuneConfig(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        eval_every=eval_every,
        patience=patience,
        seed=seed,
        truncate=truncate,
        micro_batch=int(micro_batch) if micro_batch.isdigit() else micro_batch,
    )
    try:
        tuned, result = run(base, chosen, what, config, out, resume=resume)
    except KeyboardInterrupt:
        stopped(out)
    Console().print(
        f"{tuned.num_trainable():,} trained numbers, best at step {result.best_step} of {result.step}, "
        f"dev score {result.best_score:.4f}, {result.seconds:.0f} s. The adapter is in {out}.",
        highlight=False,
    )


def _base(model: str, device: str, dtype: Dtype, full: bool) -> "GPT2":
    """The base with all kernels; weights that are to be trained stay fp32, and only activations take the type."""
    import torch

    if not full:
        return load_model(model, device, dtype.value).use_kernels()
    activations = None if dtype is Dtype.float32 else getattr(torch, dtype.value)
    return load_model(model, device).use_activations(activations).use_kernels()


def _methods(names: str, given: dict[str, Any], settings: list[str]) -> "Method":
    """One method, or a stack of those that a + joins, with the options that were given.

    Raises ValueError for an option that none of them has, or more than one.
    """
    from minipeft.methods import METHODS, Stack

    each = names.split("+")
    if wrong := [name for name in each if name not in METHODS]:
        raise ValueError(f"there is no method {wrong[0]!r}; there are {', '.join(METHODS)}.")
    declared = {name: {field.name: str(field.type) for field in fields(METHODS[name])} for name in each}
    options: dict[str, dict[str, Any]] = {name: {"reparam": None} if name == "prefix" else {} for name in each}
    for option, value in given.items():
        if value is not None:
            if not any(option in own for own in declared.values()):
                raise ValueError(f"{names} has no --{option}.")
            options[_owner(f"--{option}", option, declared)][option] = value
    for setting in settings:
        option, equals, value = setting.partition("=")
        name, dot, own = option.rpartition(".")
        among = {name: declared[name]} if dot and name in declared else declared
        owner = _owner(f"--set {setting}", own if equals else "", among)
        options[owner][own] = _value(setting, value, declared[owner][own])
    made = tuple(METHODS[name](**options[name]) for name in each)
    return made[0] if len(made) == 1 else Stack(made)


def _owner(written: str, option: str, declared: dict[str, dict[str, str]]) -> str:
    """The one method that declares an option."""
    owners = [name for name, own in declared.items() if option in own]
    if len(owners) == 1:
        return owners[0]
    if owners:
        choices = " or ".join(f"--set {name}.{option}=VALUE" for name in owners)
        raise ValueError(f"{written}: {' and '.join(owners)} both have it; write {choices}.")
    names = ", ".join(f"the names of {name} are {', '.join(own) or 'none'}" for name, own in declared.items())
    raise ValueError(f"{written}: write NAME=VALUE; {names}.")


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
