"""What a tuned model is held against: the commonest label, the words a person would try, and a linear probe."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minipeft.asked import Asked
from minipeft.batches import BucketedBatches
from minipeft.compare.contenders import BEST_PROMPT, CALIBRATED, MAJORITY
from minipeft.evaluate import Score, by_length, label_numbers, majority_label, score_labels
from minipeft.generate import left_padded
from minipeft.gpt2 import GPT2
from minipeft.tasks import Encoder, Example, Task
from minipeft.train import train
from minipeft.train_config import TrainConfig
from minipeft.training_state import TrainResult


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
    def prompt(self) -> str | None:
        """The prompt that dev chose."""
        return self.asked.template if self.asked else None

    @property
    def nbytes(self) -> int:
        """What one more task costs."""
        return self.asked.nbytes(self.calibrated) if self.asked else 0

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
        rows = task.splits["train"]
        self._train = self._read(rows)
        self._lengths = [len(self.encoder.encode(example).ids) for example in rows]
        self._mean, self._scale = self._train.mean(dim=0), self._train.std(dim=0) + 1e-6

    def fit(self, config: TrainConfig, out: Path) -> TrainResult:
        """Train it as methods are trained: the same batches in the same order, the best step on dev kept."""
        labels, dev, order = self.task.labels, self.task.splits["dev"], self.order(config)
        features, answers = self._scaled(self._train), label_numbers(labels, self.task.splits["train"])
        on_dev, dev_answers = self._scaled(self._read(dev)), label_numbers(labels, dev)

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
        labels = [example.target for example in self.task.splits["train"]]
        return BucketedBatches(self._lengths, config.batch_size, config.seed, labels)

    @torch.no_grad()
    def answer(self, examples: Sequence[Example]) -> Float[Tensor, "N labels"]:
        """Log-probabilities of the labels."""
        return self.layer(self._scaled(self._read(examples))).log_softmax(dim=1)

    def _scaled(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return (features - self._mean) / self._scale

    @torch.no_grad()
    def _read(self, examples: Sequence[Example]) -> Float[Tensor, "N D"]:
        """The final hidden states of texts, pooled; padding counts for nothing."""
        found = torch.zeros(len(examples), self.model.config.n_embd)
        ids = [self.encoder.context(example) for example in examples]
        for rows in by_length(ids):
            tokens, real = left_padded([ids[row] for row in rows], 0, self.model.device)
            hidden = self.model.hidden(tokens, real).float()
            mean = (hidden * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
            found[rows] = (hidden[:, -1] if self.pool == "last" else mean).cpu()
        return found
