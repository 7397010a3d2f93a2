"""`minipeft eval`: measure an adapter, a hard prompt, or a model as it is."""

import csv
import io
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from minipeft.commands.console import plain_console
from minipeft.commands.options import (
    Adapter,
    Data,
    Device,
    Dtype,
    Input,
    Kind,
    Model,
    Target,
    Truncate,
    choose_task,
    load_model,
)

if TYPE_CHECKING:
    from minipeft.tasks import Task
    from minipeft.zero_shot import Settings

TaskToMeasure = Annotated[
    str | None,
    typer.Option("--task", help="movie, product, tweet, news; wikitext2, lambada, hellaswag, tinyshakespeare, text."),
]
Limit = Annotated[int | None, typer.Option(help="Only the first so many examples, or characters of a text.")]


def evaluate(
    adapter: Adapter = None,
    task: TaskToMeasure = None,
    data: Data = None,
    input_column: Input = None,
    target: Target = None,
    kind: Kind = "auto",
    template: Annotated[str | None, typer.Option(help='A hard prompt instead of an adapter: "{text} It was".')] = None,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    model: Model = "nano",
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="The type to compute in.")] = Dtype.float32,
    truncate: Truncate = False,
    stride: Annotated[int | None, typer.Option(help="Tokens that the window over a text moves on by.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at once over a text, LAMBADA or HellaSwag.")] = 8,
    limit: Limit = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="Keep the spaces that WikiText has before its signs.")] = False,
    fill: Annotated[Path | None, typer.Option(help="Write the values into this table (docs/reference.md).")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write each text, its label and the model's answer into this .csv file.")
    ] = None,
) -> None:
    """Measure an adapter or a hard prompt on a task, or what a model can do without training.

    wikitext2, tinyshakespeare and text (`--data FILE`) give perplexity, lambada and hellaswag accuracy; the protocol is
    printed with the values.

    Examples:

    `minipeft eval --adapter runs/movie --task movie`

    `minipeft eval --template "{text} All in all, it was" --task movie --split dev`

    `minipeft eval --adapter runs/tickets --data tickets.csv --input message --target team --answers answers.csv`

    `minipeft eval --task wikitext2 --model gpt2`

    `minipeft eval --task text --data book.txt --stride 128`
    """
    from minipeft.zero_shot import ZERO_SHOT, Settings
    from minipeft.zero_shot.tasks import PINNED

    if task in ZERO_SHOT:
        if template is not None or input_column or target or truncate or kind != "auto" or split != "test" or answers:
            raise ValueError(f"{task} is measured as it is: without --template, --input, --target, --kind, --split …")
        settings = Settings(stride, batch_size, limit, as_is)
        if fill is not None and (adapter or dtype is not Dtype.float32 or settings != Settings(batch_size=batch_size)):
            raise ValueError("--fill is for a model and protocol as they are: without --adapter, --dtype, --stride …")
        if fill is not None and data is not None and task in PINNED:
            raise ValueError(f"--fill writes the value of {task}'s own data: not with --data.")
        _zero_shot(str(task), data, model, adapter, device, dtype.value, settings, fill)
        return
    if stride is not None or limit is not None or as_is or fill is not None:
        raise ValueError(f"--stride, --limit, --as-is and --fill are for {', '.join(ZERO_SHOT)}.")
    what = choose_task(task, data, input_column, target, kind)
    _labelled(adapter, template, what, split, model, device, dtype, truncate, answers)


def _labelled(
    adapter: str | None,
    template: str | None,
    what: "Task",
    split: str,
    model: str,
    device: str,
    dtype: Dtype,
    truncate: bool,
    answers: Path | None,
) -> None:
    """A task with examples in splits: accuracy or loss of an adapter or a hard prompt."""
    from minipeft.evaluate import evaluate as measure
    from minipeft.evaluate import label_log_likelihoods, majority, score_labels
    from minipeft.methods import HardPrompt
    from minipeft.tune import encoder_for
    from minipeft.tuned import attach, load

    if (adapter is None) == (template is None):
        raise ValueError(
            'say what to measure: --adapter DIR, or a hard prompt by --template "{text} It was"; the perplexity of a '
            "text: --task text --data FILE."
        )
    if split not in what.splits:
        raise ValueError(f"split is {split!r}; it can be train, dev or test.")
    if answers is not None and not what.labels:
        raise ValueError(f"{what.name} has no labels, so there are no answers to write: leave --answers out.")
    if answers is not None and answers.exists():
        raise ValueError(f"{answers} is there already, and stays as it is: give --answers another name.")
    base = load_model(model, device, dtype.value)
    tuned = attach(base, HardPrompt(template)) if template is not None else load(str(adapter), base)
    encoder, examples = encoder_for(tuned, what, truncate), what.splits[split]
    if answers is None:
        score = measure(tuned, encoder, examples)
    else:
        found = label_log_likelihoods(tuned.eval(), encoder, examples)
        score = score_labels(encoder, examples, found)
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
    plain_console().print(table)
    if answers is not None:
        likeliest = [what.labels[number] for number in found.argmax(dim=1)]
        _write_answers(answers, [(one.text, one.target, given) for one, given in zip(examples, likeliest, strict=True)])
        plain_console().print(f"{len(examples):,} answers written into {answers}", highlight=False, soft_wrap=True)


def _write_answers(path: Path, rows: list[tuple[str, str, str]]) -> None:
    """A line for each text of a split, in its order."""
    from minipeft.files import write_atomically

    told = io.StringIO()
    csv.writer(told, lineterminator="\n").writerows([("text", "label", "answer"), *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, told.getvalue().encode("utf-8"))


def _zero_shot(
    task: str,
    data: Path | None,
    model: str,
    adapter: str | None,
    device: str,
    dtype: str,
    settings: "Settings",
    fill: Path | None,
) -> None:
    """A task without training: the measures, and in words what was done."""
    from minipeft.progress import progress_bar
    from minipeft.tuned import load
    from minipeft.zero_shot import Subject, measure, reference

    if fill is not None:
        reference.rows_of(fill, task, model)  # before the long work
    base = load_model(model, device, dtype)
    subject = Subject.of(base if adapter is None else load(adapter, base))
    with ExitStack() as bars:
        found = measure(
            task,
            subject,
            data,
            settings,
            bar=lambda total: bars.enter_context(progress_bar(task, total)),
            say=lambda line: print(line, file=sys.stderr),
        )
    table = Table(title=f"{task}: {model}" + (f" with {adapter}" if adapter else ""))
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in found.values.items():
        table.add_row(name, reference.shown(name, value))
    console = plain_console()
    console.print(table)
    console.print(f"on {found.on}; protocol: {found.protocol}", highlight=False)
    if fill is not None:
        console.print(f"{reference.fill(fill, model, found)} values written into {fill}", highlight=False)
