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

from minipeft.kernels.allocator import keep_freed_memory, ran_out_of_memory
from minipeft.progress import progress_bar
from minipeft.training_state import TrainConfig, TrainingState, TrainResult

Evaluation = Callable[[], Mapping[str, float]]
"""Measures the model as it is; `score` decides which step was best, and higher is better."""
Losses = Callable[[int], Tensor | Iterator[Tensor]]
"""The loss of a step's batch, or parts that add up to it, each made when the one before it is done with."""


class OutOfMemory(ValueError):
    """There is no room for a training step."""


def train(
    parameters: Mapping[str, nn.Parameter],
    loss_at: Losses,
    config: TrainConfig,
    out: str | Path,
    *,
    evaluate: Evaluation | None = None,
    resume: bool = False,
    setting: Mapping[str, object] | None = None,
    label: str = "train",
    use_less_memory: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train `parameters` in place with AdamW, leaving in them the tensors of the best evaluation (else the last step).

    `loss_at(step)` is the loss of that step's batch, or parts that add up to it, and must depend on nothing but `step`
    and the parameters: then a run that was killed and resumed ends bit-identical to one that was not. `setting` is
    everything else that shapes the run; resuming with another setting is refused. Writes `training_state.safetensors`
    and `metrics.jsonl`.

    A step that runs out of memory is done again as long as `use_less_memory()` could help; before the update, nothing
    of it was kept.

    Ctrl-C is held until the step in progress is whole; then the state is saved and KeyboardInterrupt goes on.
    Raises TrainingDiverged on a loss or gradient that is no number, OutOfMemory if a step does not fit, CheckpointError
    if the state in `out` cannot be resumed.
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
            _loop(run, loss_at, evaluate, label, interrupted, use_less_memory or (lambda: False))
    except (KeyboardInterrupt, OutOfMemory):
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
    loss_at: Losses,
    evaluate: Evaluation | None,
    label: str,
    interrupted: list[int],
    use_less_memory: Callable[[], bool],
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
            result.last_loss = _step(run, loss_at, result.step, use_less_memory)
            result.step += 1
            result.seconds = time.monotonic() - before


def _step(run: TrainingState, loss_at: Losses, step: int, use_less_memory: Callable[[], bool]) -> float:
    """One forward, backward and update; returns the loss in nats."""
    value = None
    while value is None:
        torch.manual_seed(run.config.seed * 1_000_003 + step)  # dropout depends on the step alone
        run.optimizer.zero_grad(set_to_none=True)
        try:
            value = _backward(loss_at(step))
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            told = str(error).split(". ")[0]
        if value is None and not use_less_memory():  # here, where the failed step's tensors are gone
            run.optimizer.zero_grad(set_to_none=True)
            raise OutOfMemory(
                f"there is not enough memory for step {step + 1} even with one row at a time ({told}); `minipeft "
                "plan` says what would fit."
            )
    norm = nn.utils.clip_grad_norm_(run.parameters.values(), run.config.clip or math.inf)
    for what, number in (("the loss", value), ("the gradient's norm", float(norm))):
        if not math.isfinite(number):
            raise run.diverged(what, number, step)
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.lr_at(step)
    run.optimizer.step()
    return value


def _backward(loss: Tensor | Iterator[Tensor]) -> float:
    """Gradients of a loss, or of its parts one after another; their sum."""
    value = 0.0
    for part in (loss,) if isinstance(loss, Tensor) else loss:
        part.backward()
        value += float(part.detach())
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
