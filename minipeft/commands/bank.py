"""`minipeft bank`: many tasks' prompts in one file, for one model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from minipeft.commands.console import plain_console
from minipeft.commands.options import Model, load_model

if TYPE_CHECKING:
    from minipeft.bank import PromptBank

bank = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Keep many tasks' prompts together, for --bank of `generate`.

    Examples:

    `minipeft bank add runs/bank good positive`

    `minipeft bank list runs/bank`
    """,
)
Folder = Annotated[Path, typer.Argument(help="The folder of the bank.")]
Task = Annotated[str, typer.Argument(help="The task's name.")]


@bank.command()
def add(
    folder: Folder,
    task: Task,
    adapter: Annotated[str, typer.Argument(help="A folder that `tune` or PEFT wrote, or a prompt that ships.")],
    model: Model = "nano",
) -> None:
    """Take in a soft prompt, P-tuning or a prefix; the folder is made if it is not there.

    Example: `minipeft bank add runs/bank spam runs/spam`
    """
    held = _open(folder, model, new=True)
    held.add(task, adapter)
    held.save(folder)
    _told(held, folder)


@bank.command()
def remove(folder: Folder, task: Task, model: Model = "nano") -> None:
    """Let a prompt go."""
    held = _open(folder, model)
    held.remove(task)
    held.save(folder)
    _told(held, folder)


@bank.command()
def rename(
    folder: Folder, task: Task, to: Annotated[str, typer.Argument(help="Its new name.")], model: Model = "nano"
) -> None:
    """Give a prompt another name."""
    held = _open(folder, model)
    held.rename(task, to)
    held.save(folder)
    _told(held, folder)


@bank.command("list")
def show(folder: Folder, model: Model = "nano") -> None:
    """What a bank holds: task, method, vectors and bytes of each."""
    held = _open(folder, model)
    table = Table(box=None)
    table.add_column("task")
    table.add_column("made as")
    table.add_column("vectors", justify="right")
    table.add_column("bytes", justify="right")
    for one in held.list():
        table.add_row(one.task, one.method, str(one.length), f"{one.nbytes:,}")
    plain_console().print(table)
    _told(held, folder)


def _open(folder: Path, model: str, new: bool = False) -> "PromptBank":
    from minipeft.bank import INDEX_FILE, PromptBank

    base = load_model(model, "cpu")
    if new and not (folder / INDEX_FILE).exists():
        return PromptBank(base)
    return PromptBank.load(folder, base)


def _told(held: "PromptBank", folder: Path) -> None:
    plain_console().print(
        f"{folder} holds {len(held)} prompt{'s' * (len(held) != 1)}, {held.nbytes:,} bytes.", highlight=False
    )
