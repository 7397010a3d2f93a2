"""What a tuned model is held against: the commonest label, the words a person would try, and a linear probe."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minipeft.asked import Asked
from minipeft.batches import BucketedBatches
from minipeft.compare.contenders import BEST_PROMPT, CALIBRATED, MAJORITY
from minipeft.evaluate import Score, majority_label, score_labels
from minipeft.gpt2 import GPT2
from minipeft.tasks import Encoder, Example, Task
from minipeft.train import train
from minipeft.train_config import TrainConfig
from minipeft.training_state import TrainResult

READ_AT_ONCE = 64


class Untrained:
    """One of the contenders that have no steps, on one model and task with labels; dev chooses among prompts."""

    def __init__(self, model: GPT2, task: Task, method: str) -> None:
        self.task, self.calibrated = task, method == CALIBRATED
        self.asked: Asked | None = None
        dev = task.splits["dev"]
        if method != MAJORITY:
            many = method in (BEST_PROMPT, CALIBRATED)
            tried = [Asked(model, task, one) for one in (task.hard_prompts if many else ["{text}" + task.joint])]
            self.asked = max(tried, key=lambda asked: asked.score(dev, self.calibrated).score)
        self.encoder = Encoder(task, model.tokenizer, model.config.n_positions, truncate=True)

    @property
    def prompt(self) -> str:
        """The prompt that dev chose."""
        return self.asked.template if self.asked else ""

    def answers(self, examples: Sequence[Example]) -> Float[Tensor, "N labels"]:
        """A number for each label, of which the largest wins."""
        if self.asked:
            return self.asked.answers(examples, self.calibrated)
        commonest = majority_label(self.task)
        answer = torch.tensor([[float(label == commonest) for label in self.task.labels]])
        return answer.expand(len(examples), -1)

    def score(self, examples: Sequence[Example], answers: Float[Tensor, "N labels"]) -> Score:
        """How many answers are right, and the loss, where there is one."""
        score = score_labels(self.encoder, examples, answers)
        return score if self.asked and not self.calibrated else Score(float("nan"), score.examples, score.accuracy)


class LinearProbe:
    """Logistic regression on what the frozen model makes of a text: the usual question of what it knows already.

    pool: "last", the final hidden state at the last token of the text with its joint (" I thought it was"), or "mean",
    the mean over all of its tokens. `room`: positions that the text may take, as many as every contender has.
    Trained numbers: labels·(D + 1). Source: Alain & Bengio 2017.
    """

    def __init__(self, model: GPT2, task: Task, pool: str, room: int | None = None) -> None:
        self.model, self.task, self.pool = model, task, pool
        self.encoder = Encoder(task, model.tokenizer, room or model.config.n_positions, truncate=True)
        self.layer = nn.Linear(model.config.n_embd, len(task.labels))
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self._train = self._read(task.splits["train"])
        self._mean, self._scale = self._train.mean(dim=0), self._train.std(dim=0) + 1e-6

    def fit(self, config: TrainConfig, out: Path) -> TrainResult:
        """Train it as methods are trained: the same batches in the same order, the best step on dev kept."""
        rows, order = self.task.splits["train"], self.order(config)
        features, answers = self._scaled(self._train), self._answers(rows)
        dev = self.task.splits["dev"]
        on_dev, dev_answers = self._scaled(self._read(dev)), self._answers(dev)

        def loss_at(step: int) -> Float[Tensor, ""]:
            batch = order(step)
            return nn.functional.cross_entropy(self.layer(features[batch]), answers[batch])

        @torch.no_grad()
        def measure() -> dict[str, float]:
            found = self.layer(on_dev)
            accuracy = float((found.argmax(dim=1) == dev_answers).float().mean())
            loss = float(nn.functional.cross_entropy(found, dev_answers))
            return {"score": Score(loss, len(dev), accuracy).score, "dev_loss": loss, "dev_accuracy": accuracy}

        return train(dict(self.layer.named_parameters()), loss_at, config, out, evaluate=measure, label="linear probe")

    def order(self, config: TrainConfig) -> BucketedBatches:
        """The batches of `tune`: of the lengths that texts have with their labels."""
        rows = self.task.splits["train"]
        lengths = [len(self.encoder.encode(example).ids) for example in rows]
        return BucketedBatches(lengths, config.batch_size, config.seed, [example.target for example in rows])

    def tokens(self, config: TrainConfig) -> int:
        """How many tokens it read for its steps, as `tune` counts them."""
        lengths = [len(self.encoder.encode(example).ids) for example in self.task.splits["train"]]
        order = self.order(config)
        return sum(lengths[row] for step in range(config.steps) for row in order(step))

    @torch.no_grad()
    def answer(self, examples: Sequence[Example]) -> Float[Tensor, "N labels"]:
        """Log-probabilities of the labels."""
        return self.layer(self._scaled(self._read(examples))).log_softmax(dim=1)

    def _answers(self, examples: Sequence[Example]) -> Int[Tensor, "N"]:
        return torch.tensor([self.task.labels.index(example.target) for example in examples])

    def _scaled(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return (features - self._mean) / self._scale

    @torch.no_grad()
    def _read(self, examples: Sequence[Example]) -> Float[Tensor, "N D"]:
        """The final hidden states of texts, pooled; padding on the right counts for nothing."""
        found = torch.zeros(len(examples), self.model.config.n_embd)
        ids = [self.encoder.context(example) for example in examples]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for start in range(0, len(order), READ_AT_ONCE):
            rows = order[start : start + READ_AT_ONCE]
            lengths = torch.tensor([len(ids[row]) for row in rows])
            tokens = nn.utils.rnn.pad_sequence([torch.tensor(ids[row]) for row in rows], batch_first=True)
            real = torch.arange(tokens.shape[1]) < lengths[:, None]
            hidden = self.model.hidden(tokens.to(self.model.device), real.to(self.model.device)).float().cpu()
            if self.pool == "last":
                found[rows] = hidden[torch.arange(len(rows)), lengths - 1]
            else:
                found[rows] = (hidden * real[:, :, None]).sum(dim=1) / lengths[:, None]
        return found
