"""The training loop: its learning rates and steps by hand, and runs that stop, are resumed, or are refused."""

import json
import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minipeft.batches import MicroBatches
from minipeft.files import CheckpointError
from minipeft.train import OutOfMemory, train
from minipeft.train_config import TrainConfig
from minipeft.training_state import (
    METRICS_FILE,
    STATE_FILE,
    TrainingDiverged,
    TrainingState,
    TrainResult,
    saved_step,
)
from tests.models import farthest

CONFIG = TrainConfig(steps=12, lr=0.05, warmup=0.25, weight_decay=0.1, clip=0.5, save_seconds=1e9)
TARGETS = torch.linspace(-1, 1, 12 * 12).view(12, 3, 4)
"""What step 0, 1, … pulls the matrix towards."""


class StopsAt:
    """A loss or an evaluation that is interrupted as by Ctrl-C at its n-th call."""

    def __init__(self, function: Callable[..., Any], at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.function, self.at, self.error, self.calls = function, at, error, 0

    def __call__(self, *given: int) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.error("stopped by the test")
        return self.function(*given)


def fresh() -> dict[str, nn.Parameter]:
    """A matrix and a vector, the same each time."""
    generator = torch.Generator().manual_seed(3)
    return {
        "matrix": nn.Parameter(torch.randn(3, 4, generator=generator)),
        "vector": nn.Parameter(torch.randn(4, generator=generator)),
    }


def noisy_loss(parameters: Mapping[str, nn.Parameter], share: float = 0.8) -> Callable[[int], Tensor]:
    """A loss whose steps differ, and that counts a random share of its terms, as dropout does."""

    def loss_at(step: int) -> Tensor:
        kept = torch.rand(3, 4) < share
        return (((parameters["matrix"] + parameters["vector"] - TARGETS[step]) * kept) ** 2).sum()

    return loss_at


def distance(parameters: Mapping[str, nn.Parameter]) -> Callable[[], dict[str, float]]:
    """An evaluation whose best is somewhere in the middle of training."""
    return lambda: {"score": -float((parameters["matrix"].detach() - 0.1).abs().sum())}


def scores(values: Iterable[float]) -> Callable[[], dict[str, float]]:
    """An evaluation that was decided before."""
    given = iter(values)
    return lambda: {"score": next(given)}


def tensors_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The metrics without the seconds, which differ from run to run."""
    rows = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_identical(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def run_whole(out: Path, config: TrainConfig) -> dict[str, Tensor]:
    parameters = fresh()
    train(parameters, noisy_loss(parameters), config, out, evaluate=distance(parameters))
    return tensors_of(parameters)


def go_on(out: Path, config: TrainConfig) -> dict[str, Tensor]:
    """Resume as a new process would: with new parameters."""
    parameters = fresh()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(7.0)
    train(parameters, noisy_loss(parameters), config, out, evaluate=distance(parameters), resume=True)
    return tensors_of(parameters)


def assert_same_run(found: Path, wanted: Path) -> None:
    """Both folders tell of the same training, to the bit."""
    assert rows_of(found) == rows_of(wanted)
    assert_identical(load_file(found / STATE_FILE), load_file(wanted / STATE_FILE))


# --- settings


def test_the_learning_rate_rises_and_falls_in_lines() -> None:
    config = TrainConfig(steps=10, lr=0.4, warmup=0.2, final_lr=0.1)
    # 2 steps up; then 8 steps down a line that would reach 0.04 at step 10.
    wanted = [0.2, 0.4, *(0.4 - 0.36 * n / 8 for n in range(8))]
    assert [config.lr_at(step) for step in range(10)] == pytest.approx(wanted, rel=1e-12)  # doubles


def test_the_learning_rate_falls_along_a_cosine() -> None:
    config = TrainConfig(steps=9, lr=2.0, warmup=1 / 3, schedule="cosine", final_lr=0.5)
    wanted = [2 / 3, 4 / 3, 2.0, *(1.5 + 0.5 * math.cos(math.pi * n / 6) for n in range(6))]
    assert [config.lr_at(step) for step in range(9)] == pytest.approx(wanted, rel=1e-12)  # doubles
    assert config.lr_at(6) == pytest.approx(1.5)  # half way between 2 and 1


def test_the_learning_rate_stays_and_then_falls() -> None:
    config = TrainConfig(steps=20, lr=1.0, warmup=0.1, schedule="wsd", decay=0.25, final_lr=0.2)
    # 2 steps up, 13 level, then 5 down a line that would reach 0.2 at step 20.
    wanted = [0.5, 1.0, *[1.0] * 13, *(1 - 0.8 * n / 5 for n in range(5))]
    assert [config.lr_at(step) for step in range(20)] == pytest.approx(wanted, rel=1e-12)  # doubles


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_without_warm_up_the_first_step_has_the_full_learning_rate(schedule: str) -> None:
    assert TrainConfig(steps=5, lr=0.3, warmup=0.0, schedule=schedule).lr_at(0) == 0.3


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_no_step_has_a_learning_rate_of_zero(schedule: str) -> None:
    for steps in (1, 2, 7):
        config = TrainConfig(steps=steps, lr=0.3, warmup=0.5, schedule=schedule)
        assert all(0 < config.lr_at(step) <= 0.3 for step in range(steps))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "the learning rate must be a positive number, got 0.0"),
        ({"lr": -1.0}, "the learning rate must be a positive number, got -1.0"),
        ({"lr": math.nan}, "the learning rate must be a positive number, got nan"),
        ({"lr": math.inf}, "the learning rate must be a positive number, got inf"),
        ({"schedule": "constant"}, "schedule is 'constant'; it can be 'linear', 'cosine' or 'wsd'"),
    ],
)
def test_settings_that_cannot_train_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        replace(CONFIG, **wrong)


# --- steps


def adamw_by_hand(config: TrainConfig) -> dict[str, Tensor]:
    """`config.steps` steps on the whole loss in double precision: Loshchilov & Hutter 2019, algorithm 2."""
    kept = {name: tensor.double() for name, tensor in tensors_of(fresh()).items()}
    m = {name: torch.zeros_like(tensor) for name, tensor in kept.items()}
    v = {name: torch.zeros_like(tensor) for name, tensor in kept.items()}
    beta1, beta2 = config.betas
    decays = {"matrix": config.weight_decay, "vector": 0.0}
    for step in range(config.steps):
        pull = 2 * (kept["matrix"] + kept["vector"] - TARGETS[step].double())
        gradients = {"matrix": pull, "vector": pull.sum(dim=0)}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        shrink = min(1.0, config.clip / (norm + 1e-6)) if config.clip else 1.0
        for name, gradient in gradients.items():
            g, lr = gradient * shrink, config.lr_at(step)
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g * g
            m_hat, v_hat = m[name] / (1 - beta1 ** (step + 1)), v[name] / (1 - beta2 ** (step + 1))
            kept[name] = kept[name] * (1 - lr * decays[name]) - lr * m_hat / (v_hat.sqrt() + 1e-8)
    return kept


@pytest.mark.parametrize(
    "changed", [{"steps": 1}, {"steps": 1, "clip": 0.0}, {}, {"betas": (0.8, 0.9), "schedule": "cosine"}]
)
def test_steps_are_those_of_adamw(changed: dict[str, Any], tmp_path: Path) -> None:
    config = replace(CONFIG, **changed)
    parameters = fresh()
    train(parameters, noisy_loss(parameters, share=1.0), config, tmp_path)
    wanted = adamw_by_hand(config)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach().double(), wanted[name], rtol=0, atol=2e-6)  # 12 fp32 steps


def first_step(loss_of: Callable[[Mapping[str, nn.Parameter]], Tensor], out: Path, **changed: Any) -> dict[str, Tensor]:
    """How far one step moves each parameter."""
    parameters = fresh()
    train(parameters, lambda _: loss_of(parameters), replace(CONFIG, steps=1, warmup=0.0, **changed), out)
    return {name: parameters[name].detach() - start for name, start in tensors_of(fresh()).items()}


def no_gradient(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    return 0.0 * sum(p.sum() for p in parameters.values()) + 1.0


def test_weight_decay_shrinks_matrices_alone(tmp_path: Path) -> None:
    moved = first_step(no_gradient, tmp_path, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(moved["matrix"], -0.05 * fresh()["matrix"].detach())
    assert torch.equal(moved["vector"], torch.zeros(4))


def test_clipping_scales_all_gradients_by_their_joint_norm(tmp_path: Path) -> None:
    def slopes(parameters: Mapping[str, nn.Parameter]) -> Tensor:
        return 3.0 * parameters["matrix"][0, 0] + 4.0 * parameters["vector"][0]  # a gradient of norm 5

    for clip, shares in ((0.5, (0.3, 0.4)), (10.0, (3.0, 4.0)), (0.0, (3.0, 4.0))):
        first_step(slopes, tmp_path, clip=clip)
        saved = load_file(tmp_path / STATE_FILE)  # after one step the first moment is (1 - β₁) of the gradient
        assert float(saved["exp_avg/matrix"][0, 0]) == pytest.approx(0.1 * shares[0], rel=1e-5)
        assert float(saved["exp_avg/vector"][0]) == pytest.approx(0.1 * shares[1], rel=1e-5)


def test_gradients_from_before_do_not_count(tmp_path: Path) -> None:
    parameters = fresh()
    (100 * parameters["vector"].sum()).backward()
    train(parameters, noisy_loss(parameters), CONFIG, tmp_path / "after")
    again = fresh()
    train(again, noisy_loss(again), CONFIG, tmp_path / "clean")
    assert_identical(tensors_of(parameters), tensors_of(again))


def test_the_seed_of_a_step_is_its_own(tmp_path: Path) -> None:
    def drawn(seed: int) -> list[float]:
        parameters, seen = fresh(), []

        def loss_at(step: int) -> Tensor:
            seen.append(float(torch.rand(())))
            return parameters["vector"].sum()

        train(parameters, loss_at, replace(CONFIG, seed=seed), tmp_path)
        return seen

    assert len(set(drawn(0))) == CONFIG.steps
    assert drawn(0) == drawn(0)
    assert not set(drawn(0)) & set(drawn(1))


def test_training_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    parameters = fresh()
    before = torch.get_rng_state()
    train(parameters, noisy_loss(parameters), CONFIG, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# --- what is kept


def test_the_tensors_of_the_best_evaluation_are_kept(tmp_path: Path) -> None:
    parameters, seen = fresh(), []
    given = iter([0.1, 0.7, 0.3, 0.7, 0.2])  # the first of two equal scores counts

    def evaluate() -> dict[str, float]:
        seen.append(tensors_of(parameters))
        return {"score": next(given)}

    result = train(parameters, noisy_loss(parameters), replace(CONFIG, eval_every=3), tmp_path, evaluate=evaluate)
    assert len(seen) == 4
    assert (result.best_step, result.best_score, result.step) == (6, 0.7, 12)
    assert_identical(tensors_of(parameters), seen[1])
    assert not torch.equal(seen[1]["matrix"], seen[3]["matrix"])


def test_without_evaluation_the_last_step_is_kept(tmp_path: Path) -> None:
    parameters = fresh()
    result = train(parameters, noisy_loss(parameters), CONFIG, tmp_path)
    assert (result.step, result.best_step, result.best_score) == (12, 0, -math.inf)
    saved = load_file(tmp_path / STATE_FILE)
    assert_identical(tensors_of(parameters), {name: saved[f"parameter/{name}"] for name in parameters})
    assert not [name for name in saved if name.startswith("best/")]


@pytest.mark.parametrize(("eval_every", "evaluated"), [(0, [12]), (5, [5, 10, 12]), (4, [4, 8, 12])])
def test_evaluations_come_every_so_often_and_at_the_end(eval_every: int, evaluated: list[int], tmp_path: Path) -> None:
    parameters = fresh()
    config = replace(CONFIG, eval_every=eval_every)
    train(parameters, noisy_loss(parameters), config, tmp_path, evaluate=distance(parameters))
    assert [row["step"] for row in rows_of(tmp_path) if "score" in row] == evaluated


@pytest.mark.parametrize(
    ("patience", "given", "stops_at", "best_step"),
    [
        (2, [0.1, 0.5, 0.4, 0.5, 0.9, 0.9], 8, 4),
        (1, [0.1, 0.5, 0.5, 0.9, 0.9, 0.9], 6, 4),
        (2, [0.1, 0.0, 0.5, 0.4, 0.6, 0.0], 12, 10),
        (0, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 12, 2),
    ],
)
def test_patience_stops_after_evaluations_without_a_better_score(
    patience: int, given: list[float], stops_at: int, best_step: int, tmp_path: Path
) -> None:
    parameters = fresh()
    config = replace(CONFIG, eval_every=2, patience=patience)
    result = train(parameters, noisy_loss(parameters), config, tmp_path, evaluate=scores(given))
    assert (result.step, result.best_step, result.stopped_early) == (stops_at, best_step, stops_at < 12)
    assert len(rows_of(tmp_path)) == stops_at


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    config = replace(CONFIG, eval_every=2, patience=1)
    parameters = fresh()
    train(parameters, noisy_loss(parameters), config, tmp_path, evaluate=scores([0.5, 0.4]))
    resumed = fresh()
    result = train(resumed, noisy_loss(resumed), config, tmp_path, evaluate=scores([]), resume=True)
    assert (result.step, result.best_step, result.stopped_early) == (4, 2, True)
    assert_identical(tensors_of(resumed), tensors_of(parameters))


def test_every_step_leaves_one_row_of_metrics(tmp_path: Path) -> None:
    parameters = fresh()
    losses = []

    def loss_at(step: int) -> Tensor:
        losses.append(noisy_loss(parameters)(step))
        return losses[-1]

    result = train(parameters, loss_at, CONFIG, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["loss"] for row in rows] == [float(loss.detach()) for loss in losses]
    assert [row["lr"] for row in rows] == [CONFIG.lr_at(step) for step in range(12)]
    assert result.last_loss == rows[-1]["loss"]


# --- divergence


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_training_and_names_the_step(value: float, tmp_path: Path) -> None:
    parameters = fresh()

    def loss_at(step: int) -> Tensor:
        return noisy_loss(parameters)(step) + (value if step == 4 else 0.0)

    with pytest.raises(
        TrainingDiverged, match=rf"the loss is {value} at step 5\. The .* lower learning rate \(now 0\.05\)"
    ):
        train(parameters, loss_at, CONFIG, tmp_path)
    assert all(bool(p.isfinite().all()) for p in parameters.values())
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]


def nan_from_the_fifth_step(parameters: Mapping[str, nn.Parameter]) -> Callable[[int], Tensor]:
    return lambda step: noisy_loss(parameters)(step) * (math.nan if step == 4 else 1.0)


def test_what_diverged_can_be_resumed_from_the_last_good_state(tmp_path: Path) -> None:
    config = replace(CONFIG, save_seconds=0.0, eval_every=3)
    parameters = fresh()
    with pytest.raises(TrainingDiverged):
        train(parameters, nan_from_the_fifth_step(parameters), config, tmp_path / "a", evaluate=distance(parameters))
    assert_identical(go_on(tmp_path / "a", config), run_whole(tmp_path / "b", config))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_last_good_state_is_promised_only_where_there_is_one(tmp_path: Path) -> None:
    parameters = fresh()
    with pytest.raises(TrainingDiverged) as error:
        train(parameters, nan_from_the_fifth_step(parameters), CONFIG, tmp_path)
    assert (tmp_path / STATE_FILE).exists() or STATE_FILE not in str(error.value)


def test_a_gradient_that_is_no_number_stops_training(tmp_path: Path) -> None:
    parameters = {"vector": nn.Parameter(torch.zeros(4))}
    with pytest.raises(TrainingDiverged, match="step 1"):  # the loss is 0, its gradient infinite
        train(parameters, lambda _: parameters["vector"].sqrt().sum(), replace(CONFIG, steps=1), tmp_path)


# --- steps that are passed over


BAD = 30
"""The step whose loss is bad, after more than are needed to know what is usual."""
LONG = replace(CONFIG, steps=40, spike=3.0)


def spiking_loss(parameters: Mapping[str, nn.Parameter], bad: float, steps: int = 1) -> Callable[[int], Tensor]:
    """A loss that is about as large as ever, but for some steps."""

    def loss_at(step: int) -> Tensor:
        pull = ((parameters["matrix"] - TARGETS[step % 12]) ** 2).mean() + parameters["vector"].sum() * 0.01
        return pull + bad if BAD <= step < BAD + steps else pull

    return loss_at


@pytest.mark.parametrize(
    ("bad", "told"),
    [(4.0, r"the loss is \d\.\d+, 3\.\d+ above the mean of the 20 before it,"), (math.nan, "the loss is nan")],
)
def test_a_loss_that_jumps_stops_training_and_names_the_last_good_state(bad: float, told: str, tmp_path: Path) -> None:
    parameters = fresh()
    with pytest.raises(TrainingDiverged, match=rf"{told} at step 31\. The last good state, of step 0, is in"):
        train(parameters, spiking_loss(parameters, bad), LONG, tmp_path)
    assert len(rows_of(tmp_path)) == BAD
    assert float(parameters["matrix"].detach().abs().max()) < 10


@pytest.mark.parametrize("bad", [4.0, math.nan])
def test_a_step_that_is_passed_over_changes_nothing(bad: float, tmp_path: Path) -> None:
    """The rest is what AdamW makes of the other steps' losses, at their own learning rates."""
    found, wanted, config = fresh(), fresh(), replace(LONG, skip_bad_steps=1)
    result = train(found, spiking_loss(found, bad), config, tmp_path)
    assert result.skipped == 1
    assert [row["step"] for row in rows_of(tmp_path) if "skipped" in row] == list(range(BAD + 1, 41))
    groups = [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in wanted.values()]
    optimizer = torch.optim.AdamW(groups, betas=config.betas)
    for step in (step for step in range(40) if step != BAD):
        optimizer.zero_grad()
        spiking_loss(wanted, 0.0)(step).backward()
        torch.nn.utils.clip_grad_norm_(wanted.values(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        optimizer.step()
    for name, tensor in wanted.items():
        assert farthest(found[name], tensor) < 1e-6  # fp32, by another implementation of AdamW


def test_too_many_bad_steps_in_a_row_stop_training(tmp_path: Path) -> None:
    for bad_steps, skips, ends in ((3, 3, True), (3, 2, False)):
        parameters, config = fresh(), replace(LONG, skip_bad_steps=skips)
        loss_at = spiking_loss(parameters, math.nan, bad_steps)
        if ends:
            assert train(parameters, loss_at, config, tmp_path / str(skips)).step == 40
        else:
            with pytest.raises(TrainingDiverged, match="at step 33"):
                train(parameters, loss_at, config, tmp_path / str(skips))


def test_a_run_that_stopped_at_a_spike_goes_on_once_it_may_pass_over_it(tmp_path: Path) -> None:
    parameters = fresh()
    with pytest.raises(TrainingDiverged):
        train(parameters, spiking_loss(parameters, 4.0), replace(LONG, save_seconds=0.0), tmp_path / "a")
    for out, resume in (("a", True), ("b", False)):
        parameters = fresh()
        train(parameters, spiking_loss(parameters, 4.0), replace(LONG, skip_bad_steps=1), tmp_path / out, resume=resume)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_before_anything_is_usual_nothing_is_a_spike(tmp_path: Path) -> None:
    parameters = fresh()
    loss_at = spiking_loss(parameters, 0.0)
    train(parameters, lambda step: loss_at(step) + 100.0 * (step == 19), replace(CONFIG, steps=20, spike=1.0), tmp_path)


# --- losses that are scaled


def test_a_scaled_loss_brings_small_gradients_through_half_precision(tmp_path: Path) -> None:
    """A gradient of 1e-8 is nothing in fp16; times 65,536 it is a number, and AdamW makes a whole step of it."""
    factor, moved = 1e8, {}
    for scaled in (False, True):
        parameters = fresh()
        config = replace(CONFIG, steps=1, warmup=0.0, scaled=scaled, clip=0.0, weight_decay=0.0)  # one plain step
        before = tensors_of(parameters)

        def loss_at(step: int, of: Mapping[str, nn.Parameter] = parameters) -> Tensor:
            return (of["matrix"].half() * 1.0).float().sum() / factor + of["vector"].sum()

        train(parameters, loss_at, config, tmp_path / str(scaled))
        moved[scaled] = float((parameters["matrix"].detach() - before["matrix"]).abs().max())
    assert moved[False] == 0.0
    assert moved[True] == pytest.approx(CONFIG.lr / 2, rel=0.1)  # g / (|g| + eps), and g is eps


def test_a_scale_that_is_too_much_is_halved_and_the_step_passed_over(tmp_path: Path) -> None:
    """A gradient of 20 is beyond fp16 until 65,536 is 2,048: five steps go, the sixth is the first update."""
    parameters, before = fresh(), tensors_of(fresh())
    seen = []

    def loss_at(step: int) -> Tensor:
        seen.append(bool(torch.equal(parameters["matrix"], before["matrix"])))
        return (parameters["matrix"].half() * 20.0).float().sum() + parameters["vector"].sum()

    result = train(parameters, loss_at, replace(CONFIG, steps=8, scaled=True), tmp_path)
    assert seen == [True] * 6 + [False] * 2
    assert (result.scale, result.scale_held, result.skipped) == (2048.0, 3, 0)


# --- time and states


def test_a_time_limit_stops_as_if_interrupted_and_the_run_goes_on(tmp_path: Path) -> None:
    config = replace(CONFIG, time_limit=1e-9)
    for calls in range(1, 13):
        parameters = fresh()
        result = train(parameters, noisy_loss(parameters), config, tmp_path / "a", resume=True)
        assert result.step == calls
    run = fresh()
    train(run, noisy_loss(run), CONFIG, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_that_is_out_of_time_is_measured_once_more(tmp_path: Path) -> None:
    parameters = fresh()
    config = replace(CONFIG, time_limit=1e-9, eval_every=6)
    train(parameters, noisy_loss(parameters), config, tmp_path, evaluate=distance(parameters))
    assert ["score" in row for row in rows_of(tmp_path)] == [True]


def test_that_measurement_leaves_no_trace_in_a_run_that_goes_on(tmp_path: Path) -> None:
    """What is measured here gets worse with every step: out of turn, an early one would be the best, and end it all."""
    config, start = replace(CONFIG, eval_every=5, patience=2), fresh()["matrix"].detach()

    def run(out: Path, config: TrainConfig) -> TrainResult:
        parameters = fresh()

        def nearness() -> dict[str, float]:
            return {"score": -float((parameters["matrix"].detach() - start).abs().sum())}

        return train(parameters, noisy_loss(parameters), config, out, evaluate=nearness, resume=True)

    whole = run(tmp_path / "a", config)
    for calls in range(1, 13):
        assert run(tmp_path / "b", replace(config, time_limit=1e-9)).step == calls
    assert (whole.step, whole.best_step) == (12, 5)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_the_last_states_are_kept_and_any_can_be_resumed(tmp_path: Path) -> None:
    config = replace(CONFIG, save_seconds=0.0, keep=3, eval_every=5)
    whole = run_whole(tmp_path / "a", config)
    kept = sorted(path.name for path in (tmp_path / "a").glob("training_state-*"))
    assert kept == ["training_state-000000010.safetensors", "training_state-000000011.safetensors"]
    (tmp_path / "a" / STATE_FILE).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"An earlier state is .*training_state-000000011.safetensors"):
        go_on(tmp_path / "a", config)
    (tmp_path / "a" / kept[0]).replace(tmp_path / "a" / STATE_FILE)
    assert_identical(go_on(tmp_path / "a", config), whole)
    assert len(rows_of(tmp_path / "a")) == 12


def test_starting_anew_forgets_the_kept_states(tmp_path: Path) -> None:
    run_whole(tmp_path, replace(CONFIG, save_seconds=0.0, keep=5))
    run_whole(tmp_path, replace(CONFIG, keep=5))
    assert [path.name for path in tmp_path.glob("training_state-*")] == ["training_state-000000000.safetensors"]


def test_whoever_watches_sees_every_row(tmp_path: Path) -> None:
    parameters, seen = fresh(), []
    train(parameters, noisy_loss(parameters), CONFIG, tmp_path, watch=seen.append)
    assert seen == [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]


# --- interrupted and resumed


def interrupted(out: Path, config: TrainConfig, *, at: int, of: str) -> None:
    """A run in which the `at`-th call of the loss or the evaluation is interrupted."""
    parameters = fresh()
    loss_at, evaluate = noisy_loss(parameters), distance(parameters)
    with pytest.raises(KeyboardInterrupt):
        train(
            parameters,
            StopsAt(loss_at, at) if of == "loss" else loss_at,
            config,
            out,
            evaluate=StopsAt(evaluate, at) if of == "evaluation" else evaluate,
        )


@pytest.mark.parametrize("at", [1, 2, 4, 5, 12])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(at: int, tmp_path: Path) -> None:
    config = replace(CONFIG, eval_every=3)
    interrupted(tmp_path / "a", config, at=at, of="loss")
    assert len(rows_of(tmp_path / "a")) == at - 1
    assert_identical(go_on(tmp_path / "a", config), run_whole(tmp_path / "b", config))
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_interrupted_evaluation_is_made_up_for(at: int, tmp_path: Path) -> None:
    config = replace(CONFIG, eval_every=3)
    interrupted(tmp_path / "a", config, at=at, of="evaluation")
    assert_identical(go_on(tmp_path / "a", config), run_whole(tmp_path / "b", config))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def press_ctrl_c() -> None:
    """And wait until it was seen: two at the same moment may count as one."""
    handler = signal.getsignal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    for _ in range(1000):
        if signal.getsignal(signal.SIGINT) is not handler:
            return
        time.sleep(0.001)


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_update_is_not_made_twice(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the optimizer has moved the parameters, and their step is not yet counted; a second breaks it off."""
    parameters, config = fresh(), replace(CONFIG, save_seconds=0.0)
    with monkeypatch.context() as patched:
        whole_step = torch.optim.AdamW.step
        steps = iter(range(1, 13))

        def step(self: torch.optim.AdamW) -> None:
            whole_step(self)
            if next(steps) == 5:
                for _ in range(times):
                    press_ctrl_c()

        patched.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(parameters, noisy_loss(parameters), config, tmp_path / "a", evaluate=distance(parameters))
    assert saved_step(tmp_path / "a") == (5 if times == 1 else 4)
    assert_identical(go_on(tmp_path / "a", config), run_whole(tmp_path / "b", config))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_an_evaluation_that_is_half_noted_does_not_count_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C when the best is known, and its row is not yet counted: patience would lose one."""
    config = replace(CONFIG, save_seconds=0.0, eval_every=3)
    parameters = fresh()
    with monkeypatch.context() as patched:
        log = TrainingState.log

        def broken(run: TrainingState, row: Mapping[str, object]) -> None:
            log(run, row)
            if row["step"] == 6:
                raise KeyboardInterrupt

        patched.setattr(TrainingState, "log", broken)
        with pytest.raises(KeyboardInterrupt):
            train(parameters, noisy_loss(parameters), config, tmp_path / "a", evaluate=distance(parameters))
    assert_identical(go_on(tmp_path / "a", config), run_whole(tmp_path / "b", config))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_row_that_a_power_cut_tore_is_left_out(tmp_path: Path) -> None:
    config = replace(CONFIG, eval_every=3)
    interrupted(tmp_path / "a", config, at=5, of="loss")
    path = tmp_path / "a" / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:9] + "\n", *lines[2:], '{"step": 5, "lo']))
    go_on(tmp_path / "a", config)
    assert [row["step"] for row in rows_of(tmp_path / "a")] == [1, *range(3, 13)]


@pytest.mark.parametrize(("room", "asked", "taken"), [(8, "auto", 4), (2, "auto", 2), (8, "whole", 8)])
def test_a_resumed_run_takes_as_many_rows_at_once_as_before(
    room: int, asked: str, taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else its sums are rounded otherwise; where there is less room now, it says so."""
    interrupted(tmp_path, CONFIG, at=5, of="loss")
    parameters, before, now = fresh(), MicroBatches(8, "auto"), MicroBatches(room, asked)
    before.use_fewer()
    train(parameters, noisy_loss(parameters), CONFIG, tmp_path, resume=True, micro=before)
    capsys.readouterr()
    train(parameters, noisy_loss(parameters), CONFIG, tmp_path, resume=True, micro=now)
    assert now.most == taken
    assert ("room for 4 rows at a time, now for 2" in capsys.readouterr().err) == (room == 2)


def test_a_crash_costs_only_the_steps_since_the_last_save(tmp_path: Path) -> None:
    """As after a power cut, rows of steps that were not saved stand in the metrics; the last of them is torn."""
    config = replace(CONFIG, eval_every=3)
    interrupted(tmp_path / "a", config, at=5, of="loss")
    with open(tmp_path / "a" / METRICS_FILE, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 9.0, "lr": 0.1, "seconds": 1}\n{"step": 6, "lo')
    assert_identical(go_on(tmp_path / "a", config), run_whole(tmp_path / "b", config))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = replace(CONFIG, eval_every=3)
    whole = run_whole(tmp_path, config)
    rows = rows_of(tmp_path)
    assert_identical(go_on(tmp_path, config), whole)
    assert rows_of(tmp_path) == rows


def test_the_time_between_saves_does_not_matter(tmp_path: Path) -> None:
    config = replace(CONFIG, eval_every=3)
    interrupted(tmp_path / "a", config, at=5, of="loss")
    often = replace(config, save_seconds=0.0)
    assert_identical(go_on(tmp_path / "a", often), run_whole(tmp_path / "b", config))


def test_a_parameter_that_no_loss_reaches_does_not_hinder_resuming(tmp_path: Path) -> None:
    def run(out: Path, at: int, resume: bool) -> dict[str, Tensor]:
        parameters = {**fresh(), "idle": nn.Parameter(torch.ones(2))}
        train(parameters, StopsAt(noisy_loss(parameters), at), CONFIG, out, resume=resume)
        return tensors_of(parameters)

    whole = run(tmp_path / "b", at=0, resume=False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", at=5, resume=False)
    assert_identical(run(tmp_path / "a", at=0, resume=True), whole)


def test_starting_anew_forgets_the_run_before(tmp_path: Path) -> None:
    """A second run that crashes before its first save must not be continued from the first one's state."""
    run_whole(tmp_path / "a", CONFIG)
    parameters = fresh()
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train(parameters, StopsAt(noisy_loss(parameters), 5, RuntimeError), CONFIG, tmp_path / "a")
    resumed = fresh()
    result = train(resumed, noisy_loss(resumed), CONFIG, tmp_path / "a", resume=True)
    assert len(rows_of(tmp_path / "a")) == result.step == 12


def test_resuming_where_nothing_was_saved_starts_anew(tmp_path: Path) -> None:
    config = replace(CONFIG, eval_every=3)
    parameters = fresh()
    train(parameters, noisy_loss(parameters), config, tmp_path / "a", evaluate=distance(parameters), resume=True)
    assert_identical(tensors_of(parameters), run_whole(tmp_path / "b", config))


# --- refused


def resume_with(out: Path, config: TrainConfig = CONFIG, setting: Mapping[str, object] | None = None) -> TrainResult:
    parameters = fresh()
    return train(parameters, noisy_loss(parameters), config, out, resume=True, setting=setting)


@pytest.mark.parametrize(
    ("changed", "setting", "difference"),
    [
        ({"lr": 0.1}, {"method": "prefix"}, r"(lr was 0.05, is 0.1)"),
        ({"steps": 6, "clip": 1.0}, {"method": "prefix"}, r"(clip was 0.5, is 1.0; steps was 12, is 6)"),
        ({}, {"method": "full"}, r"(method was 'prefix', is 'full')"),
        ({}, {}, r"(method was 'prefix', is None)"),
        ({"betas": (0.9, 0.95)}, {"method": "prefix"}, r"(betas was [0.9, 0.999], is [0.9, 0.95])"),
    ],
)
def test_resuming_with_another_setting_is_refused_and_the_difference_shown(
    changed: dict[str, Any], setting: dict[str, object], difference: str, tmp_path: Path
) -> None:
    parameters = fresh()
    train(parameters, noisy_loss(parameters), CONFIG, tmp_path, setting={"method": "prefix"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=re.escape(f"belongs to a run with another setting {difference}")):
        resume_with(tmp_path, replace(CONFIG, **changed), setting)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_level_run_is_made_longer(tmp_path: Path) -> None:
    """Before the rate comes down a longer run of this schedule has done the very same."""
    config = replace(CONFIG, schedule="wsd", warmup=0.0, eval_every=3)
    longer = replace(config, steps=11)
    interrupted(tmp_path / "a", longer, at=8, of="loss")
    run_whole(tmp_path / "b", config)
    go_on(tmp_path / "a", config)
    found, wanted = (load_file(tmp_path / run / STATE_FILE) for run in "ab")
    assert_identical(found, wanted)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


@pytest.mark.parametrize(("schedule", "at"), [("wsd", 12), ("wsd", 2), ("linear", 6)])
def test_a_run_whose_rate_has_moved_keeps_its_length(schedule: str, at: int, tmp_path: Path) -> None:
    config = replace(CONFIG, schedule=schedule)
    interrupted(tmp_path, config, at=at, of="loss")
    with pytest.raises(CheckpointError, match=r"\(steps was 12, is 40\)"):
        resume_with(tmp_path, replace(config, steps=40))


def test_a_truncated_state_is_refused(tmp_path: Path) -> None:
    run_whole(tmp_path, CONFIG)
    data = (tmp_path / STATE_FILE).read_bytes()
    for size in (0, 7, len(data) // 2, len(data) - 1):
        (tmp_path / STATE_FILE).write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=rf"{STATE_FILE} is no whole safetensors file"):
            resume_with(tmp_path)


def test_a_file_without_a_training_state_is_refused(tmp_path: Path) -> None:
    save_file({"parameter/matrix": torch.zeros(3, 4)}, tmp_path / STATE_FILE)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} holds no training state"):
        resume_with(tmp_path)


def edit_state(out: Path, tensors: Mapping[str, Tensor | None], about: Mapping[str, str]) -> None:
    """The state with some tensors replaced, or removed (None), and some of its metadata replaced."""
    from safetensors import safe_open

    with safe_open(out / STATE_FILE, framework="pt") as file:
        kept = {name: file.get_tensor(name).clone() for name in file.keys()} | dict(tensors)  # noqa: SIM118
        metadata = {**file.metadata(), **about}
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, out / STATE_FILE, metadata)


@pytest.mark.parametrize(
    ("tensors", "about", "sentence"),
    [
        ({"parameter/vector": None}, {}, "lacks key parameter/vector"),
        ({"parameter/vector": torch.zeros(5)}, {}, "vector has shape (5,), needed is (4,)"),
        ({"exp_avg/vector": None}, {}, "vector"),
        ({"exp_avg_sq/vector": torch.zeros(5)}, {}, "vector"),
        ({"best/vector": torch.zeros(5)}, {}, "vector"),
        ({}, {"result": "{"}, STATE_FILE),
        ({}, {"result": '{"stage": 3}'}, STATE_FILE),
        ({}, {"setting": "["}, STATE_FILE),
    ],
    ids=["missing", "shape", "moment missing", "moment shape", "best shape", "torn result", "other result", "setting"],
)
def test_a_damaged_state_is_refused(
    tensors: dict[str, Tensor | None], about: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    run_whole(tmp_path, CONFIG)
    edit_state(tmp_path, {}, {})
    resume_with(tmp_path)  # rewriting the file is not what is refused
    edit_state(tmp_path, tensors, about)
    with pytest.raises(CheckpointError, match=re.escape(sentence)):
        resume_with(tmp_path)


# --- memory


def test_a_step_that_runs_out_of_memory_is_done_again_and_nothing_changes(tmp_path: Path) -> None:
    """Half of the gradient is there when memory runs out; it must not count twice."""
    whole = run_whole(tmp_path / "whole", CONFIG)
    parameters, micro = fresh(), MicroBatches(8)
    loss_at = noisy_loss(parameters)

    def in_parts(step: int) -> Iterator[Tensor]:
        loss = loss_at(step)
        yield loss * 0.5
        if step == 3 and micro.most > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        yield loss_at_again(loss, step)

    def loss_at_again(loss: Tensor, step: int) -> Tensor:
        torch.manual_seed(CONFIG.seed * 1_000_003 + step)
        return loss_at(step) * 0.5

    train(parameters, in_parts, CONFIG, tmp_path / "parts", evaluate=distance(parameters), micro=micro)
    assert micro.most == 2
    for name, tensor in tensors_of(parameters).items():
        assert torch.allclose(tensor, whole[name], atol=1e-6), name


def test_a_step_that_never_fits_ends_in_one_sentence_and_can_be_resumed(tmp_path: Path) -> None:
    whole = run_whole(tmp_path / "whole", CONFIG)
    parameters = fresh()
    loss_at = noisy_loss(parameters)

    def too_large(step: int) -> Tensor:
        if step == 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return loss_at(step)

    with pytest.raises(OutOfMemory, match=r"not enough memory for step 6 even with one row .*`minipeft plan`"):
        train(parameters, too_large, CONFIG, tmp_path / "run", evaluate=distance(parameters))
    assert_identical(go_on(tmp_path / "run", CONFIG), whole)


@pytest.mark.parametrize("where", ["update", "evaluation"])
def test_no_room_behind_the_gradients_is_a_sentence_too(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW makes its moments in the first update, when the gradients are there already."""
    config = replace(CONFIG, save_seconds=0.0, eval_every=3)
    parameters, full = fresh(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    evaluate = distance(parameters)

    def no_room(*given: object) -> dict[str, float]:
        raise full

    with monkeypatch.context() as patched:
        if where == "update":
            patched.setattr(torch.optim.AdamW, "step", no_room)
        with pytest.raises(OutOfMemory, match=r"after step [03] \(CUDA out of memory\)\.$"):
            train(
                parameters,
                noisy_loss(parameters),
                config,
                tmp_path / "a",
                evaluate=no_room if where == "evaluation" else evaluate,
            )
    assert_identical(go_on(tmp_path / "a", config), run_whole(tmp_path / "b", config))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    parameters = fresh()
    broken = StopsAt(noisy_loss(parameters), 2, RuntimeError)
    micro = MicroBatches(8)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train(parameters, broken, CONFIG, tmp_path, micro=micro)
    assert micro.most == 8
