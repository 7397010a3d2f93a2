"""Lesson 03: layer norm, and the GELU that GPT-2 uses, against PyTorch's own."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.checks.exercise import Exercise, require


def close(found: Tensor, expected: Tensor, most: float) -> bool:
    """Whether two tensors agree up to `most`."""
    return bool((found - expected).abs().max() < most)


def check_shape(function: str, found: object, x: Tensor) -> None:
    """Raise Mistake unless `found` is a tensor of the shape of x."""
    require(isinstance(found, Tensor), f"{function} must return a tensor, but returned a {type(found).__name__}.")
    shape = tuple(found.shape) if isinstance(found, Tensor) else ()
    require(shape == tuple(x.shape), f"the result has shape {shape}; it must be that of x, {tuple(x.shape)}.")


def judge_layer_norm(layer_norm: Callable[..., Tensor]) -> None:
    """Against torch.nn.functional.layer_norm, in double precision, where epsilon matters and where it does not."""
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(2, 5, 16, generator=generator, dtype=torch.float64)
    weight, bias = (torch.randn(16, generator=generator, dtype=torch.float64) for _ in range(2))
    given = x.clone()
    found = layer_norm(x, weight, bias, 1e-5)
    check_shape("layer_norm", found, x)
    require(torch.equal(x, given), "layer_norm changed the tensor that it was given; make a new one.")
    plain = F.layer_norm(x, (16,), None, None, 1e-5)
    require(not close(found, plain, 1e-6), "you left out weight and bias, the last step.")
    unbiased = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    require(
        not close(found, unbiased, 1e-9),
        "you divide by n - 1, as torch.var does unless told unbiased=False; layer norm divides by n.",
    )
    whole = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * weight + bias
    require(
        not close(found, whole, 1e-6),
        "you average over everything; each token is normalised by itself, over the last axis.",
    )
    expected = F.layer_norm(x, (16,), weight, bias, 1e-5)
    require(close(found, expected, 1e-3), "the result is not that of torch.nn.functional.layer_norm.")
    tiny = 1e-3 * x
    require(
        close(layer_norm(tiny, weight, bias, 1e-5), F.layer_norm(tiny, (16,), weight, bias, 1e-5), 1e-9),
        "for very small x the result is off: epsilon is added to the variance, under the root.",
    )


def judge_gelu(gelu: Callable[[Tensor], Tensor]) -> None:
    """Against torch's tanh form, between -6 and 6; then against what else goes by that name."""
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    found = gelu(x)
    check_shape("gelu", found, x)
    without_cube = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x))
    others = {
        "that is the exact GELU, by the error function; GPT-2's is the tanh form.": F.gelu(x),
        "that is the sigmoid form, x·σ(1.702 x); GPT-2's is the tanh form.": x * torch.sigmoid(1.702 * x),
        "that is ReLU, which has a corner at 0; GELU is smooth.": F.relu(x),
        "the term with the cube of x, times 0.044715, is missing.": without_cube,
    }
    for mistake, other in others.items():
        require(not close(found, other, 1e-9), mistake)
    expected = F.gelu(x, approximate="tanh")
    require(close(found, expected, 1e-9), "the result is not 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).")


LAYER_NORM = Exercise(
    name="03a",
    function="layer_norm",
    judge=judge_layer_norm,
    hints=(
        "x.mean(dim=-1, keepdim=True) keeps the axis, so that it can be subtracted from x.",
        "The variance is the mean of the squared differences. Add epsilon to it, take the root, divide.",
        "At the very end multiply by weight and add bias: one number of each for every place of the last axis.",
    ),
)
GELU = Exercise(
    name="03b",
    function="gelu",
    judge=judge_gelu,
    hints=(
        "Write the formula from the inside out: x + 0.044715 * x**3 first.",
        "math.sqrt(2 / math.pi) is the factor in front of it; torch.tanh takes a tensor.",
    ),
)
