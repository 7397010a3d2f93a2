"""Wrong GELUs."""

import math

import torch
import torch.nn.functional as F

from tests.lessons.wrong import fails_with


@fails_with("that is the exact GELU")
def exact(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@fails_with("that is the sigmoid form")
def sigmoid(x):
    return x * torch.sigmoid(1.702 * x)


@fails_with("the term with the cube of x")
def without_cube(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x))


@fails_with("that is ReLU")
def relu(x):
    return F.relu(x)


@fails_with("the result is not 0.5 x")
def wrong_root(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2) / math.pi * (x + 0.044715 * x**3)))
