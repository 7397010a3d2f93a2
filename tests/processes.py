"""What the processes of `test_distributed.py` do; each run can also be done by one process, to compare with.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.processes JOB INPUTS OUT
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import minipeft as mp
import minipeft.pretrain
import minipeft.train
import minipeft.tune
from minipeft.batches import MicroBatches
from minipeft.config import GPT2Config
from minipeft.distributed import Team, joined, whole
from minipeft.gpt2 import GPT2
from minipeft.methods import Method
from minipeft.pretrain import PretrainConfig
from minipeft.sharding import shard
from minipeft.tasks import task_from_file
from minipeft.traffic import Traffic
from minipeft.train import train
from minipeft.train_config import TrainConfig
from minipeft.training_state import TrainResult
from minipeft.tune import TuneConfig
from tests.models import random_model
from tests.tuning import TINY_METHODS, labelled_batch

STEPS, STOP = 10, 4
SHAPE = GPT2Config(n_layer=3, n_head=2, n_embd=32, n_positions=32, vocab_size=512)
METHODS: dict[str, Method] = {
    "soft prompt": mp.SoftPrompt(length=4),
    "prefix by MLP": mp.Prefix(length=4, reparam=8),
    "LoRA": mp.LoRA(rank=2),
    "full": mp.FullFinetuning(),
}
ALL_METHODS = {**TINY_METHODS, **METHODS}


def run_tune(name: str, inputs: Path, out: Path, team: Team, batch_size: int = 5, **how: Any) -> None:
    """Tune on texts whose labels are of one to five tokens."""
    task = task_from_file(inputs / "ragged.tsv", "text", "label", "text")
    config = TuneConfig(STEPS, batch_size, lr=0.03, eval_every=3, weight_decay=0.01)
    config = replace(config, **how)
    model = GPT2.from_pretrained(inputs / "model").use_kernels()
    minipeft.tune.tune(model, METHODS[name], task, config, out, team=team)


def run_pretrain(inputs: Path, out: Path, team: Team, batch_size: int = 5, resume: bool = False, **how: Any) -> None:
    """Train from nothing, with a weight decay and a clip that matter."""
    settings = TrainConfig(STEPS, 0.01, batch_size, weight_decay=0.1, clip=0.5, eval_every=3)
    config = PretrainConfig(SHAPE, **how)
    minipeft.pretrain.pretrain([inputs / "texts.txt"], config, settings, out, team=team, resume=resume)


@contextmanager
def interrupted(at: int, by: bool) -> Iterator[None]:
    """Within this, training is sent Ctrl-C at a step, in the processes where `by` is true."""
    usual = minipeft.pretrain.train

    def stopping_train(parameters: Any, loss_at: Callable[[int], Any], *given: Any, **named: Any) -> Any:
        def stopping(step: int) -> Any:
            if step == at and by:
                os.kill(os.getpid(), signal.SIGINT)
            return loss_at(step)

        return usual(parameters, stopping, *given, **named)

    minipeft.pretrain.train = stopping_train
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        minipeft.pretrain.train = usual


def taken_from(parameters: dict[str, Any]) -> dict[str, Tensor]:
    """The gradients that are there, which are then forgotten."""
    found = {name: whole(p.grad).clone() for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return found


def farthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference, as a share of the largest number."""
    largest = max(float(tensor.abs().max()) for tensor in wanted.values())
    return max(float((found[name] - tensor).abs().max()) for name, tensor in wanted.items()) / largest


def summed_gradients(method: Method, team: Team) -> dict[str, Any]:
    """How far gradients that the team sums are from those of the whole batch, and what was sent for them."""
    tuned = mp.attach(random_model(), method).train()
    parameters = tuned.trainable_parameters()
    loss = team.loss_of(tuned.loss, parameters.values())
    apart = []
    for seed in range(3):  # the second time DistributedDataParallel also agrees on the order of gradients
        tokens, labels = labelled_batch(seed)
        rows = list(zip(tokens, labels, strict=True))
        tuned.loss(tokens, labels).backward()
        wanted = taken_from(parameters)
        with Traffic() as traffic:
            for share in team.shares(rows, MicroBatches(1), scored=len):
                mine = [torch.stack(part) for part in zip(*share.rows, strict=True)]
                (share.weight * loss(*mine, last=share.last)).backward()
        apart.append(farthest(taken_from(parameters), wanted))
    return {"apart": max(apart), "trained": tuned.num_trainable(), "bytes": dict(traffic.bytes)}


def sharded_and_whole(team: Team, change: Callable[[GPT2], Any]) -> dict[str, float]:
    """How far sharded weights are from whole ones, both computed in some way: their gradients, and, before and after a
    step, what they evaluate to."""
    plain, sharded = (random_model(vocab_size=67).train() for _ in range(2))
    change(plain), change(sharded)
    shard(sharded, team)
    tokens, labels = labelled_batch()
    evaluated = []
    for _ in range(2):
        evaluated.append(farthest(*({"logits": evaluate(model, tokens)} for model in (sharded, plain))))
        plain.loss(tokens, labels).backward()
        mine = team.rows(tokens), team.rows(labels)
        (sharded.loss(*mine) * len(mine[0]) / len(tokens)).backward()
        found, wanted = (taken_from(dict(model.named_parameters())) for model in (sharded, plain))
        for parameter in (*plain.parameters(), *sharded.parameters()):
            parameter.detach().mul_(1.1)
    return {"gradients": farthest(found, wanted), "evaluated": max(evaluated)}


@torch.no_grad()
def evaluate(model: GPT2, tokens: Tensor) -> Tensor:
    """Logits as evaluations ask for them."""
    logits = model.eval().logits(model.hidden(tokens))
    model.train()
    return logits


def each(team: Team, number: float) -> list[float]:
    """What the number is in the first process, and in the second."""
    return [team.sum(number * (team.rank == rank)) for rank in range(2)]


def agreed(out: Path, team: Team) -> dict[str, Any]:
    """What each process comes to where the processes draw, measure, and find out other things."""
    parameter, second = nn.Parameter(torch.ones(2)), team.rank == 1
    drawn: list[float] = []

    def run(name: str, loss_at: Callable[[int], Tensor], score: float = 0.0, **settings: Any) -> TrainResult:
        config = TrainConfig(steps=6, lr=0.01, eval_every=1, **settings)
        steps = iter(range(6))
        measure = (lambda: {"score": score * next(steps)}) if score else None
        return train({"parameter": parameter}, loss_at, config, out / name, evaluate=measure, team=team)

    def noted(step: int) -> Tensor:
        drawn.append(float(torch.rand(())))
        return parameter.sum()

    def long(step: int) -> Tensor:
        """The second process's clock runs away in the third step."""
        if second and step == 2:
            clock = time.monotonic
            minipeft.train.time = SimpleNamespace(monotonic=lambda: clock() + 1000)
        return parameter.sum()

    best = run("best", noted, score=1.0 if second else -1.0).best_step
    steps = run("long", long, time_limit=500.0).step
    minipeft.train.time = time
    scale = run("scaled", lambda step: (parameter * (1e36 if second else 1.0)).sum(), scaled=True).scale
    told = {"best step": best, "steps": steps, "scale": scale}
    return {"drawn": [each(team, number) for number in drawn], **{what: each(team, n) for what, n in told.items()}}


WAYS: dict[str, Callable[[GPT2], Any]] = {
    "plain": lambda model: model,
    "all kernels": lambda model: model.use_kernels(),
    "mixed products": lambda model: model.use_products("mixed"),
    "chunked loss": lambda model: model.use_loss("chunked"),
    "checkpointing": lambda model: model.use_kernels().use_checkpointing(),
    "bfloat16 activations": lambda model: model.use_activations(torch.bfloat16).use_kernels(),
}


def two(inputs: Path, out: Path, team: Team) -> None:
    """Everything that two processes are enough for."""
    told = {name: summed_gradients(method, team) for name, method in ALL_METHODS.items()}
    ways = {name: sharded_and_whole(team, change) for name, change in WAYS.items()}
    for name in METHODS:
        run_tune(name, inputs, out / name, team, micro_batch=1)
    run_tune("full", inputs, out / "full, sharded", team, micro_batch=2, shard=True)
    run_pretrain(inputs, out / "pretrain", team, micro_batch=2)
    run_pretrain(inputs, out / "pretrain, sharded", team, micro_batch=1, shard=True, checkpointing=True, sample="The")
    for name, sharded in (("stopped", False), ("stopped, sharded", True)):
        with interrupted(at=STOP, by=team.rank == 1):
            run_pretrain(inputs, out / name, team, shard=sharded)
    agreements = agreed(out / "agreed", team)
    if team.is_writer:
        (out / "told.json").write_text(json.dumps({"summed": told, "sharded": ways, "agreed": agreements}))


def four(inputs: Path, out: Path, team: Team) -> None:
    """More processes than rows, uneven parts, and a run that two processes began."""
    run_pretrain(inputs, out / "uneven", team, batch_size=6, micro_batch=1)
    run_pretrain(inputs, out / "fewer rows", team, batch_size=3)
    run_pretrain(inputs, out / "fewer rows, sharded", team, batch_size=3, shard=True)
    run_tune("prefix by MLP", inputs, out / "tune, fewer rows", team, batch_size=3)
    run_pretrain(inputs, out / "stopped", team, shard=True, resume=True)


def until_stopped(inputs: Path, out: Path, team: Team) -> None:
    """Steps without end, from where an earlier run was stopped."""
    settings = TrainConfig(10_000, 0.01, 5, warmup=1e-3, save_seconds=0.0)
    minipeft.pretrain.pretrain([inputs / "texts.txt"], PretrainConfig(SHAPE), settings, out, team=team, resume=True)


JOBS = {"two": two, "four": four, "until_stopped": until_stopped}

if __name__ == "__main__":
    job, inputs, out = sys.argv[1:]
    torch.set_num_threads(1)
    with joined("cpu") as team:
        JOBS[job](Path(inputs), Path(out), team)
