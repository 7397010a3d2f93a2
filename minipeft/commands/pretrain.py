"""`minipeft pretrain`: a GPT-2 from nothing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from minipeft.commands.options import (
    Checkpointing,
    Device,
    Dtype,
    MicroBatch,
    Overwrite,
    Resume,
    Seed,
    check_out,
    rows_or_word,
    stopped,
)


def pretrain(
    data: Annotated[list[Path], typer.Option(help="A text file, or a folder of them; may be given several times.")],
    out: Annotated[Path, typer.Option(help="The folder for the model.")],
    config: Annotated[
        str, typer.Option(help="The model's shape: nano, gpt2, gpt2-medium, gpt2-large, gpt2-xl.")
    ] = "nano",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 4600,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    batch_size: Annotated[int, typer.Option(help="Windows of n_positions tokens a step.")] = 16,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on the held-out text.")] = 500,
    dtype: Annotated[
        Dtype, typer.Option(help="bfloat16 computes in mixed precision; the weights stay fp32.")
    ] = Dtype.float32,
    micro_batch: MicroBatch = "whole",
    gradient_checkpointing: Checkpointing = False,
    device: Device = "auto",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a GPT-2 from nothing on plain text files.

    Example:

    `minipeft pretrain --data texts/ --config nano --steps 2000 --out runs/mine`
    """
    from minipeft.devices import choose_device
    from minipeft.pretrain import CONFIGS, PRETRAINING
    from minipeft.pretrain import pretrain as run
    from minipeft.training_state import TrainConfig

    if config not in CONFIGS:
        raise ValueError(f"config is {config!r}; it can be {', '.join(CONFIGS)}.")
    settings = TrainConfig(steps, lr, batch_size, eval_every=eval_every, seed=seed, **PRETRAINING)
    files = [file for path in data for file in (sorted(path.glob("*.txt")) if path.is_dir() else [path])]
    if not files:
        raise FileNotFoundError(f"there are no .txt files in {', '.join(map(str, data))}.")
    check_out(out, resume, overwrite)
    try:
        model = run(
            files,
            CONFIGS[config],
            settings,
            out,
            resume=resume,
            device=choose_device(device),
            bfloat16=dtype is Dtype.bfloat16,
            micro_batch=rows_or_word(micro_batch),
            checkpointing=gradient_checkpointing,
        )
    except KeyboardInterrupt:
        stopped(out)
    Console().print(
        f"{model.num_parameters():,} parameters; the model and its report.json are in {out}.", highlight=False
    )
