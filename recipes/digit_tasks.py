"""Eight digits, a separator, eight digits more: tasks that a GPT-2 of one layer learns in a minute.

Nothing in a text names its task. While pretraining it is drawn anew for each text, and the first digit of the answer
gives it away.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

import minipeft as mp
from minipeft.files import fingerprint
from minipeft.methods import Method
from minipeft.train import train
from minipeft.train_config import TrainConfig

SEPARATOR = 10
DEV_SEED, DEV_ROWS, TEST_SEED, TEST_ROWS = 500_000, 500, 600_000, 2000
"""Training seeds are a step's number, or a million and more."""
TASKS = {
    "ascending": lambda x: x.sort(dim=1).values,
    "descending": lambda x: x.sort(dim=1, descending=True).values,
    "plus one": lambda x: (x + 1) % 10,
    "plus two": lambda x: (x + 2) % 10,
}


@dataclass(frozen=True)
class Pretraining:
    """What a model has seen, and how it came to know it.

    `starts`: the positions that texts begin at, in equal shares, so that none is new behind a prompt of that length.
    """

    tasks: tuple[str, ...]
    layers: int
    digits: int
    starts: tuple[int, ...]
    config: TrainConfig

    @property
    def shape(self) -> mp.GPT2Config:
        """Four heads, 64 wide: 16 · 64 numbers a layer for a matrix of rank 1 beside every linear layer."""
        return mp.GPT2Config(self.layers, 4, 64, max(self.starts) + 2 * self.digits + 1, vocab_size=SEPARATOR + 1)


@dataclass(frozen=True)
class Tuning:
    """A tuned model; the share of dev digits that chose it, and of test texts, what `right` gives."""

    tuned: mp.Tuned
    dev: float
    exact: float
    by_place: list[float]


def texts(tasks: tuple[str, ...], rows: int, digits: int, seed: int) -> Int[Tensor, "B T"]:
    """Random digits, the separator, and what one of the tasks makes of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(10, (rows, digits), generator=generator)
    drawn = torch.randint(len(tasks), (rows,), generator=generator)
    y = torch.stack([TASKS[task](x) for task in tasks])[drawn, torch.arange(rows)]
    return torch.cat([x, torch.full((rows, 1), SEPARATOR), y], dim=1)


def answer_loss(logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of the digits behind the separator."""
    n = tokens.shape[1] // 2
    return F.cross_entropy(logits[:, n:-1].flatten(0, 1), tokens[:, n + 1 :].flatten())


@torch.no_grad()
def right(model: mp.GPT2 | mp.Tuned, tokens: Int[Tensor, "B T"]) -> tuple[float, list[float]]:
    """Shares: of answers that greedy writing gets wholly right; of each digit, given those before it.

    Both are read off one pass, since greedy writing goes wrong at the first digit that is not the likeliest.
    """
    n = tokens.shape[1] // 2
    same = model(tokens)[:, n:-1].argmax(-1) == tokens[:, n + 1 :]
    return float(same.all(dim=1).float().mean()), same.float().mean(dim=0).tolist()


def pretrain(plan: Pretraining, out: Path) -> mp.GPT2:
    """The model of that plan; a run in `out` that was interrupted goes on, one that is done is read."""
    model, starts, rows = mp.GPT2(plan.shape, seed=0), torch.tensor(plan.starts), plan.config.batch_size

    def loss_at(step: int) -> Tensor:
        tokens = texts(plan.tasks, rows, plan.digits, seed=step)
        positions = starts[torch.randint(len(starts), (rows, 1))] + torch.arange(tokens.shape[1])
        x = model.through_blocks(model.embed(tokens, positions, None), None, None)
        return answer_loss(model.logits(model.ln_f(x)), tokens)

    about = {"tasks": plan.tasks, "layers": plan.layers, "digits": plan.digits, "starts": plan.starts}
    train(dict(model.named_parameters()), loss_at, plan.config, out, resume=True, setting=about, label=out.name)
    return model.eval()


def tune(model: mp.GPT2, method: Method, task: str, digits: int, config: TrainConfig, out: Path) -> Tuning:
    """`method` tuned to one task, as it was when it got most digits of the dev texts; resumes as `pretrain` does."""
    tuned = mp.attach(model, method, seed=config.seed)
    dev = texts((task,), DEV_ROWS, digits, seed=DEV_SEED)

    def loss_at(step: int) -> Tensor:
        tokens = texts((task,), config.batch_size, digits, seed=1_000_000 * (1 + config.seed) + step)
        return answer_loss(tuned(tokens), tokens)

    def evaluate() -> dict[str, float]:
        exact, by_place = right(tuned, dev)
        return {"score": sum(by_place) / digits, "exact": exact}

    about = {"task": task, "model": fingerprint(*model.parameters()), "method": str(method)}
    result = train(tuned.trainable_parameters(), loss_at, config, out, evaluate=evaluate, resume=True, setting=about)
    exact, by_place = right(tuned.eval(), texts((task,), TEST_ROWS, digits, seed=TEST_SEED))
    return Tuning(tuned, result.best_score, exact, by_place)
