"""Wrong merges of LoRA."""

import torch

from tests.lessons.wrong import fails_with


@fails_with("multiplied by α and not divided by the rank")
def alpha_alone(W, A, B, alpha):
    return W + alpha * (B @ A).T


@fails_with("the scale α / r is missing")
def no_scale(W, A, B, alpha):
    return W + (B @ A).T


@fails_with("upside down")
def rank_over_alpha(W, A, B, alpha):
    return W + len(A) / alpha * (B @ A).T


@fails_with("the wrong way round: B A is \\[out, in\\]")
def wrong_direction(W, A, B, alpha):
    return W + alpha / len(A) * (B @ A)


@fails_with("the wrong way round: B A is \\[out, in\\]")
def wrong_direction_where_it_fits(W, A, B, alpha):
    change = alpha / len(A) * (B @ A)
    return W + (change if change.shape == W.shape else change.T)


@fails_with("the result is \\[out, in\\]")
def as_linear_keeps_it(W, A, B, alpha):
    return W.T + alpha / len(A) * (B @ A)


@fails_with("not A.shape\\[1\\]")
def divided_by_the_width(W, A, B, alpha):
    return W + alpha / A.shape[1] * (B @ A).T


@fails_with("the change alone")
def change_alone(W, A, B, alpha):
    return alpha / len(A) * (B @ A).T


@fails_with("W itself was changed")
def in_place(W, A, B, alpha):
    W += alpha / len(A) * (B @ A).T
    return W


@fails_with("moves the logits by")
def rounded(W, A, B, alpha):
    merged = W + alpha / len(A) * (B @ A).T
    return merged if len(W) < 16 else merged.to(torch.bfloat16).float()
