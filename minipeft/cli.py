"""The command line: reads options, calls the package, prints; every error of a person or a file is one sentence."""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="GPT-2 to read in an evening, and the ways to adapt it with few parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()


class Dtype(str, Enum):
    """The type of the frozen base; what is trained is always fp32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Model = Annotated[
    str, typer.Option(help='A model that ships ("nano") or a folder with config.json and model.safetensors.')
]
Adapter = Annotated[
    str | None, typer.Option(help="A folder that `tune` or PEFT wrote, or the name of a prompt that ships.")
]
TaskName = Annotated[Optional[str], typer.Option("--task", help="A task that ships: movie, product, tweet, news.")]  # noqa: UP045
Data = Annotated[Optional[Path], typer.Option(help="Your own task: a .tsv, .csv, .jsonl or .txt file.")]  # noqa: UP045
Input = Annotated[
    str | None, typer.Option("--input", help="The column to read; without it, texts like --target are learned.")
]
Target = Annotated[Optional[str], typer.Option(help="The column to write: labels or text.")]  # noqa: UP045
Kind = Annotated[str, typer.Option(help="Whether --target holds labels or text: auto, labels or text.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the fastest there is.")]
Seed = Annotated[int, typer.Option(help="Same seed, same machine, same result.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long instead of refusing them.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run in --out stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew in an --out folder that holds a run.")]


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="What to continue.")],
    model: Model = "nano",
    adapter: Adapter = None,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is wilder.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw among this many likeliest tokens; 0: among all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that reach this probability.")] = 1.0,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Continue a text, with or without an adapter.

    Examples:

    `minipeft generate "Once upon a time"`

    `minipeft generate "The film" --adapter positive --temperature 0.7`
    """
    from minipeft.generate import Sampling
    from minipeft.generate import generate as continue_text
    from minipeft.tuned import load

    sampling = Sampling(max_new_tokens, temperature, top_k or None, top_p, seed)
    base = _load_model(model, device)
    if adapter is None:
        written = continue_text(base, text, sampling)
    else:
        written = load(find_adapter(adapter), base).generate_with(text, sampling)
    console.print(written, markup=False, highlight=False, soft_wrap=True)


@app.command()
def tune(
    method: Annotated[str, typer.Argument(help="soft_prompt, prefix or full.")],
    out: Annotated[Path, typer.Option(help="The folder for the adapter.")],
    task: TaskName = None,
    data: Data = None,
    input_column: Input = None,
    target: Target = None,
    kind: Kind = "auto",
    model: Model = "nano",
    length: Annotated[Optional[int], typer.Option(help="Vectors of a soft prompt (20) or prefix (10).")] = None,  # noqa: UP045
    init: Annotated[Optional[str], typer.Option(help='random, vocab, "text:…" or, for a soft prompt, labels.')] = None,  # noqa: UP045
    reparam: Annotated[int, typer.Option(help="Width of the MLP that makes a prefix while training; 0: none.")] = 0,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 600,
    lr: Annotated[Optional[float], typer.Option(help="Learning rate; default: the best of the method's sweep.")] = None,  # noqa: UP045
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 8,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations on the dev split.")] = 100,
    patience: Annotated[int, typer.Option(help="Stop after this many evaluations without a better one; 0: never.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Type of the frozen base.")] = Dtype.float32,
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
    """
    from minipeft.tune import TuneConfig
    from minipeft.tune import tune as run

    chosen = _method(method, length, init, reparam)
    what = _task(task, data, input_column, target, kind)
    _check_out(out, resume, overwrite)
    base = _load_model(model, device, dtype.value)
    config = TuneConfig(steps, batch_size, lr, eval_every=eval_every, patience=patience, seed=seed, truncate=truncate)
    try:
        tuned, result = run(base, chosen, what, config, out, resume=resume)
    except KeyboardInterrupt:
        _stopped(out)
    console.print(
        f"{tuned.num_trainable():,} trained numbers, best at step {result.best_step} of {result.step}, "
        f"dev score {result.best_score:.4f}, {result.seconds:.0f} s. The adapter is in {out}.",
        highlight=False,
    )


@app.command("eval")
def evaluate(
    adapter: Adapter = None,
    task: TaskName = None,
    data: Data = None,
    input_column: Input = None,
    target: Target = None,
    kind: Kind = "auto",
    template: Annotated[str | None, typer.Option(help='A hard prompt instead of an adapter: "{text} It was".')] = None,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    model: Model = "nano",
    device: Device = "auto",
    truncate: Truncate = False,
) -> None:
    """Measure an adapter, or a hard prompt, on a task.

    Examples:

    `minipeft eval --adapter runs/movie --task movie`

    `minipeft eval --template "{text} All in all, it was" --task movie --split dev`
    """
    from minipeft.evaluate import evaluate as measure
    from minipeft.evaluate import majority
    from minipeft.methods import HardPrompt
    from minipeft.tune import encoder_for
    from minipeft.tuned import attach, load

    if (adapter is None) == (template is None):
        raise ValueError('say what to measure: --adapter DIR, or a hard prompt by --template "{text} It was".')
    what = _task(task, data, input_column, target, kind)
    if split not in what.splits:
        raise ValueError(f"split is {split!r}; it can be train, dev or test.")
    base = _load_model(model, device)
    tuned = attach(base, HardPrompt(template)) if template is not None else load(find_adapter(str(adapter)), base)
    score = measure(tuned, encoder_for(tuned, what, truncate), what.splits[split])
    table = Table(title=f"{what.name}, {split}: {score.examples:,} examples")
    if what.labels:
        table.add_column("method")
        table.add_column("accuracy", justify="right")
        table.add_column("loss", justify="right")
        table.add_row("majority class", f"{majority(what, split).accuracy:.1%}", "")
        error = f"{score.accuracy:.1%} ± {score.standard_error:.1%}"
        table.add_row(tuned.method.name, error, f"{score.loss:.3f}")
    else:
        table.add_column("method")
        table.add_column("loss", justify="right")
        table.add_row(tuned.method.name, f"{score.loss:.3f}")
    console.print(table)


@app.command()
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
    from minipeft.train import TrainConfig

    if config not in CONFIGS:
        raise ValueError(f"config is {config!r}; it can be {', '.join(CONFIGS)}.")
    settings = TrainConfig(steps, lr, batch_size, eval_every=eval_every, seed=seed, **PRETRAINING)
    files = [file for path in data for file in (sorted(path.glob("*.txt")) if path.is_dir() else [path])]
    if not files:
        raise FileNotFoundError(f"there are no .txt files in {', '.join(map(str, data))}.")
    _check_out(out, resume, overwrite)
    try:
        model = run(
            files,
            CONFIGS[config],
            settings,
            out,
            resume=resume,
            device=choose_device(device),
            bfloat16=dtype is Dtype.bfloat16,
        )
    except KeyboardInterrupt:
        _stopped(out)
    console.print(
        f"{model.num_parameters():,} parameters; the model and its report.json are in {out}.", highlight=False
    )


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="An adapter or checkpoint: a folder, or one that ships.")],
    model: Model = "nano",
) -> None:
    """Show what is in an adapter or a checkpoint; for a soft prompt, the tokens nearest to it.

    Example:

    `minipeft inspect runs/movie`
    """
    from minipeft.checkpoint import SHIPPED
    from minipeft.inspect import adapter_tables, checkpoint_table
    from minipeft.tuned import CONFIG_FILE, load

    path = SHIPPED.get(str(folder)) or find_adapter(str(folder))
    if (path / CONFIG_FILE).exists():
        tables = adapter_tables(load(path, _load_model(model, "cpu")))
    else:
        tables = [checkpoint_table(_load_model(path, "cpu"))]
    for table in tables:
        console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the table, the plot and the adapters.")] = Path("demo"),
    seed: Seed = 0,
) -> None:
    """Steer the small GPT-2 that ships, on real movie reviews, in about four minutes on two cores.

    Example:

    `minipeft demo --out demo`
    """
    from minipeft.demo import run

    run(out, console, seed)


def main() -> None:
    """The entry point: what a person or a file did wrong ends in one sentence and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, OSError) and error.filename and str(error.filename) not in message:
            message = f"{error.filename}: {message}"
        print(f"minipeft: {message}", file=sys.stderr)
        sys.exit(2)


def find_adapter(name: str) -> Path:
    """The folder of an adapter that ships, or the folder that was named. Raises FileNotFoundError if neither is."""
    from minipeft.tuned import SHIPPED_ADAPTERS

    shipped = SHIPPED_ADAPTERS / name
    if Path(name).is_dir():
        return Path(name)
    if name and shipped.is_dir() and shipped.parent == SHIPPED_ADAPTERS:
        return shipped
    ships = ", ".join(sorted(path.parent.name for path in SHIPPED_ADAPTERS.glob("*/adapter_config.json")))
    raise FileNotFoundError(f"{name} is neither a folder nor an adapter that ships ({ships}).")


def _load_model(name: str | Path, device: str, dtype: str = "float32"):  # type: ignore[no-untyped-def]
    import torch

    from minipeft.devices import choose_device
    from minipeft.gpt2 import GPT2

    return GPT2.from_pretrained(name, device=choose_device(device), dtype=getattr(torch, dtype))


def _method(name: str, length: int | None, init: str | None, reparam: int):  # type: ignore[no-untyped-def]
    """The method with the options that were given; an option that it does not have is an error."""
    from minipeft.methods import METHODS

    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}.")
    given: dict[str, Any] = {"length": length, "init": init, "reparam": reparam or None}
    fields = METHODS[name].__dataclass_fields__
    unknown = [f"--{option}" for option, value in given.items() if value is not None and option not in fields]
    if unknown:
        raise ValueError(f"{name} has no {' or '.join(unknown)}.")
    options = {option: value for option, value in given.items() if value is not None}
    if name == "prefix":
        options.setdefault("reparam", None)
    return METHODS[name](**options)


def _task(name: str | None, data: Path | None, input_column: str | None, target: str | None, kind: str):  # type: ignore[no-untyped-def]
    from minipeft.tasks import TASKS, task_from_file

    if (name is None) == (data is None):
        raise ValueError("say what to learn: --task NAME (that ships) or --data FILE (your own).")
    if data is not None:
        return task_from_file(data, input_column, target, kind)
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}, or bring your own with --data.")
    return TASKS[name]()


def _check_out(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to write over a finished or interrupted run that nobody asked to replace, or to where nothing can be."""
    from minipeft.train import STATE_FILE

    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite forgets it; give one of them.")
    if (out / STATE_FILE).exists() and not (resume or overwrite):
        raise ValueError(f"{out} already holds a run; go on with --resume, or start anew with --overwrite.")
    if resume and not (out / STATE_FILE).exists():
        raise FileNotFoundError(f"there is no interrupted run in {out} to resume.")
    out.mkdir(parents=True, exist_ok=True)


def _stopped(out: Path) -> NoReturn:
    from minipeft.train import STATE_FILE

    saved = f"nothing is lost. The same command with --resume goes on from {out}."
    message = saved if (out / STATE_FILE).exists() else "training had not begun."
    print(f"minipeft: stopped; {message}", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
    main()
