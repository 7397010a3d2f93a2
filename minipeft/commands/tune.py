"""`minipeft tune`: train a method on a task."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minipeft.commands.console import plain_console
from minipeft.commands.method_options import Length, Reparam, Settings, choose_methods
from minipeft.commands.options import (
    Checkpointing,
    Compiled,
    Data,
    Device,
    Dtype,
    Input,
    Keep,
    Kind,
    MicroBatch,
    Model,
    Overwrite,
    Patience,
    Resume,
    Seed,
    Shard,
    SkipBadSteps,
    Spike,
    Target,
    TaskName,
    TensorBoard,
    TimeLimit,
    Truncate,
    check_out,
    choose_task,
    load_model,
    rows_or_word,
    seconds_of,
    stopped,
    told_metrics,
    unfinished,
)

if TYPE_CHECKING:
    from minipeft.gpt2 import GPT2
    from minipeft.methods import Method
    from minipeft.tasks import Task
    from minipeft.tuned import Tuned


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
    length: Length = None,
    init: Annotated[str | None, typer.Option(help='random, vocab, "text:…" or, for a soft prompt, labels.')] = None,
    reparam: Reparam = 0,
    settings: Settings = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 600,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: the best of the method's sweep.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 8,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on the dev split.")] = 100,
    patience: Patience = 0,
    dtype: Annotated[
        Dtype, typer.Option(help="Type of the frozen base; of full finetuning: of its activations.")
    ] = Dtype.float32,
    micro_batch: MicroBatch = "whole",
    gradient_checkpointing: Checkpointing = False,
    shard: Shard = False,
    compile: Compiled = False,
    device: Device = "auto",
    seed: Seed = 0,
    truncate: Truncate = False,
    time_limit: TimeLimit = None,
    keep: Keep = 1,
    spike: Spike = 0.0,
    skip_bad_steps: SkipBadSteps = 0,
    tensorboard: TensorBoard = False,
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

    `torchrun --nproc-per-node 2 -m minipeft.cli tune full --task movie --shard --out runs/full`
    """
    from minipeft.distributed import joined
    from minipeft.evaluate import majority
    from minipeft.tune import TuneConfig
    from minipeft.tune import tune as run

    chosen = choose_methods(method, {"length": length, "init": init, "reparam": reparam or None}, settings or [])
    what = choose_task(task, data, input_column, target, kind)
    config = TuneConfig(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        eval_every=eval_every,
        patience=patience,
        seed=seed,
        truncate=truncate,
        micro_batch=rows_or_word(micro_batch),
        time_limit=seconds_of(time_limit),
        keep=keep,
        spike=spike or None,
        skip_bad_steps=skip_bad_steps,
        shard=shard,
    )
    with joined(device) as team:
        team.from_writer(lambda: check_out(out, resume, overwrite))
        where = "cpu" if shard else str(team.device or device)  # sharded, the trained copy moves on in parts
        base = _base(model, where, dtype, chosen).use_checkpointing(gradient_checkpointing)
        if compile:
            base.use_compile()
        try:
            with told_metrics(out, tensorboard, team, resume) as watch:
                tuned, result = run(base, chosen, what, config, out, resume=resume, watch=watch, team=team)
        except KeyboardInterrupt:
            stopped(out, team, overwrite)
    if team.is_writer:
        score = f"{result.best_score:.4f}"
        if what.labels:  # without the loss that breaks ties
            right = result.best_measured["dev_accuracy"]
            score = f"{right:.4f} (the commonest label alone: {majority(what, 'dev').accuracy:.4f})"
        plain_console().print(
            f"{tuned.num_trainable():,} trained numbers, best at step {result.best_step} of {result.step}, "
            f"dev score {score}, {result.seconds:.0f} s. The adapter is in {out}." + unfinished(result.step, config),
            highlight=False,
            soft_wrap=True,
        )
        if what.joint:
            print(f"Ask it with the end that its texts had: {_asking(what, tuned, model, out)}")


def _asking(task: "Task", tuned: "Tuned", model: str, out: Path) -> str:
    """The command that puts a text to the adapter as training did, and lets it write as much as a label has."""
    from minipeft.tune import encoder_for

    joint = task.joint
    text = shlex.quote("TEXT" + joint) if "\n" not in joint else "$'TEXT" + joint.replace("\n", "\\n") + "'"
    base = "" if model == "nano" else f" --model {shlex.quote(model)}"
    labels = encoder_for(tuned, task).label_ids.values() if task.labels else ()
    most = f" --max-new-tokens {max(map(len, labels))}" if labels else ""
    return f"minipeft generate {text} --adapter {shlex.quote(str(out))}{base} --temperature 0{most}"


def _base(model: str, device: str, dtype: Dtype, method: "Method") -> "GPT2":
    """The base with all kernels; weights that are to be trained stay fp32, and only activations take the type."""
    import torch

    from minipeft.methods import trains_a_copy

    if not trains_a_copy(method):
        return load_model(model, device, dtype.value).use_kernels()
    activations = None if dtype is Dtype.float32 else getattr(torch, dtype.value)
    return load_model(model, device).use_activations(activations).use_kernels()
