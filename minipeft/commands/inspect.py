"""`minipeft inspect`: what is in a folder."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from minipeft.commands.options import Model, find_adapter, load_model


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
        tables = adapter_tables(load(path, load_model(model, "cpu")))
    else:
        tables = [checkpoint_table(load_model(path, "cpu"))]
    console = Console()
    for table in tables:
        console.print(table)
