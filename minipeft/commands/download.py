"""`minipeft download`: the public GPT-2 weights, verified."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from minipeft.commands.console import plain_console


def download(
    name: Annotated[
        str | None, typer.Argument(help="gpt2, gpt2-medium, gpt2-large, gpt2-xl or distilgpt2.", show_default=False)
    ] = None,
    to: Annotated[Path | None, typer.Option(help="A folder of your own instead of the hub's cache.")] = None,
    mirror: Annotated[str | None, typer.Option(help="Another hub, such as https://hf-mirror.com.")] = None,
    from_file: Annotated[Path | None, typer.Option(help="A model.safetensors that you have already.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Show the public models and which are here.")] = False,
    check: Annotated[bool, typer.Option("--verify", help="Compute the SHA-256 of what is here.")] = False,
) -> None:
    """Bring the weights of a public GPT-2, check them, and keep them for every later use.

    They go into the cache of the Hugging Face hub (HF_HOME moves it), where `--model gpt2` finds them and
    `transformers` need not bring them again. An interrupted download goes on where it stopped.

    Examples:

    `minipeft download gpt2`

    `minipeft download gpt2 --to weights/gpt2 --mirror https://hf-mirror.com`

    `minipeft download gpt2 --from-file ~/Downloads/model.safetensors`
    """
    from minipeft import downloads

    if list_all:
        plain_console().print(_table())
        return
    if name not in downloads.PUBLIC:
        problem = "name a model" if name is None else f"{name!r} is no public GPT-2"
        raise ValueError(f"{problem}: {', '.join(downloads.PUBLIC)}; for example: minipeft download gpt2")
    if check and from_file is not None:
        raise ValueError("--verify checks what is here already; --from-file checks by itself. Give one of them.")
    try:
        if check:
            downloads.verify(name, to, mirror, _say)
            return
        if from_file is not None:
            path = downloads.adopt(name, from_file, to, mirror, _say)
        else:
            path = downloads.download(name, to, mirror, _say)
    except KeyboardInterrupt:
        print("minipeft: stopped; what has come is kept, and the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    use = name if to is None else to
    print(f'{path}\nuse it: minipeft generate "Once upon a time" --model {shlex.quote(str(use))}')


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _table() -> Table:
    from minipeft.downloads import PUBLIC
    from minipeft.files import CheckpointError

    table = Table(title="public GPT-2 weights")
    table.add_column("name")
    table.add_column("parameters", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("on the hub", overflow="fold")
    table.add_column("here", overflow="fold")
    for name, model in PUBLIC.items():
        try:
            found = model.find()
            here = "no" if found is None else str(found)
        except CheckpointError:
            here = "damaged"
        count = model.config.num_parameters()
        masks = model.config.n_layer * model.config.n_positions**2  # which the public files hold, too
        table.add_row(name, f"{count:,}", f"{4 * (count + masks) / 1e6:,.0f}", model.repo, here)
    return table
