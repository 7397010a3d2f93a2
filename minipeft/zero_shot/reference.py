"""The table of published values in `docs/reference.md`, and its last column, which `minipeft eval --fill` writes."""

from pathlib import Path

from minipeft.corpus import read_text
from minipeft.files import write_atomically
from minipeft.zero_shot.tasks import Measured

COLUMNS = ("task", "measure", "model", "published", "measured")


def shown(measure: str, value: float) -> str:
    """A value as it stands in tables: accuracies in percent."""
    return f"{value:.2%}".replace("%", " %") if measure.startswith("accuracy") else f"{value:.2f}"


def rows_of(path: Path, task: str, model: str) -> dict[int, list[str]]:
    """Line number and cells of each row of the table for this task and model.

    Raises FileNotFoundError, or ValueError if there is none.
    """
    found, inside = {}, False
    for number, line in enumerate(read_text(path).split("\n")):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        inside = line.startswith("|") and (inside or tuple(cells) == COLUMNS)
        if inside and len(cells) == len(COLUMNS) and (cells[0], cells[2]) == (task, model):
            found[number] = cells
    if not found:
        raise ValueError(f"{path} has no row for {task} and {model} in a table of {', '.join(COLUMNS)}.")
    return found


def fill(path: Path, model: str, measured: Measured) -> int:
    """Write the values into the rows of `model` and this task; how many there were. The file changes in one go.

    Raises what `rows_of` raises.
    """
    lines, filled = read_text(path).split("\n"), 0
    for number, cells in rows_of(path, measured.task, model).items():
        if cells[1] in measured.values:
            cells[4] = shown(cells[1], measured.values[cells[1]])
            lines[number] = "| " + " | ".join(cells) + " |"
            filled += 1
    write_atomically(path, "\n".join(lines).encode("utf-8"))
    return filled
