"""Lesson 06: the loss of some labels, against a loop in plain Python."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.checks.exercise import Exercise, require
from minipeft.gpt2 import NOT_SCORED


def judge(label_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Rows with different numbers of labels; then where the gradient goes."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 6, 5, generator=generator)
    labels = torch.randint(5, (3, 6), generator=generator)
    labels[0, :4] = labels[1, 1:] = labels[2, 3] = NOT_SCORED  # 2, 0 (its only label is the first) and 4 to score
    logits[0, 3] += 200  # where exp alone would overflow
    rows = _by_loop(logits.tolist(), labels.tolist())
    logits.requires_grad_()
    given = labels.clone()
    found = label_loss(logits, given)
    require(isinstance(found, Tensor), f"label_loss must return a tensor, but returned a {type(found).__name__}.")
    require(found.dim() == 0, f"the loss must be one number, but is a tensor of shape {tuple(found.shape)}.")
    require(
        not bool(found.isnan()),
        "the loss is NaN: does a row without labels divide by zero, or exp of a large logit overflow?",
    )
    require(torch.equal(given, labels), "label_loss changed the labels that it was given; work on a copy.")
    _value(found.item(), logits.detach(), labels, rows)
    require(found.requires_grad, "the loss has no gradient: was it made from numbers instead of tensors?")
    (gradient,) = torch.autograd.grad(found, logits)
    asked = torch.zeros_like(labels, dtype=torch.bool)
    asked[:, :-1] = labels[:, 1:] != NOT_SCORED
    require(
        torch.equal(gradient.abs().sum(dim=-1) > 0, asked),
        "the gradient reaches tokens that are asked for nothing.",
    )


def _by_loop(logits: list[list[list[float]]], labels: list[list[int]]) -> list[list[float]]:
    """Of each row the losses of its labels."""
    found = []
    for row, wanted in zip(logits, labels, strict=True):
        losses = []
        for t in range(1, len(wanted)):
            if wanted[t] != NOT_SCORED:
                most, before = max(row[t - 1]), row[t - 1]
                losses.append(most + math.log(sum(math.exp(z - most) for z in before)) - before[wanted[t]])
        found.append(losses)
    return found


def _value(found: float, logits: Tensor, labels: Tensor, rows: list[list[float]]) -> None:
    every = [loss for row in rows for loss in row]
    expected, total = sum(every) / len(every), sum(every)
    if abs(found - expected) < 1e-4:
        return
    others = {
        "every token is asked for itself: the label at place t must be predicted from the logits at t - 1.": (
            F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        ),
        "every token is asked for itself: cut the logits at the end, and the labels at the beginning.": (
            F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, :-1].flatten(), ignore_index=NOT_SCORED)
        ),
        "the last place of a row is asked for the row's first token, as torch.roll does; nothing follows it.": (
            F.cross_entropy(logits.flatten(0, 1), labels.roll(-1, dims=1).flatten(), ignore_index=NOT_SCORED)
        ),
        "you shifted the wrong way: the logits at t - 1 predict the label at t.": (
            F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten())
        ),
        "that is the sum of the losses; it must be their mean.": total,
        "you divide by all places, also those that are not scored.": total / labels[:, 1:].numel(),
        "you average each row first; then a label in a row of few counts for more. Average over all labels at once.": (
            sum(sum(row) / len(row) for row in rows if row) / sum(map(bool, rows))
        ),
        "the sign is wrong: a loss is minus the log-probability.": -expected,
        "that is the mean probability, or its like; the loss is minus the mean of the log-probabilities.": (
            sum(math.exp(-loss) for loss in every) / len(every)
        ),
    }
    for mistake, value in others.items():
        require(abs(found - float(value)) > 1e-4, mistake)
    require(False, f"the loss is {found:.4f}, but a loop over the labels gives {expected:.4f}.")


EXERCISE = Exercise(
    name="06",
    function="label_loss",
    judge=judge,
    hints=(
        "Put side by side what belongs together: logits[:, :-1] are the predictions for labels[:, 1:].",
        "scored = targets != -100 is a mask; predictions[scored] is then [N, V] and targets[scored] is [N].",
        "F.cross_entropy of these two is minus the mean log-probability.",
    ),
)
