"""What a tuned model is held against: the commonest label, the words a person would try, and a linear probe."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minipeft.asked import Asked
from minipeft.batches import BucketedBatches
from minipeft.compare.contenders import BEST_PROMPT, CALIBRATED, MAJORITY
from minipeft.evaluate import Score, evaluate, majority_label, score_labels
from minipeft.gpt2 import GPT2
from minipeft.methods import HardPrompt
from minipeft.tasks import Encoder, Example, Task
from minipeft.train import train
from minipeft.train_config import TrainConfig
from minipeft.training_state import TrainResult
from minipeft.tune import encoder_for
from minipeft.tuned import attach

READ_AT_ONCE = 64


class Untrained:
    """One of the contenders that have no steps, on one model and task; dev chooses among prompts."""

    def __init__(self, model: GPT2, task: Task, method: str) -> None:
        self.model, self.task, self.method = model, task, method

    def on_dev_and(self, test: Sequence[Example]) -> tuple[Score, Score, Float[Tensor, "N labels"] | None, str | None]:
        """The scores on dev and on `test`, what it answers to `test`, and the prompt that dev chose."""
        dev = self.task.splits["dev"]
        if self.method == MAJORITY:
            return self._majority(dev)[0], *self._majority(test), None
        usual = "{text}" + self.task.joint
        if not self.task.labels:
            tuned = attach(self.model, HardPrompt(usual))
            encoder = encoder_for(tuned, self.task, truncate=True)
            return evaluate(tuned, encoder, dev), evaluate(tuned, encoder, test), None, None
        templates = self.task.hard_prompts if self.method in (BEST_PROMPT, CALIBRATED) else (usual,)
        tried, calibrated = [Asked(self.model, self.task, one) for one in templates], self.method == CALIBRATED
        best = max(tried, key=lambda asked: asked.score(dev, calibrated).score)
        answers = best.answers(test, calibrated)
        return best.score(dev, calibrated), score_labels(best.encoder, test, answers), answers, best.template

    def _majority(self, examples: Sequence[Example]) -> tuple[Score, Float[Tensor, "N labels"]]:
        commonest = majority_label(self.task)
        answer = torch.tensor([[float(label == commonest) for label in self.task.labels]])
        right = sum(example.target == commonest for example in examples)
        return Score(float("nan"), len(examples), right / len(examples)), answer.expand(len(examples), -1)


class LinearProbe:
    """Logistic regression on what the frozen model makes of a text: the usual question of what it knows already.

    pool: "last", the final hidden state of the text's last token, or "mean", the mean over all of its tokens.
    Trained numbers: labels·(D + 1). Source: Alain & Bengio 2017.
    """

    def __init__(self, model: GPT2, task: Task, pool: str) -> None:
        self.model, self.task, self.pool = model, task, pool
        self.encoder = Encoder(task, model.tokenizer, model.config.n_positions, truncate=True)
        self.layer = nn.Linear(model.config.n_embd, len(task.labels))
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self._train = self._read(task.splits["train"])
        self._mean, self._scale = self._train.mean(dim=0), self._train.std(dim=0) + 1e-6

    def fit(self, config: TrainConfig, out: Path) -> TrainResult:
        """Train it as methods are trained: the same batches in the same order, the best step on dev kept."""
        rows = self.task.splits["train"]
        lengths = [len(self.encoder.context(example)) for example in rows]
        order = BucketedBatches(lengths, config.batch_size, config.seed, [example.target for example in rows])
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
