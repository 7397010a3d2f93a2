"""The state of one training run: how it was asked for, how far it is, and the one file that it resumes from."""

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minipeft.batches import MicroBatches
from minipeft.distributed import ALONE, Team, is_sharded, whole
from minipeft.files import (
    CheckpointError,
    check_keys,
    check_tensor,
    open_safetensors,
    read_tensors,
    tensor_pieces,
    write_atomically,
)
from minipeft.train_config import SPIKE_WINDOW, TrainConfig

STATE_FILE = "training_state.safetensors"
METRICS_FILE = "metrics.jsonl"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter."""


@dataclass
class TrainResult:
    """What training came to; `best_score` belongs to the tensors that were kept."""

    step: int = 0
    logged: int = 0
    """The last step whose row, with its evaluation, is written; an interrupted evaluation is made up for."""
    best_step: int = 0
    best_score: float = -math.inf
    best_measured: dict[str, float] = field(default_factory=dict)
    """Everything that the best evaluation measured."""
    bad_evaluations: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    last_loss: float = math.nan
    recent: list[float] = field(default_factory=list)
    """The last losses that were no spike, up to `SPIKE_WINDOW`."""
    skipped: int = 0
    """Steps that were passed over."""
    skipped_in_a_row: int = 0
    scale: float = 2.0**16
    """What losses are multiplied by, if `scaled`; where that is too much a step is passed over, and it is halved."""
    scale_held: int = 0
    """Steps since it was last changed."""
    micro_batch: str = ""
    """What was asked of `MicroBatches`, and of how many processes."""
    rows_at_once: int = 0
    """And what came of it: another number of rows at once would round sums otherwise."""


class TrainingDiverged(ValueError):
    """The loss or its gradient became NaN or infinite."""


class TrainingState:
    """The state of one run: everything that a resumed run needs, in one file."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
        out: Path,
        setting: dict[str, object],
        team: Team = ALONE,
        micro: MicroBatches | None = None,
    ) -> None:
        self.parameters, self.config, self.out, self.setting, self.team = dict(parameters), config, out, setting, team
        self.micro = micro
        self.is_whole = True
        """Whether parameters, moments and counts are of the same step; only then they may be saved."""
        matrices = [p for p in self.parameters.values() if p.dim() >= 2]
        vectors = [p for p in self.parameters.values() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True
        )
        self.result = TrainResult()
        self.best: dict[str, Tensor] = {}
        self._saved_step = 0

    @property
    def state_path(self) -> Path:
        return self.out / STATE_FILE

    def start_anew(self) -> None:
        """Forget what an earlier run left, and save at once, so that there is always something to resume."""
        if self.team.is_writer:
            self.out.mkdir(parents=True, exist_ok=True)
            self._remove_half_written()
            for path in self.kept_states():
                path.unlink(missing_ok=True)
            write_atomically(self.out / METRICS_FILE, b"")
        self.save()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """What is broken off in here leaves a state that is of no step, and that nobody may save."""
        self.is_whole = False
        yield
        self.is_whole = True

    def diverged(self, wrong: str, step: int) -> TrainingDiverged:
        return TrainingDiverged(
            f"{wrong} at step {step + 1}. The last good state, of step {self._saved_step}, is in {self.state_path}: "
            "--resume with --skip-bad-steps goes on from it and passes over such steps; or start anew with a lower "
            f"learning rate (now {self.config.lr:g})."
        )

    def wrong_with(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step of this loss and norm of gradients; None: nothing."""
        for what, number in (("the loss", loss), ("the gradient's norm", norm)):
            if not math.isfinite(number):
                return f"{what} is {number}"
        recent = self.result.recent
        if self.config.spike is None or len(recent) < SPIKE_WINDOW:
            return None
        usual = sum(recent) / len(recent)
        if loss > usual + self.config.spike:
            return f"the loss is {loss:.3f}, {loss - usual:.3f} above the mean of the {SPIKE_WINDOW} before it,"
        return None

    def passes_over(self) -> bool:
        """Count a step that is left out, and tell whether it may be."""
        result = self.result
        if result.skipped_in_a_row >= self.config.skip_bad_steps:
            return False
        result.skipped += 1
        result.skipped_in_a_row += 1
        return True

    def note_good_step(self, loss: float) -> None:
        """Remember what is usual."""
        result = self.result
        result.recent = [*result.recent, loss][-SPIKE_WINDOW:]
        result.skipped_in_a_row = 0

    def note_evaluation(self, measured: Mapping[str, float]) -> None:
        """Keep the tensors if they are the best so far; count the evaluations that brought nothing."""
        result = self.result
        if measured["score"] > result.best_score:
            result.best_score, result.best_step, result.bad_evaluations = measured["score"], result.step, 0
            result.best_measured = dict(measured)
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            result.bad_evaluations += 1
            result.stopped_early = 0 < self.config.patience <= result.bad_evaluations

    def log(self, row: Mapping[str, object]) -> None:
        if self.team.is_writer:
            with open(self.out / METRICS_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def load_into_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def save(self) -> None:
        """Parameters, best parameters and moments, in one atomic file; those before it by their steps' names.

        What is sharded is in one piece there: each tensor comes together when its turn comes to be written.
        """
        tensors = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = moment
        if self.micro:
            self.result.micro_batch, self.result.rows_at_once = self._asked, self.micro.most
        about = {"setting": json.dumps(self.setting), "result": json.dumps(asdict(self.result))}
        pieces = tensor_pieces(tensors, about, numbers_of=whole)
        if self.team.is_writer:
            self._keep_the_last()
            self._metrics_to_disk()
            write_atomically(self.state_path, pieces)
        elif any(map(is_sharded, tensors.values())):
            deque(pieces, maxlen=0)  # bringing a tensor together takes all processes
        self.team.barrier()
        self._saved_step = self.result.step

    @property
    def _asked(self) -> str:
        return f"{self.micro.asked} in {self.team.size}" if self.micro else ""

    def kept_states(self) -> list[Path]:
        """Earlier states that are kept, oldest first."""
        stem, suffix = STATE_FILE.split(".")
        return sorted(self.out.glob(f"{stem}-*.{suffix}"))

    def _keep_the_last(self) -> None:
        """Give the state that is about to be replaced a name of its own as well, and let the oldest go."""
        stem, suffix = STATE_FILE.split(".")
        name = self.state_path.with_name(f"{stem}-{self._saved_step:09d}.{suffix}")
        if self.config.keep > 1 and self.state_path.exists() and self._saved_step < self.result.step:
            name.unlink(missing_ok=True)
            try:
                os.link(self.state_path, name)  # two names of one file
            except OSError:  # a file system that knows no such thing
                shutil.copyfile(self.state_path, name)
        for path in self.kept_states()[: -(self.config.keep - 1) or None]:
            path.unlink(missing_ok=True)

    def restore(self) -> None:
        """Go back to the saved step. Raises CheckpointError if the file is damaged or belongs to another run."""
        tensors = self._read() if self.team.is_writer else {}
        self.result, names = self.team.broadcast((self.result, set(tensors)))

        def own(name: str, like: Tensor) -> Tensor:
            return self.team.spread(tensors.get(name), like)

        for name, parameter in self.parameters.items():
            parameter.detach().copy_(own(f"parameter/{name}", parameter))
        self.best = {name: own(f"best/{name}", p) for name, p in self.parameters.items() if f"best/{name}" in names}
        for name, parameter in self.parameters.items():
            if f"step/{name}" in names:
                likes = (torch.empty((), device=parameter.device), parameter, parameter)
                self.optimizer.state[parameter] = {
                    key: own(f"{key}/{name}", like) for key, like in zip(MOMENTS, likes, strict=True)
                }
        self._saved_step = self.result.step
        if self.micro and self.result.micro_batch == self._asked:
            self.micro.go_on_with(self.result.rows_at_once)
        if self.team.is_writer:
            self._remove_half_written()
            self._cut_metrics()

    def _read(self) -> dict[str, Tensor]:
        """The tensors of the saved state, checked, and its result taken over."""
        try:
            tensors, about = read_tensors(self.state_path)
        except CheckpointError as error:
            kept = self.kept_states()
            raise CheckpointError(f"{error} An earlier state is {kept[-1]}." if kept else str(error)) from None
        try:
            setting, self.result = json.loads(about["setting"]), TrainResult(**json.loads(about["result"]))
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{self.state_path} holds no training state, or a damaged one.") from None
        self._check_setting(setting, self.state_path)
        expected = self._expected_shapes(set(tensors))
        check_keys(self.state_path, set(tensors), set(expected))
        for name, shape in expected.items():
            check_tensor(self.state_path, name, tensors[name], shape)
        return tensors

    def _expected_shapes(self, found: set[str]) -> dict[str, tuple[int, ...]]:
        """Every parameter; all of `best/` or none; a parameter that ever had a gradient has all its moments."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, parameter in self.parameters.items():
            shape = tuple(parameter.shape)
            shapes[f"parameter/{name}"] = shape
            if self.result.best_step:
                shapes[f"best/{name}"] = shape
            if any(f"{key}/{name}" in found for key in MOMENTS):
                shapes |= {f"{key}/{name}": () if key == "step" else shape for key in MOMENTS}
        return shapes

    def _remove_half_written(self) -> None:
        """A process that is killed while it saves leaves a temporary file behind."""
        for path in self.out.glob(f".{STATE_FILE}.*"):
            path.unlink(missing_ok=True)

    def _check_setting(self, saved: dict[str, object], path: Path) -> None:
        free = {setting.name for setting in fields(self.config) if not setting.compare}
        if self._is_level_in(saved):
            free.add("steps")
        keys = sorted({*saved, *self.setting} - free)
        changed = [key for key in keys if saved.get(key) != self.setting.get(key)]
        if changed:
            shown = "; ".join(f"{key} was {saved.get(key)!r}, is {self.setting.get(key)!r}" for key in changed)
            raise CheckpointError(f"{path} belongs to a run with another setting ({shown}); use another --out.")

    def _is_level_in(self, saved: Mapping[str, object]) -> bool:
        """Whether the saved step has the peak learning rate, and had it where the run was of other many steps."""
        before = saved.get("steps")
        if self.config.schedule != "wsd" or not isinstance(before, int):
            return False
        return all(
            replace(self.config, steps=steps).is_level(self.result.step) for steps in (before, self.config.steps)
        )

    def _metrics_to_disk(self) -> None:
        """The rows of a step are there before the state that does not take it again."""
        with open(self.out / METRICS_FILE, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def _cut_metrics(self) -> None:
        """Forget the rows of steps that will be taken again, and what a power cut left of one."""
        path = self.out / METRICS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if 0 < _step_of(line) <= self.result.logged]
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode("utf-8"))


def _step_of(line: str) -> int:
    """The step of a row of the metrics; 0 if it is no whole row."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0


def saved_step(out: Path) -> int | None:
    """The step that a run in this folder would be resumed from; None if there is no state, or a damaged one."""
    try:
        with open_safetensors(out / STATE_FILE) as file:
            return int(json.loads(file.metadata()["result"])["step"])
    except (FileNotFoundError, CheckpointError, KeyError, TypeError, ValueError):
        return None
