"""What a training run wrote into `metrics.jsonl`: read again, drawn, and shown by TensorBoard."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minipeft.plots import training_curves
from minipeft.training_state import METRICS_FILE

PICTURE_FILE = "training.png"


def read_metrics(out: str | Path) -> list[dict[str, Any]]:
    """The rows, one a step, of the run in this folder; none if there are none."""
    path = Path(out) / METRICS_FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def draw_metrics(out: str | Path) -> None:
    """Draw `training.png` into the folder of a run that took at least two steps."""
    rows = read_metrics(out)
    if len(rows) > 1:
        training_curves(rows, Path(out).resolve().name, Path(out) / PICTURE_FILE)


@contextmanager
def tensorboard_writer(out: str | Path, first: int = 1) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """What writes a row of the metrics into `OUT/tensorboard`, from step `first` on; what was there of it is hidden.

    Raises ValueError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("TensorBoard is not installed; get it with: pip install tensorboard") from None
    writer = SummaryWriter(str(Path(out) / "tensorboard"), purge_step=first)

    def write(row: Mapping[str, object]) -> None:
        step = row["step"]
        for name, value in row.items():
            if isinstance(value, str):
                writer.add_text(name, value, step)
            elif name != "step" and value is not None:
                writer.add_scalar(name, value, step)

    with writer:
        yield write
