"""`minipeft eval`: measure an adapter or a hard prompt."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from minipeft.commands.options import (
    Adapter,
    Data,
    Device,
    Input,
    Kind,
    Model,
    Target,
    TaskName,
    Truncate,
    choose_task,
    find_adapter,
    load_model,
)


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
    what = choose_task(task, data, input_column, target, kind)
    if split not in what.splits:
        raise ValueError(f"split is {split!r}; it can be train, dev or test.")
    base = load_model(model, device)
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
    Console().print(table)
