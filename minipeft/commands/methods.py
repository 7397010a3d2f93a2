"""`minipeft methods`: what each method would train on a model, and what one more task would cost."""

from rich.table import Table

from minipeft.commands.console import plain_console
from minipeft.commands.options import ModelShape, shape_of


def methods(model: ModelShape = "nano") -> None:
    """Show the methods side by side for a model: what each trains, and the bytes that one more task costs.

    Nothing is downloaded: the shape of the model is enough to count.

    Examples:

    `minipeft methods`

    `minipeft methods --model gpt2-xl`
    """
    from minipeft.overview import METHODS_TABLE, count, size_told

    config = shape_of(model)
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
    plain_console().print(table)
