"""The training loop: pretraining, finetuning and tuning differ by what they pass to it, not by copies of it."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from minipeft.files import CheckpointError, read_tensors, save_tensors
from minipeft.kernels.allocator import keep_freed_memory
from minipeft.progress import progress_bar

STATE_FILE = "training_state.safetensors"
METRICS_FILE = "metrics.jsonl"

Evaluation = Callable[[], Mapping[str, float]]
"""Measures the model as it is; `score` decides which step was best, and higher is better."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Learning rates are per step of AdamW; `warmup` and `final_lr` are shares of steps and of `lr`."""

    steps: int
    lr: float
    batch_size: int = 8
    warmup: float = 0.05
    schedule: str = "linear"
    final_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    eval_every: int = 0
    patience: int = 0
    """Evaluations without a better score after which training stops; 0: never."""
    save_seconds: float = field(default=60.0, compare=False)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch size must be at least 1, got {self.steps} and {self.batch_size}.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"the learning rate must be a positive number, got {self.lr}.")
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; it can be 'linear' or 'cosine'.")

    def lr_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …: up linearly while warming up, then down to `final_lr` of it."""
        warmup = round(self.warmup * self.steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        falling = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.lr * (self.final_lr + (1 - self.final_lr) * falling)


@dataclass
class TrainResult:
    """What training came to; `best_score` belongs to the tensors that were kept."""

    step: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    bad_evaluations: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    last_loss: float = math.nan


class TrainingDiverged(ValueError):
    """The loss became NaN or infinite."""


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

    Raises TrainingDiverged on a loss that is no number, CheckpointError if the state in `out` cannot be resumed, and
    passes on KeyboardInterrupt after saving.
    """
    run = _Run(parameters, config, Path(out), json.loads(json.dumps({**asdict(config), **(setting or {})})))
    if resume and (run.out / STATE_FILE).exists():
        run.restore()
    else:
        run.start_anew()
    keep_freed_memory()
    random_state = torch.get_rng_state()
    try:
        _loop(run, loss_at, evaluate, label)
    except KeyboardInterrupt:
        run.save()
        raise
    finally:
        torch.set_rng_state(random_state)
    run.save()
    if run.best:
        run.load_into_parameters(run.best)
    return run.result


def _loop(run: "_Run", loss_at: Callable[[int], Tensor], evaluate: Evaluation | None, label: str) -> None:
    config, result = run.config, run.result
    started, seconds_before = time.monotonic(), result.seconds
    saved = started
    with progress_bar(label, config.steps, result.step) as show:
        while result.step < config.steps and not result.stopped_early:
            loss = _step(run, loss_at, result.step)
            result.step += 1
            result.seconds = seconds_before + time.monotonic() - started
            row = {"step": result.step, "loss": loss, "lr": config.lr_at(result.step - 1)}
            if evaluate and (
                result.step == config.steps or (config.eval_every and result.step % config.eval_every == 0)
            ):
                row.update(evaluate())
                run.note_score(row["score"])
            run.log({**row, "seconds": round(result.seconds, 3)})
            show(f"loss {loss:.3f}" + (f", best {result.best_score:.3f}" if run.best else ""))
            if time.monotonic() - saved > config.save_seconds:
                run.save()
                saved = time.monotonic()


def _step(run: "_Run", loss_at: Callable[[int], Tensor], step: int) -> float:
    """One forward, backward and update; returns the loss in nats."""
    torch.manual_seed(run.config.seed * 1_000_003 + step)  # dropout depends on the step alone
    loss = loss_at(step)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss is {value} at step {step + 1}; lower the learning rate (now {run.config.lr:g}). "
            f"The last good state is in {run.out / STATE_FILE}."
        )
    loss.backward()
    if run.config.clip:
        nn.utils.clip_grad_norm_(run.parameters.values(), run.config.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.lr_at(step)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.result.last_loss = value
    return value


class _Run:
    """The state of one run: everything that a resumed run needs, in one file."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: TrainConfig, out: Path, setting: dict[str, object]
    ) -> None:
        self.parameters, self.config, self.out, self.setting = dict(parameters), config, out, setting
        matrices = [p for p in self.parameters.values() if p.dim() >= 2]
        vectors = [p for p in self.parameters.values() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True
        )
        self.result = TrainResult()
        self.best: dict[str, Tensor] = {}

    def start_anew(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / METRICS_FILE).write_text("")

    def note_score(self, score: float) -> None:
        """Keep the tensors if they are the best so far; count the evaluations that brought nothing."""
        result = self.result
        if score > result.best_score:
            result.best_score, result.best_step, result.bad_evaluations = score, result.step, 0
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            result.bad_evaluations += 1
            result.stopped_early = 0 < self.config.patience <= result.bad_evaluations

    def log(self, row: Mapping[str, object]) -> None:
        with open(self.out / METRICS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def load_into_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def save(self) -> None:
        """Parameters, best parameters and moments, in one atomic file."""
        tensors = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = moment
        about = {"setting": json.dumps(self.setting), "result": json.dumps(asdict(self.result))}
        save_tensors(self.out / STATE_FILE, tensors, about)

    def restore(self) -> None:
        """Go back to the saved step. Raises CheckpointError if the file belongs to another run."""
        path = self.out / STATE_FILE
        tensors, about = read_tensors(path)
        if "setting" not in about or "result" not in about:
            raise CheckpointError(f"{path} holds no training state.")
        self._check_setting(json.loads(about["setting"]), path)
        self.result = TrainResult(**json.loads(about["result"]))
        for name, parameter in self.parameters.items():
            saved = tensors.get(f"parameter/{name}")
            if saved is None or saved.shape != parameter.shape:
                found = "is missing" if saved is None else f"has shape {tuple(saved.shape)}"
                raise CheckpointError(f"{path}: {name} {found}, needed is {tuple(parameter.shape)}.")
        self.load_into_parameters({name: tensors[f"parameter/{name}"] for name in self.parameters})
        self.best = {n: tensors[f"best/{n}"].to(p.device) for n, p in self.parameters.items() if f"best/{n}" in tensors}
        for name, parameter in self.parameters.items():
            moments = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if self.result.step}
            self.optimizer.state[parameter] = {
                k: m if k == "step" else m.to(parameter.device) for k, m in moments.items()
            }
        self._cut_metrics()

    def _check_setting(self, saved: dict[str, object], path: Path) -> None:
        free = {"save_seconds"}
        changed = [key for key in sorted({*saved, *self.setting} - free) if saved.get(key) != self.setting.get(key)]
        if changed:
            shown = "; ".join(f"{key} was {saved.get(key)!r}, is {self.setting.get(key)!r}" for key in changed)
            raise CheckpointError(f"{path} belongs to a run with another setting ({shown}); use another --out.")

    def _cut_metrics(self) -> None:
        """Forget the rows of steps that will be taken again."""
        path = self.out / METRICS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.write_text("".join(f"{line}\n" for line in lines[: self.result.step]), encoding="utf-8")
