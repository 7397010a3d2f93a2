"""How to train: what pretraining, finetuning and tuning have in common, checked."""

import math
from dataclasses import dataclass, field

from minipeft.seeds import check_seed

SPIKE_WINDOW = 20
"""Losses whose mean tells what is usual; fewer tell nothing."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Learning rates are per step of AdamW; `warmup` and `final_lr` are shares of steps and of `lr`.

    What does not count in a comparison (`compare=False`) may be another when a run is resumed.
    """

    steps: int
    lr: float
    batch_size: int = 8
    warmup: float = 0.05
    schedule: str = "linear"
    """"linear", "cosine", or "wsd": up, level, and only for the last `decay` of the steps down (Hu et al. 2024)."""
    decay: float = 0.2
    final_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    eval_every: int = 0
    patience: int = 0
    """Evaluations without a better score after which training stops; 0: never."""
    seed: int = 0
    scaled: bool = False
    """Whether losses are scaled up before gradients are taken, so that fp16 can hold them."""
    save_seconds: float = field(default=60.0, compare=False)
    keep: int = field(default=1, compare=False)
    """How many of the last saved states to keep."""
    time_limit: float | None = field(default=None, compare=False)
    """Seconds after which to stop, as if interrupted; a resumed run has as many again."""
    spike: float | None = field(default=None, compare=False)
    """Nats above the mean of the last `SPIKE_WINDOW` losses that make a loss a spike."""
    skip_bad_steps: int = field(default=0, compare=False)
    """How many steps in a row may be passed over for a spike, or a loss or gradient that is no number."""

    def __post_init__(self) -> None:
        leasts = {
            "steps": 1,
            "batch_size": 1,
            "eval_every": 0,
            "patience": 0,
            "clip": 0,
            "keep": 1,
            "skip_bad_steps": 0,
        }
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("time_limit", "spike"):
            given = getattr(self, name)
            if given is not None and not given > 0:
                raise ValueError(f"{name} must be more than 0, got {given}.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"the learning rate must be a positive number, got {self.lr}.")
        shares = {name: getattr(self, name) for name in ("warmup", "decay", "final_lr")}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {share}.")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must be a number of at least 0, got {self.weight_decay}.")
        if self.schedule not in ("linear", "cosine", "wsd"):
            raise ValueError(f"schedule is {self.schedule!r}; it can be 'linear', 'cosine' or 'wsd'.")
        check_seed(self.seed)

    def lr_at(self, step: int) -> float:
        """The learning rate of step 0, 1, …: up linearly while warming up, then down to `final_lr` of it."""
        warmup, falls = self._bends
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = max(0.0, (step - falls) / max(1, self.steps - falls))
        falling = (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        return self.lr * (self.final_lr + (1 - self.final_lr) * falling)

    def is_level(self, step: int) -> bool:
        """Whether the steps before this one rose to the peak, and none has come down from it yet."""
        warmup, falls = self._bends
        return warmup <= step <= falls

    @property
    def _bends(self) -> tuple[int, int]:
        """The first step that does not rise, and the first that may be lower than the one before it."""
        warmup = round(self.warmup * self.steps)
        falls = max(warmup, self.steps - round(self.decay * self.steps)) if self.schedule == "wsd" else warmup
        return warmup, falls
