"""`minipeft pretrain`: a GPT-2 from nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minipeft.commands.console import plain_console
from minipeft.commands.options import (
    Checkpointing,
    Compiled,
    Device,
    Dtype,
    Keep,
    MicroBatch,
    Overwrite,
    Patience,
    Resume,
    Seed,
    Shard,
    SkipBadSteps,
    Spike,
    TensorBoard,
    TimeLimit,
    check_out,
    rows_or_word,
    seconds_of,
    shape_to_train,
    stopped,
    text_files,
    told_metrics,
    unfinished,
)


def pretrain(
    data: Annotated[
        list[Path],
        typer.Option(
            help="A text file, a folder of them or of prepared tokens, or tinyshakespeare; may be given several times."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the model.")],
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file of options, such as recipes/tinyshakespeare.toml. Options beside it count more; "
            "--no-compile and the like turn a switch of it off."
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(help="The model's shape: pico, nano, micro, gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2."),
    ] = "nano",
    window: Annotated[
        int | None, typer.Option(help="Tokens of a training text, and the model's positions; without it the shape's.")
    ] = None,
    dropout: Annotated[float, typer.Option(help="Share of numbers that are dropped while training.")] = 0.0,
    held_out: Annotated[
        float | None,
        typer.Option(help="Percent of the text that is held out to measure on; without it 1, or as it was prepared."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 4600,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.03,
    schedule: Annotated[
        str, typer.Option(help="How the rate falls: cosine, linear, or wsd: level, then down for the last fifth.")
    ] = "cosine",
    weight_decay: Annotated[float, typer.Option(help="Of matrices; vectors have none.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Windows a step.")] = 16,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on the held-out text.")] = 500,
    patience: Patience = 0,
    sample: Annotated[
        str, typer.Option(help='What the model is asked to continue at each evaluation; "" for nothing.')
    ] = "Once upon a time",
    dtype: Annotated[
        Dtype, typer.Option(help="bfloat16 and float16 compute in mixed precision; the weights stay fp32.")
    ] = Dtype.float32,
    micro_batch: MicroBatch = "whole",
    gradient_checkpointing: Checkpointing = False,
    shard: Shard = False,
    compile: Compiled = False,
    device: Device = "auto",
    seed: Seed = 0,
    time_limit: TimeLimit = None,
    keep: Keep = 2,
    spike: Spike = 2.0,
    skip_bad_steps: SkipBadSteps = 0,
    tensorboard: TensorBoard = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a GPT-2 from nothing on plain text files.

    Examples:

    `minipeft pretrain --data texts/ --config nano --steps 2000 --out runs/mine`

    `minipeft pretrain --recipe recipes/tinyshakespeare.toml --out runs/shakespeare`

    `minipeft pretrain --recipe recipes/gpt2-small-laptop.toml --data texts/ --time-limit 8h --out runs/small`

    `torchrun --nproc-per-node 8 -m minipeft.cli pretrain --data texts/ --config gpt2-xl --shard --out runs/xl`
    """
    import torch

    from minipeft.devices import choose_device
    from minipeft.distributed import joined
    from minipeft.files import read_json
    from minipeft.pretrain import PRETRAINING, REPORT_FILE, PretrainConfig
    from minipeft.pretrain import pretrain as run
    from minipeft.token_files import is_prepared
    from minipeft.train_config import TrainConfig

    shape = shape_to_train(config)
    how = PretrainConfig(
        replace(shape, dropout=dropout, n_positions=shape.n_positions if window is None else window),
        dtype=getattr(torch, dtype.value),
        held_out=held_out,
        micro_batch=rows_or_word(micro_batch),
        checkpointing=gradient_checkpointing,
        compiled=compile,
        shard=shard,
        sample=sample,
    )
    settings = TrainConfig(
        steps,
        lr,
        batch_size,
        warmup=warmup,
        schedule=schedule,
        weight_decay=weight_decay,
        eval_every=eval_every,
        patience=patience,
        seed=seed,
        time_limit=seconds_of(time_limit),
        keep=keep,
        spike=spike or None,
        skip_bad_steps=skip_bad_steps,
        **PRETRAINING,
    )
    files = data if len(data) == 1 and is_prepared(data[0]) else text_files(data)
    with joined(device) as team:
        team.from_writer(lambda: check_out(out, resume, overwrite))
        where = team.device or choose_device(device)
        try:
            with told_metrics(out, tensorboard, team, resume) as watch:
                model = run(
                    files, how, settings, out, resume=resume, overwrite=overwrite, device=where, watch=watch, team=team
                )
        except KeyboardInterrupt:
            stopped(out, team, overwrite)
    if team.is_writer:
        made = f"{model.num_parameters():,} parameters; the model, its report.json and training.png are in {out}."
        taken = read_json(out / REPORT_FILE)["steps"]
        plain_console().print(made + unfinished(taken, settings), highlight=False, soft_wrap=True)
