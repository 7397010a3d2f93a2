"""The training loop: pretraining, finetuning and tuning differ by what they pass to it, not by copies of it."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from minipeft.batches import MicroBatches
from minipeft.distributed import ALONE, SEEDS_APART, Team, own_part, whole
from minipeft.kernels.allocator import first_sentence, keep_freed_memory, ran_out_of_memory
from minipeft.progress import progress_bar
from minipeft.train_config import TrainConfig
from minipeft.training_state import TrainingState, TrainResult

Evaluation = Callable[[], Mapping[str, float | str]]
"""Measures the model as it is; `score` decides which step was best, and higher is better. Text is only written down."""
Losses = Callable[[int], Tensor | Iterator[Tensor]]
"""The loss of a step's batch, or parts that add up to it, each made when the one before it is done with."""
SCALE_HOLDS = 2000
"""Steps after which a scale that was never too much is tried twice as large."""


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
    micro: MicroBatches | None = None,
    pace: Callable[[float], str] = "{:.2f} s a step".format,
    watch: Callable[[Mapping[str, object]], None] = lambda row: None,
    team: Team = ALONE,
) -> TrainResult:
    """Train `parameters` in place with AdamW, leaving in them the tensors of the best evaluation (else the last step).

    `loss_at(step)` is the loss of that step's batch, or parts that add up to it, and must depend on nothing but `step`
    and the parameters: then a run that was killed and resumed ends bit-identical to one that was not. `setting` is
    everything else that shapes the run; resuming with another setting is refused. Writes `training_state.safetensors`
    and `metrics.jsonl`.

    A step that runs out of memory is done again with fewer rows at once, if `micro` can take fewer; before the update,
    nothing of it was kept. A resumed run takes as many at once as it did before, so that its sums come out the same.
    `pace` tells in words what so many seconds a step mean, `watch` sees every row of the metrics.

    In a `team` every process calls this with its own part of the loss (`Team.shares`, `Team.loss_of`); the writer alone
    writes files and watches, and what it measures decides for all. The state can be resumed by any other team.

    Ctrl-C is held until the step in progress is whole; then the state is saved and KeyboardInterrupt goes on. A second
    one does not wait; what is saved then is the state of the last whole step, or, of an update broken in two, the one
    that was saved before it.
    Raises TrainingDiverged on a loss or gradient that is no number or a spike, if they are not to be passed over,
    OutOfMemory if a step does not fit, CheckpointError if the state in `out` cannot be resumed.
    """
    all_settings = json.loads(json.dumps({**asdict(config), **(setting or {})}))
    run = TrainingState(parameters, config, Path(out), all_settings, team, micro)
    if resume and team.from_writer(run.state_path.exists):
        run.restore()
    else:
        run.start_anew()
    keep_freed_memory()
    random_state = torch.get_rng_state()
    try:
        with _held_interrupts() as interrupted:
            _loop(run, loss_at, evaluate, label, interrupted, pace, watch)
    except BaseException as reason:
        no_room = isinstance(reason, OutOfMemory) or ran_out_of_memory(reason)
        # out of memory is one process, and the others wait
        if run.is_whole and (isinstance(reason, KeyboardInterrupt) or (no_room and team.size == 1)):
            run.save()
        if no_room and not isinstance(reason, OutOfMemory):
            raise OutOfMemory(
                f"there is not enough memory after step {run.result.step} ({first_sentence(reason)})."
            ) from None
        raise
    finally:
        torch.set_rng_state(random_state)
    if run.best:
        run.load_into_parameters(run.best)
    return run.result


def _loop(
    run: TrainingState,
    loss_at: Losses,
    evaluate: Evaluation | None,
    label: str,
    interrupted: list[int],
    pace: Callable[[float], str],
    watch: Callable[[Mapping[str, object]], None],
) -> None:
    """Steps until the last, patience's end or the time limit, and the state at that moment, saved.

    A run that is out of time is measured once more; its state is the one before that, so that it goes on as if it had
    not been.
    """
    result, started = run.result, time.monotonic()
    saved, before, first = started, started - result.seconds, result.step
    bar = progress_bar(label, run.config.steps, result.step) if run.team.is_writer else nullcontext(lambda note: None)
    with bar as show:
        while True:
            late = result.step > first and time.monotonic() - started > (run.config.time_limit or math.inf)
            if run.config.time_limit is not None:
                (late,) = run.team.any(late)
            measured_once_more = late and not _is_due(run)
            if measured_once_more:
                run.save()
            if result.logged < result.step:
                row = _finish_step(run, evaluate, late)
                if run.team.is_writer:
                    watch(row)
                seconds = (time.monotonic() - started) / max(1, result.step - first)
                best = f", best {result.best_score:.3f}" if run.best else ""
                show(f"loss {result.last_loss:.3f}{best}, {pace(seconds)}")
            if result.step == run.config.steps or result.stopped_early or late:
                if not measured_once_more:
                    run.save()
                return
            stop, save = run.team.any(bool(interrupted), time.monotonic() - saved > run.config.save_seconds)
            if stop:
                raise KeyboardInterrupt
            if save:
                run.save()
                saved = time.monotonic()
            value = _gradients(run, loss_at, result.step)
            with run.changing():
                result.last_loss = _update(run, value, result.step)
                result.step += 1
                result.seconds = time.monotonic() - before


def _gradients(run: TrainingState, loss_at: Losses, step: int) -> float:
    """One forward and backward, with fewer rows at once if memory runs out; returns the loss in nats of all rows."""
    value = None
    scale = run.result.scale if run.config.scaled else 1.0
    while value is None:
        # What dropout draws depends on the step alone, and on which process draws it.
        torch.manual_seed(run.config.seed * 1_000_003 + step + run.team.rank * SEEDS_APART)
        run.optimizer.zero_grad(set_to_none=True)
        try:
            value = _backward(loss_at(step), scale)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            told = first_sentence(error)
        if value is None and run.team.size > 1:  # the others wait for this process as it was
            raise OutOfMemory(f"there is not enough memory for step {step + 1} ({told}); lower --micro-batch.")
        # Fewer rows are taken here, where the failed step's tensors are gone.
        if value is None and not (run.micro and run.micro.use_fewer()):
            run.optimizer.zero_grad(set_to_none=True)
            raise OutOfMemory(
                f"there is not enough memory for step {step + 1} even with one row at a time ({told}); `minipeft "
                "plan` says what would fit."
            )
    return run.team.sum(value)


def _update(run: TrainingState, value: float, step: int) -> float:
    """Change the parameters by their gradients, unless the step is passed over; returns its loss."""
    if run.config.scaled and math.isfinite(value) and not _unscale(run):
        return value
    norm = float(whole(nn.utils.clip_grad_norm_(run.parameters.values(), run.config.clip or math.inf)))
    if wrong := run.wrong_with(value, norm):
        if not run.passes_over():
            raise run.diverged(wrong, step)
        return value
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.lr_at(step)
    run.optimizer.step()
    run.note_good_step(value)
    return value


def _backward(loss: Tensor | Iterator[Tensor], scale: float) -> float:
    """Gradients, times `scale`, of a loss, or of its parts one after another; the loss."""
    value = 0.0
    for part in (loss,) if isinstance(loss, Tensor) else loss:
        (part * scale if scale != 1.0 else part).backward()
        value += float(part.detach())
    return value


def _unscale(run: TrainingState) -> bool:
    """Divide the gradients by the loss's scale; False if it was too much for them, and is halved.

    One that held for long is doubled. Source: Micikevicius et al. 2018, §3.2.
    """
    result, scale = run.result, run.result.scale
    gradients = [p.grad for p in run.parameters.values() if p.grad is not None]
    (overflow,) = run.team.any(not all(bool(torch.isfinite(own_part(gradient)).all()) for gradient in gradients))
    if overflow and scale > 1:
        result.scale, result.scale_held = scale / 2, 0
        return False
    for gradient in gradients:
        gradient.div_(scale)
    result.scale_held += 1
    if result.scale_held == SCALE_HOLDS:
        result.scale, result.scale_held = scale * 2, 0
    return True


def _is_due(run: TrainingState) -> bool:
    """Whether an evaluation is planned at this step."""
    step, every = run.result.step, run.config.eval_every
    return step == run.config.steps or (every > 0 and step % every == 0)


def _finish_step(run: TrainingState, evaluate: Evaluation | None, last: bool) -> Mapping[str, object]:
    """Evaluate if this step is one to do so, or the last of this call, and write its row."""
    config, result = run.config, run.result
    loss = result.last_loss if math.isfinite(result.last_loss) else None  # of a step that was passed over
    row: dict[str, object] = {"step": result.step, "loss": loss, "lr": config.lr_at(result.step - 1)}
    if result.skipped:
        row["skipped"] = result.skipped
    numbers: dict[str, float] = {}
    if evaluate and (last or _is_due(run)):
        measured = run.team.broadcast(dict(evaluate()))
        numbers = {what: number for what, number in measured.items() if not isinstance(number, str)}
        for what, number in numbers.items():
            if not math.isfinite(number):
                raise run.diverged(f"{what} is {number}", result.step - 1)
        row.update(measured)
    row["seconds"] = round(result.seconds, 3)
    with run.changing():
        if numbers:
            run.note_evaluation(numbers)
        run.log(row)
        result.logged = result.step
    return row


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
