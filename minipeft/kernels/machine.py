"""What this machine does faster."""

import time

import torch
from torch import Tensor

_slow: dict[torch.dtype, bool] = {torch.float32: False, torch.float64: False}
"""Whether this CPU multiplies clearly faster in fp32 than in this type, of those that were asked for."""


def product_type(weight: Tensor) -> torch.dtype:
    """The type in which to multiply by such weights: their own, unless this is a CPU that is faster in fp32.

    No flag tells: with AMX bfloat16 is many times faster, without it twice as fast on one maker's processors and half
    as fast on another's. So both are tried, once in a process, for some milliseconds.
    """
    kind = weight.dtype
    if weight.device.type != "cpu":
        return kind
    if kind not in _slow:
        _slow[kind] = _product_seconds(kind) > 1.1 * _product_seconds(torch.float32)
    return torch.float32 if _slow[kind] else kind


def _product_seconds(kind: torch.dtype) -> float:
    """The fastest of some products as GPT-2 small has them: 256 tokens by [768, 768]."""
    # Zeros take as long as other numbers; drawn at random, they would take from the run's own.
    x, weight = torch.zeros(256, 768, dtype=kind), torch.zeros(768, 768, dtype=kind)
    taken = []
    with torch.no_grad():
        for _ in range(5):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            taken.append(time.perf_counter() - start)
    return min(taken)
