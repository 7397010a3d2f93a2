"""`minipeft demo`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from minipeft.commands.options import Seed


def demo(
    out: Annotated[Path, typer.Option(help="The folder for the table, the plot and the adapters.")] = Path("demo"),
    seed: Seed = 0,
) -> None:
    """Steer the small GPT-2 that ships, on real movie reviews, in about six minutes on two cores.

    Example:

    `minipeft demo --out demo`
    """
    from minipeft.demo import run

    run(out, Console(), seed)
