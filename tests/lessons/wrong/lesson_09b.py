"""Wrong ways to make keys and values."""

import torch
import torch.nn.functional as F

from tests.lessons.wrong import fails_with


def made(E, W1, b1, W2, b2, bend=torch.tanh):
    return F.linear(bend(F.linear(E, W1, b1)), W2, b2)


def placed(flat, layers, heads):
    return tuple(flat.view(len(flat), layers, 2, heads, -1).permute(2, 1, 3, 0, 4))


@fails_with("the shape is right and the numbers are mixed up")
def view_alone(E, W1, b1, W2, b2, layers, heads):
    flat = made(E, W1, b1, W2, b2)
    return tuple(flat.view(layers, 2, heads, len(E), -1).unbind(dim=1))


@fails_with("keys and values are exchanged")
def value_first(E, W1, b1, W2, b2, layers, heads):
    keys, values = placed(made(E, W1, b1, W2, b2), layers, heads)
    return values, keys


@fails_with("you took the first half for the keys of all blocks")
def halves(E, W1, b1, W2, b2, layers, heads):
    keys, values = made(E, W1, b1, W2, b2).chunk(2, dim=1)
    return tuple(part.reshape(len(E), layers, heads, -1).permute(1, 2, 0, 3) for part in (keys, values))


@fails_with("the tanh between the two layers is missing")
def without_tanh(E, W1, b1, W2, b2, layers, heads):
    return placed(made(E, W1, b1, W2, b2, bend=lambda x: x), layers, heads)


@fails_with("stands tanh, not ReLU")
def with_relu(E, W1, b1, W2, b2, layers, heads):
    return placed(made(E, W1, b1, W2, b2, bend=torch.relu), layers, heads)


@fails_with("the two biases are missing")
def without_biases(E, W1, b1, W2, b2, layers, heads):
    return placed(torch.tanh(E @ W1.T) @ W2.T, layers, heads)


@fails_with(r"the keys are \(5, 3, 2, 4\); they must be \[L, H, P, Dh\]")
def not_moved(E, W1, b1, W2, b2, layers, heads):
    kv = made(E, W1, b1, W2, b2).view(len(E), layers, 2, heads, -1)
    return kv[:, :, 0], kv[:, :, 1]


@fails_with("the first bias is missing")
def without_the_first_bias(E, W1, b1, W2, b2, layers, heads):
    return placed(made(E, W1, torch.zeros_like(b1), W2, b2), layers, heads)


@fails_with(r"the keys are \(5, 2, 3, 4\)|must be \[L, H, P, Dh\]")
def blocks_and_vectors_exchanged(E, W1, b1, W2, b2, layers, heads):
    kv = made(E, W1, b1, W2, b2).view(len(E), layers, 2, heads, -1)
    return tuple(kv.permute(2, 0, 3, 1, 4))
