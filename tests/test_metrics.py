"""What a run wrote down: read again, drawn, and shown by TensorBoard."""

import math
from pathlib import Path
from typing import Any

import pytest

from minipeft.metrics import PICTURE_FILE, draw_metrics, read_metrics, tensorboard_writer
from minipeft.training_state import METRICS_FILE

ROWS = [
    '{"step": 1, "loss": 4.5, "lr": 0.1, "seconds": 0.5}',
    '{"step": 2, "loss": null, "lr": 0.2, "skipped": 1, "seconds": 1.0}',
    '{"step": 3, "loss": 3.5, "lr": 0.1, "perplexity": 12.0, "sample": "Once upon", "seconds": 1.5}',
]


def written(folder: Path, rows: list[str]) -> Path:
    (folder / METRICS_FILE).write_text("\n".join(rows) + "\n" if rows else "")
    return folder


def test_a_run_is_drawn_once_there_is_something_to_draw(tmp_path: Path) -> None:
    draw_metrics(tmp_path)
    draw_metrics(written(tmp_path, ROWS[:1]))
    assert not (tmp_path / PICTURE_FILE).exists()
    draw_metrics(written(tmp_path, ROWS))
    assert (tmp_path / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_the_numbers_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What matplotlib is asked to draw: losses, none where a step was passed over, and the held-out one in nats."""
    from matplotlib.axes import Axes

    lines: list[tuple[Any, ...]] = []
    plot = Axes.plot

    def noted(axes: Axes, *given: Any, **more: Any) -> Any:
        lines.append(given[:2])
        return plot(axes, *given, **more)

    monkeypatch.setattr(Axes, "plot", noted)
    draw_metrics(written(tmp_path, ROWS))
    (steps, losses), (_, means), (measured, held_out), (_, rates) = lines
    assert steps == [1, 2, 3]
    assert losses[::2] == [4.5, 3.5]
    assert math.isnan(losses[1])
    assert means == [4.5, 3.5]
    assert (measured, held_out) == ((3,), (pytest.approx(math.log(12)),))
    assert rates == [0.1, 0.2, 0.1]


def test_tensorboard_is_told_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard_writer(tmp_path) as write:
        for row in read_metrics(written(tmp_path, ROWS)):
            write(row)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 4.5), (3, 3.5)]
    assert [event.value for event in found.Scalars("perplexity")] == [12.0]
    assert "sample/text_summary" in found.Tags()["tensors"]


def test_tensorboard_shows_a_step_that_is_taken_again_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, loss in ((1, 5.0), (3, 4.0)):
        with tensorboard_writer(tmp_path, first) as write:
            for step in range(first, 5):
                write({"step": step, "loss": loss})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 5.0), (2, 5.0), (3, 4.0), (4, 4.0)]
