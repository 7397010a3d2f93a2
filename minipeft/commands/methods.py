"""`minipeft methods`: what each method would train on a model, and what one more task would cost."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def methods(
    model: Annotated[str, typer.Option(help="A GPT-2 by name, here or not, or a folder of weights.")] = "nano",
) -> None:
    """Show the methods side by side for a model: what each trains, and the bytes that one more task costs.

    Nothing is downloaded: the shape of the model is enough to count.

    Examples:

    `minipeft methods`

    `minipeft methods --model gpt2-xl`
    """
    from minipeft.checkpoint import SHIPPED
    from minipeft.downloads import PUBLIC
    from minipeft.formats.hub import CONFIG_FILE, read_config
    from minipeft.overview import METHODS_TABLE, count, size_told

    known, folder = PUBLIC.get(model), SHIPPED.get(model, Path(model))
    if known is None and not folder.is_dir():
        raise FileNotFoundError(f"{model} is neither a folder nor one of {', '.join([*SHIPPED, *PUBLIC])}.")
    config = known.config if known else read_config(folder / CONFIG_FILE)
    parameters = config.num_parameters()
    table = Table(title=f"{model}: {parameters:,} parameters, of them trained")
    for column in ("method", "door", "numbers", "share", "bytes a task"):
        table.add_column(column, justify="left" if column in ("method", "door") else "right", overflow="fold")
    for entry in METHODS_TABLE:
        try:
            found = count(entry.method, config)
        except ValueError:  # a prompt longer than the model, more layers than it has
            table.add_row(entry.call, entry.door, "–", "–", "does not fit")
            continue
        share = f"{100 * found.trained / parameters:.3g} %"
        table.add_row(entry.call, entry.door, f"{found.trained:,}", share, size_told(found.size))
    Console().print(table)
