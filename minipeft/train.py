"""The training loop: pretraining, finetuning and tuning differ by what they pass to it, not by copies of it."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from minipeft.kernels.allocator import keep_freed_memory
from minipeft.progress import progress_bar
from minipeft.training_state import TrainConfig, TrainingState, TrainResult

Evaluation = Callable[[], Mapping[str, float]]
"""Measures the model as it is; `score` decides which step was best, and higher is better."""


def train(
    parameters: Mapping[str, nn.Parameter],
    loss_at: Callable[[int], Tensor],
    config: TrainConfig,
    out: str | Path,
    *,
    evaluate: Evaluation | None = None,
    resume: bool = False,
    setting: Mapping[str, object] | None = None,
    label: str = "train",
) -> TrainResult:
    """Train `parameters` in place with AdamW, leaving in them the tensors of the best evaluation (else the last step).

    `loss_at(step)` is the loss of that step's batch and must depend on nothing but `step` and the parameters: then a
    run that was killed and resumed ends bit-identical to one that was not. `setting` is everything else that shapes
    the run; resuming with another setting is refused. Writes `training_state.safetensors` and `metrics.jsonl`.

    Ctrl-C is held until the step in progress is whole; then the state is saved and KeyboardInterrupt goes on.
    Raises TrainingDiverged on a loss or gradient that is no number, CheckpointError if the state in `out` cannot be
    resumed.
    """
    run = TrainingState(parameters, config, Path(out), json.loads(json.dumps({**asdict(config), **(setting or {})})))
    if resume and run.state_path.exists():
        run.restore()
    else:
        run.start_anew()
    keep_freed_memory()
    random_state = torch.get_rng_state()
    try:
        with _held_interrupts() as interrupted:
            _loop(run, loss_at, evaluate, label, interrupted)
    except KeyboardInterrupt:
        run.save()
        raise
    finally:
        torch.set_rng_state(random_state)
    run.save()
    if run.best:
        run.load_into_parameters(run.best)
    return run.result


def _loop(
    run: TrainingState,
    loss_at: Callable[[int], Tensor],
    evaluate: Evaluation | None,
    label: str,
    interrupted: list[int],
) -> None:
    result, saved, before = run.result, time.monotonic(), time.monotonic() - run.result.seconds
    with progress_bar(label, run.config.steps, result.step) as show:
        while True:
            if result.logged < result.step:
                _finish_step(run, evaluate)
                show(f"loss {result.last_loss:.3f}" + (f", best {result.best_score:.3f}" if run.best else ""))
            if result.step == run.config.steps or result.stopped_early:
                return
            if interrupted:
                raise KeyboardInterrupt
            if time.monotonic() - saved > run.config.save_seconds:
                run.save()
                saved = time.monotonic()
            result.last_loss = _step(run, loss_at, result.step)
            result.step += 1
            result.seconds = time.monotonic() - before


def _step(run: TrainingState, loss_at: Callable[[int], Tensor], step: int) -> float:
    """One forward, backward and update; returns the loss in nats."""
    torch.manual_seed(run.config.seed * 1_000_003 + step)  # dropout depends on the step alone
    run.optimizer.zero_grad(set_to_none=True)
    loss = loss_at(step)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(run.parameters.values(), run.config.clip or math.inf)
    value = float(loss.detach())
    for what, number in (("the loss", value), ("the gradient's norm", float(norm))):
        if not math.isfinite(number):
            raise run.diverged(what, number, step)
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.lr_at(step)
    run.optimizer.step()
    return value


def _finish_step(run: TrainingState, evaluate: Evaluation | None) -> None:
    """Evaluate if this step is one to do so, and write its row."""
    config, result = run.config, run.result
    row = {"step": result.step, "loss": result.last_loss, "lr": config.lr_at(result.step - 1)}
    due = result.step == config.steps or (config.eval_every and result.step % config.eval_every == 0)
    if evaluate and due:
        measured = evaluate()
        for what, number in measured.items():
            if not math.isfinite(number):
                raise run.diverged(what, number, result.step - 1)
        row.update(measured)
        run.note_evaluation(measured)
    run.log({**row, "seconds": round(result.seconds, 3)})
    result.logged = result.step


@contextmanager
def _held_interrupts() -> Iterator[list[int]]:
    """The list that Ctrl-C is noted in, instead of breaking a step in two; a second Ctrl-C does break it."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    usual = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, usual)
