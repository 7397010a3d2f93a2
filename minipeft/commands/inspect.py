"""`minipeft inspect`: what is in a file or folder."""

from typing import Annotated

import typer
from rich.console import Console

from minipeft.commands.options import Model, find_adapter, load_model


def inspect(
    what: Annotated[str, typer.Argument(help="A checkpoint or adapter: a folder, a file, or the name of one.")],
    model: Model = "nano",
    every: Annotated[bool, typer.Option("--all", help="A row for every tensor of a checkpoint.")] = False,
) -> None:
    """Show what is in an adapter or a checkpoint.

    Of a checkpoint, whatever its form: which GPT-2 it is, its files with their SHA-256, how many parameters each part
    has, and every tensor's name, shape, type and bytes. Of an adapter: its tensors and, for a soft prompt, the tokens
    nearest to each vector (`--model` names the model that it is for).

    Examples:

    `minipeft inspect runs/movie`

    `minipeft inspect weights/gpt2`

    `minipeft inspect out/ckpt.pt --all`
    """
    from pathlib import Path

    from minipeft.checkpoint import SHIPPED, load_gpt2, open_model
    from minipeft.downloads import PUBLIC
    from minipeft.inspect import adapter_tables, checkpoint_tables, which_gpt2
    from minipeft.tuned import CONFIG_FILE, WEIGHTS_FILE, load

    if what not in SHIPPED and what not in PUBLIC and Path(what).suffix and not Path(what).exists():
        raise FileNotFoundError(f"there is no file {what}.")
    path = Path(what).parent if Path(what).name == WEIGHTS_FILE else Path(what)
    if what not in SHIPPED and what not in PUBLIC and not path.is_file():
        path = find_adapter(str(path))
        is_adapter = (path / CONFIG_FILE).exists()
    else:
        is_adapter = False
    console = Console()
    if is_adapter:
        tables = adapter_tables(load(path, load_model(model, "cpu")))
    else:
        name = what if what in SHIPPED or what in PUBLIC else path
        load_gpt2(name)  # what is shown is a whole model, or the error says what is wrong with it
        weights = open_model(name)
        for line in which_gpt2(weights):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        tables = checkpoint_tables(weights, every)
    for table in tables:
        console.print(table)
