"""`minipeft inspect`: what is in a file or folder."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minipeft.commands.console import plain_console
from minipeft.commands.options import Model, load_model

if TYPE_CHECKING:
    from minipeft.tuned import Tuned


def inspect(
    what: Annotated[str, typer.Argument(help="A checkpoint or adapter: a folder, a file, or the name of one.")],
    model: Model = "nano",
    every: Annotated[bool, typer.Option("--all", help="A row for every tensor.")] = False,
    text: Annotated[
        str | None, typer.Option(help="What a model with a prompt or prefix reads to show where its attention goes.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the attention of each layer and head into this PNG.")] = None,
) -> None:
    """Show what is in an adapter or a checkpoint.

    Of a checkpoint, whatever its form: which GPT-2 it is, its files with their SHA-256, how many parameters each part
    has, and every tensor's name, shape, type and bytes.

    Of an adapter (`--model` names the model that it is for): its settings and tensors, and what they do. Of a prompt
    the tokens nearest to each vector; of a prefix how long its keys and values are; of both, how much of the attention
    they draw in each layer; of LoRA, IA3, BitFit and finetuning how far weights are moved; how far gates are open.

    Examples:

    `minipeft inspect runs/movie`

    `minipeft inspect runs/movie --text "A film for the whole family." --plot attention.png`

    `minipeft inspect weights/gpt2`

    `minipeft inspect out/ckpt.pt --all`
    """
    from minipeft.checkpoint import SHIPPED
    from minipeft.downloads import PUBLIC
    from minipeft.tuned import CONFIG_FILE, WEIGHTS_FILE, find_adapter, load

    known = what in SHIPPED or what in PUBLIC
    if not known and Path(what).suffix and not Path(what).exists():
        raise FileNotFoundError(f"there is no file {what}.")
    path = Path(what).parent if Path(what).name == WEIGHTS_FILE else Path(what)
    if not known and not path.is_file():
        path = find_adapter(path)
        if (path / CONFIG_FILE).exists():
            _adapter(path, load(path, load_model(model, "cpu")), every, text, plot)
            return
    if text is not None or plot is not None:
        raise ValueError(f"--text and --plot are for adapters, and {what} is a checkpoint.")
    _checkpoint(what if known else path, every)


def _checkpoint(name: str | Path, every: bool) -> None:
    from minipeft.checkpoint import load_gpt2, open_model
    from minipeft.inspect import checkpoint_tables, which_gpt2

    load_gpt2(name)  # what is shown is a whole model, or the error says what is wrong with it
    weights = open_model(name)
    console = plain_console()
    for line in which_gpt2(weights):
        console.print(line, soft_wrap=True, highlight=False)
    for table in checkpoint_tables(weights, every):
        console.print(table)


def _adapter(folder: Path, tuned: "Tuned", every: bool, text: str | None, plot: Path | None) -> None:
    import torch

    from minipeft.inspect import EXAMPLE, adapter_tables, attention_mass, finding, mass_table
    from minipeft.plots import head_map

    lines, tables = _how_tuned(folder) or [str(tuned.method)], adapter_tables(tuned, every)
    before_text = tuned.base.config.n_positions - tuned.room
    if before_text or text is not None or plot is not None:
        tokens = tuned.base.tokenizer.encode(EXAMPLE if text is None else text)
        tokens = tokens[: tuned.room] if text is None else tokens
        read = tuned.base.tokenizer.decode(tokens)
        mass = attention_mass(tuned, torch.tensor([tokens], dtype=torch.long))
        tables.append(mass_table(mass))
        lines.append(f"attention: {before_text} positions stand before a text that reads: {read}")
        if plot is not None:
            head_map(mass, finding(mass, tuned.method.name.replace("_", " ")), lines[-1], plot)
    console = plain_console()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    for table in tables:
        console.print(table)


def _how_tuned(folder: Path) -> list[str]:
    """What a report beside the adapter tells, if there is one that can be read."""
    from minipeft.files import CheckpointError, read_json
    from minipeft.tune import REPORT_FILE

    with suppress(FileNotFoundError, CheckpointError):
        report = read_json(folder / REPORT_FILE)
        told = {key: report.get(key) for key in ("method", "task", "best_step", "steps", "dev_loss", "dev_accuracy")}
        return [f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in told.items() if value is not None]
    return []


def _plain(value: object) -> str:
    """Settings as `--set` takes them, numbers with four digits."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
