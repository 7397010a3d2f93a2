"""How well a model does a task: accuracy over the labels, or loss on free text."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minipeft.generate import left_padded
from minipeft.gpt2 import NOT_SCORED
from minipeft.tasks.base import Encoder, Example, Task, collate
from minipeft.tuned import Tuned

ROWS = 64
"""Rows of an evaluation batch; rows are sorted by length, so little of a batch is padding."""


@dataclass(frozen=True)
class Score:
    """`accuracy` (labels only, else NaN), `loss` in nats per scored token, over `examples`."""

    loss: float
    examples: int
    accuracy: float = math.nan

    @property
    def standard_error(self) -> float:
        """Of the accuracy, as of a share of independent draws."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.examples)

    @property
    def score(self) -> float:
        """What training maximises on dev: accuracy, the loss breaking ties; else minus the loss."""
        return -self.loss if math.isnan(self.accuracy) else self.accuracy - 1e-3 * min(self.loss, 100.0) / 100


@torch.no_grad()
def evaluate(tuned: Tuned, encoder: Encoder, examples: Sequence[Example]) -> Score:
    """The score of `tuned` on `examples`. Raises TooLong as `Encoder` does."""
    was_training = tuned.training
    tuned.eval()
    try:
        if encoder.task.labels:
            return score_labels(encoder, examples, label_log_likelihoods(tuned, encoder, examples))
        return _loss(tuned, encoder, examples)
    finally:
        tuned.train(was_training)


def score_labels(encoder: Encoder, examples: Sequence[Example], log_likelihoods: Float[Tensor, "N labels"]) -> Score:
    """The likeliest label's share of right answers, and the loss of the right label's tokens over all words."""
    labels = list(encoder.label_ids)
    answers = label_numbers(labels, examples)
    right = (log_likelihoods.argmax(dim=1) == answers).float().mean()
    lengths = torch.tensor([len(encoder.label_ids[label]) for label in labels])[answers]
    loss = -log_likelihoods.gather(1, answers[:, None])[:, 0].sum() / lengths.sum()
    return Score(float(loss), len(examples), float(right))


def majority(task: Task, split: str) -> Score:
    """What always answering the commonest training label scores."""
    commonest, examples = majority_label(task), task.splits[split]
    right = sum(example.target == commonest for example in examples)
    return Score(loss=math.nan, examples=len(examples), accuracy=right / len(examples))


def majority_label(task: Task) -> str:
    """The commonest training label."""
    return Counter(example.target for example in task.splits["train"]).most_common(1)[0][0]


@torch.no_grad()
def label_log_likelihoods(tuned: Tuned, encoder: Encoder, examples: Sequence[Example]) -> Float[Tensor, "N labels"]:
    """log p(label | text) of every label: the sum over its tokens."""
    found = torch.zeros(len(examples), len(encoder.label_ids))
    contexts = [encoder.context(example) for example in examples]
    longest_first = sorted(enumerate(encoder.label_ids.values()), key=lambda label: -len(label[1]))
    for rows in by_length(contexts):
        first: Tensor | None = None
        for column, label in longest_first:
            if len(label) > 1 or first is None:
                tokens, real = left_padded([contexts[row] + label[:-1] for row in rows], 0, tuned.base.device)
                hidden = tuned.hidden(tokens, real)[:, -len(label) :].flatten(0, 1)  # one product, not one a row
                logits = tuned.model.logits(hidden).float().unflatten(0, (len(rows), len(label)))
                steps = logits.log_softmax(dim=-1).cpu()  # [rows, tokens of the label, V]
                first = steps[:, :1]
            else:  # whatever stands behind the text, its next token has the same probabilities
                steps = first
            found[rows, column] = steps[:, torch.arange(len(label)), torch.tensor(label)].sum(dim=1)
    return found


def _loss(tuned: Tuned, encoder: Encoder, examples: Sequence[Example]) -> Score:
    total, tokens = 0.0, 0
    encoded = [encoder.encode(example) for example in examples]
    for rows in by_length([row.ids for row in encoded]):
        batch = collate([encoded[row] for row in rows], encoder.tokenizer.eot).to(tuned.base.device)
        scored = int((batch.labels[:, 1:] != NOT_SCORED).sum())
        total += float(tuned.loss(batch.tokens, batch.labels, batch.attention_mask)) * scored
        tokens += scored
    return Score(total / tokens, len(examples))


def label_numbers(labels: Sequence[str], examples: Sequence[Example]) -> Int[Tensor, "N"]:
    """The place of each example's label among `labels`."""
    return torch.tensor([labels.index(example.target) for example in examples])


def by_length(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Row numbers in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    return [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
