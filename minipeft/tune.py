"""Tune a method on a task: the defaults that sweeps found, the run, and the folder it leaves behind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipeft import sharding
from minipeft.batches import BucketedBatches, MicroBatches
from minipeft.distributed import ALONE, Team
from minipeft.evaluate import evaluate
from minipeft.files import fingerprint, write_json
from minipeft.gpt2 import GPT2
from minipeft.methods import HardPrompt, Method, Prefix, PTuning, SoftPrompt, Stack
from minipeft.plan import check_micro_batch, rows_at_once
from minipeft.rehearsal import Work
from minipeft.seeds import check_seed
from minipeft.tasks import Encoder, Task, collate
from minipeft.tasks.base import Encoded
from minipeft.train import train
from minipeft.train_config import TrainConfig
from minipeft.training_state import TrainResult
from minipeft.tuned import Tuned, attach

REPORT_FILE = "report.json"

LEARNING_RATES: Mapping[str, float] = {
    "soft_prompt": 0.01,
    "p_tuning": 1e-3,
    "p_tuning_mlp": 3e-3,
    "prefix": 0.03,
    "prefix_mlp": 1e-3,
    "lora": 3e-3,
    "ia3": 0.1,
    "adapter": 1e-3,
    "llama_adapter": 0.01,
    "bitfit": 3e-3,
    "full": 3e-4,
}
"""The best of each method's sweep on movie sentiment with the nano model: `docs/sweep.md`."""


@dataclass(frozen=True)
class TuneConfig:
    """How long and how to tune; `lr` None takes the method's own default."""

    steps: int = 600
    batch_size: int = 8
    lr: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.0
    eval_every: int = 100
    patience: int = 0
    save_seconds: float = 60.0
    seed: int = 0
    truncate: bool = False
    room: int | None = None
    """Positions that a text may take, if fewer than the method leaves: so that several methods read the same."""
    micro_batch: int | str = "whole"
    """Rows at once, "whole": the batch, or "auto": as many as `minipeft.plan` says fit; fewer if memory runs out."""
    time_limit: float | None = None
    keep: int = 1
    spike: float | None = None
    skip_bad_steps: int = 0
    shard: bool = False
    """Whether the processes of a team share the weights, too, where all are trained; the writer gets them back."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_micro_batch(self.micro_batch)


def default_lr(method: Method) -> float:
    """The learning rate that a sweep found for this method; of a stack, the lowest of its methods' rates.

    Raises ValueError if it has nothing to train.
    """
    if isinstance(method, Stack):
        return min(map(default_lr, method.methods))
    key = method.name
    if isinstance(method, Prefix) and method.reparam is not None:
        key = "prefix_mlp"
    if isinstance(method, PTuning) and method.encoder != "lstm":
        key = "p_tuning_mlp" if method.encoder == "mlp" else "soft_prompt"
    if key not in LEARNING_RATES:
        raise ValueError(f"{method.name} has nothing to train; use it with eval or generate.")
    return LEARNING_RATES[key]


def encoder_for(tuned: Tuned, task: Task, truncate: bool = False, room: int | None = None) -> Encoder:
    """How this tuned model reads the task's examples: its hard prompt, and the room its prompt or prefix leaves.

    `room`: at most so many positions.
    """
    template = tuned.method.template if isinstance(tuned.method, HardPrompt) else None
    return Encoder(task, tuned.base.tokenizer, min(tuned.room, room or tuned.room), template, truncate)


def tune(
    model: GPT2,
    method: Method,
    task: Task,
    config: TuneConfig,
    out: str | Path,
    *,
    resume: bool = False,
    watch: Callable[[Mapping[str, object]], None] = lambda row: None,
    team: Team = ALONE,
) -> tuple[Tuned, TrainResult]:
    """Tune `method` on `task`, choosing the best step on dev, and save the adapter with `report.json` in `out`.

    The processes of a `team` share each batch.
    Raises ValueError if the method has nothing to train or an example is too long, and what `train` raises.
    """
    usual_lr = default_lr(method)
    lr = usual_lr if config.lr is None else config.lr
    method = _with_labels(method, task)
    tuned = attach(model, method, seed=config.seed).train()
    if config.shard:
        sharding.shard_tuned(tuned, team)
    encoder = encoder_for(tuned, task, config.truncate, config.room)
    rows = [encoder.encode(example) for example in task.splits["train"]]
    dev = [encoder.encode(example) for example in task.splits["dev"]]
    for example in task.splits["test"]:  # say now, not after an hour, that a text is too long
        encoder.encode(example)
    labels = [example.target for example in task.splits["train"]] if task.labels else []
    order = BucketedBatches([len(row.ids) for row in rows], config.batch_size, config.seed, labels)

    loss = team.loss_of(tuned.loss, tuned.trainable_parameters().values())

    def loss_at(step: int) -> Iterator[Tensor]:
        for share in team.shares([rows[row] for row in order(step)], micro, _scored):
            batch = collate(share.rows, encoder.tokenizer.eot).to(model.device)
            yield share.weight * loss(batch.tokens, batch.labels, batch.attention_mask, last=share.last)

    def measure() -> dict[str, float]:
        found = evaluate(tuned, encoder, task.splits["dev"])
        return {"score": found.score, "dev_loss": found.loss} | (
            {"dev_accuracy": found.accuracy} if task.labels else {}
        )

    settings = TrainConfig(
        steps=config.steps,
        lr=lr,
        batch_size=config.batch_size,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        eval_every=config.eval_every,
        patience=config.patience,
        save_seconds=config.save_seconds,
        seed=config.seed,
        scaled=(model.activations or model.dtype) == torch.float16,
        time_limit=config.time_limit,
        keep=config.keep,
        spike=config.spike,
        skip_bad_steps=config.skip_bad_steps,
    )
    longest, most_scored = max(len(row.ids) for row in rows), max(row.scored for row in rows)
    work = Work.of(model, method, team.most_rows(config.batch_size), longest, most_scored)
    device = team.device or model.device
    at_once = team.from_writer(lambda: rows_at_once(config.micro_batch, work, device, team.local_size))
    micro = MicroBatches(at_once, config.micro_batch)
    result = train(
        tuned.trainable_parameters(),
        loss_at,
        settings,
        out,
        evaluate=measure,
        resume=resume,
        setting={
            "method": method.name,
            **_settings(method),
            "task": task.name,
            "model": fingerprint(*model.parameters()),
            "activations": str(model.activations or model.dtype).removeprefix("torch."),
            "data": fingerprint(*(row.ids for row in rows), [row.target_starts for row in rows]),
            "dev": fingerprint(*(row.ids for row in dev), [row.target_starts for row in dev]),
        },
        label=f"tune {method.name}",
        micro=micro,
        watch=watch,
        team=team,
    )
    if config.shard:
        tuned = sharding.tuned_in_one_piece(tuned, team)
    if team.is_writer:
        tuned.eval().save(out)
        report = _report(tuned, task, settings, result, micro.most)
        write_json(Path(out) / REPORT_FILE, {**report, "tokens": order.length_of(result.step)})
    return tuned.eval(), result


def _scored(rows: Sequence[Encoded]) -> int:
    return sum(row.scored for row in rows)


def _with_labels(method: Method, task: Task) -> Method:
    """A soft prompt that starts from the labels, and has none, gets the task's."""
    if isinstance(method, Stack):
        return Stack(tuple(_with_labels(part, task) for part in method.methods))
    if isinstance(method, SoftPrompt) and method.init == "labels" and not method.labels:
        return replace(method, labels=tuple(task.word(label).strip() for label in task.labels))
    return method


def _settings(method: Method) -> dict[str, Any]:
    """A method's settings, of a stack those of each of its methods with its name."""
    if isinstance(method, Stack):
        return {"methods": [{"name": part.name, **_settings(part)} for part in method.methods]}
    return asdict(method)


def _report(tuned: Tuned, task: Task, settings: TrainConfig, result: TrainResult, rows_at_once: int) -> dict[str, Any]:
    return {
        "method": {"name": tuned.method.name, **_settings(tuned.method)},
        "task": task.name,
        "trainable": tuned.num_trainable(),
        "kept": tuned.num_kept(),
        "steps": result.step,
        "best_step": result.best_step,
        "seconds": round(result.seconds, 1),
        "rows_at_once": rows_at_once,
        "dev_loss": result.best_measured["dev_loss"],
        "dev_accuracy": result.best_measured.get("dev_accuracy"),
        "settings": asdict(settings),
    }
