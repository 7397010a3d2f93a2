"""Options that several commands share, and what they stand for; a mistake in one raises the sentence to print."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:  # a command imports the package when it runs, so that --help is quick
    from minipeft.config import GPT2Config
    from minipeft.distributed import Team
    from minipeft.gpt2 import GPT2
    from minipeft.tasks import Task
    from minipeft.train_config import TrainConfig
    from minipeft.tune import TuneConfig


class Dtype(str, Enum):
    """The type of the frozen base; what is trained is always fp32."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str,
    typer.Option(
        help='One that ships ("nano", "pico"), a public one ("gpt2" …), or a folder or file of GPT-2 weights.'
    ),
]
ModelShape = Annotated[str, typer.Option("--model", help="A GPT-2 by name, here or not, or a folder of weights.")]
Adapter = Annotated[
    str | None, typer.Option(help="A folder that `tune` or PEFT wrote, or the name of a prompt that ships.")
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="Labels: movie, product, tweet, news; text: tweets, headlines, positive, negative, shakespeare, e2e.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Your own task: a .tsv, .csv, .jsonl or .txt file, or a folder of train, dev and test files."),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", help="The column to read, its name or number; without it, texts like --target are learned."
    ),
]
Target = Annotated[str | None, typer.Option(help="The column to write, labels or text, its name or number.")]
Kind = Annotated[str, typer.Option(help="Whether --target holds labels or text: auto, labels or text.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the fastest there is.")]
Seed = Annotated[int, typer.Option(help="Same seed, same machine, same result.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long instead of refusing them.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run in --out stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew in an --out folder that holds a run.")]

MicroBatch = Annotated[
    str,
    typer.Option(help='Rows of a batch at once: a number, "whole", or "auto" for as many as fit. Same results.'),
]
Checkpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more computing.")
]
Shard = Annotated[
    bool, typer.Option("--shard", help="Under torchrun: spread the trained weights over the processes (FSDP2).")
]
Compiled = Annotated[
    bool,
    typer.Option("--compile", help="Compile the blocks: no gain on two CPU cores, where it needs a C++ compiler."),
]
Patience = Annotated[int, typer.Option(help="Stop after this many evaluations without a better one; 0: never.")]
TimeLimit = Annotated[
    str | None, typer.Option(help="Stop after so long, such as 30m or 8h; --resume goes on for as long again.")
]
Keep = Annotated[int, typer.Option(help="How many of the last saved states to keep.")]
Spike = Annotated[
    float, typer.Option(help="Stop at a loss so many nats above the mean of the 20 before it; 0: at none.")
]
SkipBadSteps = Annotated[
    int, typer.Option(help="How many steps in a row may be passed over for such a loss, or one that is no number.")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard, too.")]


def seconds_of(text: str | None) -> float | None:
    """What "90", "90s", "30m" or "1.5h" means in seconds. Raises ValueError if it means nothing."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not found or float(found[1]) == 0:
        raise ValueError(f"{text!r} is no time; write it like 90s, 30m or 8h.")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


@contextmanager
def told_metrics(
    out: Path, tensorboard: bool, team: "Team", resume: bool
) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """What is to see each row of the metrics; in the end, or after Ctrl-C, `training.png` is drawn of all of them."""
    from minipeft.metrics import draw_metrics, tensorboard_writer
    from minipeft.training_state import TrainingDiverged, saved_step

    if not team.is_writer:
        yield lambda row: None
        return
    first = (saved_step(out) or 0) + 1 if resume else 1
    with tensorboard_writer(out, first) if tensorboard else nullcontext(lambda row: None) as watch:
        try:
            yield watch
        except (KeyboardInterrupt, TrainingDiverged):
            draw_metrics(out)
            raise
    draw_metrics(out)


def rows_or_word(micro_batch: str) -> int | str:
    """What `--micro-batch` names."""
    return int(micro_batch) if micro_batch.isdigit() else micro_batch


def text_files(paths: list[Path]) -> list[Path]:
    """The text files that are named, those in folders, and what is brought by name: tinyshakespeare.

    Raises FileNotFoundError where a folder holds none, ValueError for prepared tokens, which go with nothing else.
    """
    from minipeft.token_files import is_prepared

    files: list[Path] = []
    for path in paths:
        if str(path) == "tinyshakespeare" and not path.exists():
            from minipeft.downloads.data import TINYSHAKESPEARE

            files.append(TINYSHAKESPEARE.find("tinyshakespeare"))
        elif path.is_dir() and is_prepared(path):
            raise ValueError(f"{path} holds prepared tokens, which are trained on alone; prepare all texts together.")
        elif path.is_dir():
            found = sorted(path.glob("*.txt"))
            if not found:
                raise FileNotFoundError(f"there are no .txt files in {path}.")
            files += found
        else:
            files.append(path)
    return files


def shape_to_train(config: str) -> "GPT2Config":
    """The shape that `--config` names. Raises ValueError if there is none of that name."""
    from minipeft.pretrain import CONFIGS

    if config not in CONFIGS:
        raise ValueError(f"config is {config!r}; it can be {', '.join(CONFIGS)}.")
    return CONFIGS[config]


def shape_of(model: str) -> "GPT2Config":
    """The shape of a model that is named like a public one, ships, or lies in a folder; no weights are read."""
    from minipeft.checkpoint import SHIPPED
    from minipeft.downloads import PUBLIC
    from minipeft.formats.hub import CONFIG_FILE, read_config

    known, folder = PUBLIC.get(model), SHIPPED.get(model, Path(model))
    if known is None and not folder.is_dir():
        raise FileNotFoundError(f"{model} is neither a folder nor one of {', '.join([*SHIPPED, *PUBLIC])}.")
    return known.config if known else read_config(folder / CONFIG_FILE)


def load_model(name: str | Path, device: str, dtype: str = "float32") -> "GPT2":
    """The model that ships by this name, or in this folder or file, on the device that `--device` means."""
    import torch

    from minipeft.devices import choose_device
    from minipeft.gpt2 import GPT2

    return GPT2.from_pretrained(name, device=choose_device(device), dtype=getattr(torch, dtype))


def choose_task(name: str | None, data: Path | None, input_column: str | None, target: str | None, kind: str) -> "Task":
    """The task that ships by this name, or a person's own file. Raises ValueError unless just one was named."""
    from minipeft.tasks import open_task, task_from_file

    if (name is None) == (data is None):
        raise ValueError("say what to learn: --task NAME (that ships) or --data FILE (your own).")
    if data is not None:
        return task_from_file(data, input_column, target, kind)
    assert name is not None
    return open_task(name)


def check_out(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to write over a finished or interrupted run that nobody asked to replace, or to where nothing can be."""
    from minipeft.training_state import STATE_FILE

    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite forgets it; give one of them.")
    if (out / STATE_FILE).exists() and not (resume or overwrite):
        raise ValueError(f"{out} already holds a run; go on with --resume, or start anew with --overwrite.")
    if resume and not (out / STATE_FILE).exists():
        raise FileNotFoundError(f"there is no interrupted run in {out} to resume.")
    out.mkdir(parents=True, exist_ok=True)


def stopped(out: Path, team: "Team", overwrite: bool) -> NoReturn:
    """Leave after Ctrl-C, saying what became of the run."""
    from minipeft.training_state import saved_step

    step = saved_step(out)
    how = "The same command with --resume" + (" instead of --overwrite" if overwrite else "")
    message = "training had not begun." if step is None else f"{how} goes on from step {step:,} in {out}."
    if team.is_writer:
        print(f"minipeft: stopped. {message[0].upper()}{message[1:]}", file=sys.stderr)
    sys.exit(130)


def unfinished(step: int, settings: "TrainConfig | TuneConfig") -> str:
    """What to add to the last line where a run stopped at its time limit."""
    if settings.time_limit is None or step == settings.steps:
        return ""
    return f" It was stopped at step {step:,} of {settings.steps:,}: the same command with --resume goes on."
