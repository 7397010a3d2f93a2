"""Causal attention by matrix products, forward and backward, a block of queries at a time.

For training in bfloat16 on a CPU that multiplies it quickly: there PyTorch's flash kernel runs at a seventh of the
processor's peak (its backward pass, where there is AMX), and products of a block's queries with all keys up to its last
at more than half. Kept for the gradient are queries, keys and values alone; the shares are computed again.

Forward and backward, two cores of an AMD EPYC (Zen 4), against the flash kernel: 16 texts of 256 tokens, 8 heads 0.58
of the time; 4 of 1,024, 12 heads 0.79; 16 of 128, 4 heads 0.44. Two cores of an Intel Xeon with AMX: 0.59, 0.67, 0.33.
Scores are rounded to bfloat16, as those of explicit
attention are, so results are 3.3e-3 off in the mean and not 1.9e-3, gradients 4.0e-3 and not 3.3e-3. In fp32 it is no
faster.
Source: Vaswani et al. 2017, eq. 1; Dao et al. 2022, §3.1 (shares that are not kept).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from minipeft.kernels.machine import QUICK_IN_BFLOAT16

BLOCK = 128
"""Queries at a time: products of fewer are slower, and with more of them more is computed that causality hides."""
FEWEST_SHARES = 1 << 17
"""Below, PyTorch's kernel in fp32 is as fast."""
MOST_SHARES = 1 << 23
"""Shares at a time; of rows there are as many in a product as that allows."""


def by_products(q: Float[Tensor, "B H T Dh"], dropout: float) -> bool:
    """Whether this way is the faster one: while training, on such a CPU; not in what PyTorch's compiler makes."""
    quick = q.dtype == torch.bfloat16 and q.device.type == "cpu" and QUICK_IN_BFLOAT16
    many = q[..., 0].numel() * q.shape[2] >= FEWEST_SHARES
    return quick and many and q.requires_grad and dropout == 0.0 and not torch.compiler.is_compiling()


def product_attention(
    q: Float[Tensor, "B H T Dh"],
    k: Float[Tensor, "B H T Dh"],
    v: Float[Tensor, "B H T Dh"],
    causal: Bool[Tensor, "T T"],
) -> Float[Tensor, "B H T Dh"]:
    """softmax(q kᵀ / √Dh) v, where `causal` is the causal mask. Scores and shares are of the inputs' type."""
    return _ProductAttention.apply(q, k, v, torch.where(causal, 0.0, -math.inf).to(q.dtype))


class _ProductAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        out = _by_token(q)
        for rows, block, seen in _tiles(*q.shape[:3]):
            out[rows, :, block] = _shares(q[rows, :, block], k[rows, :, seen], hidden[block, seen]) @ v[rows, :, seen]
        ctx.save_for_backward(q, k, v, hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, hidden = ctx.saved_tensors
        d_q, d_k, d_v = _by_token(q), _by_token(q), _by_token(q)
        for rows, block, seen in _tiles(*q.shape[:3]):
            own_q, own_d_out, own_k = q[rows, :, block], d_out[rows, :, block], k[rows, :, seen]
            shares = _shares(own_q, own_k, hidden[block, seen])
            d_shares = own_d_out @ v[rows, :, seen].transpose(-2, -1)
            d_scores = torch.ops.aten._softmax_backward_data(d_shares, shares, -1, shares.dtype)
            d_scores.mul_(1 / math.sqrt(q.shape[-1]))
            d_q[rows, :, block] = d_scores @ own_k
            for whole, part in ((d_k, d_scores.transpose(-2, -1) @ own_q), (d_v, shares.transpose(-2, -1) @ own_d_out)):
                if seen.stop == q.shape[2]:  # the first tile of its rows: it sees every key
                    whole[rows] = part
                else:
                    whole[rows, :, seen] += part
        return d_q, d_k, d_v, None


def _tiles(B: int, H: int, T: int) -> Iterator[tuple[slice, slice, slice]]:
    """Some rows, a block of their queries, and the keys that it sees; the last block of the rows first."""
    most = max(1, MOST_SHARES // (H * min(T, BLOCK) * T))
    for first in range(0, B, most):
        for start in reversed(range(0, T, BLOCK)):
            end = min(T, start + BLOCK)
            yield slice(first, first + most), slice(start, end), slice(0, end)


def _shares(
    q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], hidden: Float[Tensor, "T S"]
) -> Float[Tensor, "B H T S"]:
    """softmax(q kᵀ / √Dh + hidden)."""
    scale = 1 / math.sqrt(q.shape[-1])
    scores = torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
    return scores.softmax(dim=-1).unflatten(0, q.shape[:2])


def _by_token(like: Float[Tensor, "B H T Dh"]) -> Float[Tensor, "B H T Dh"]:
    """Room for as much, stored token by token, as the layers before and after have it."""
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
