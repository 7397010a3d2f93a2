"""The loss of labelled tokens a few at a time, gradients included: no [N, V] tensor ever exists.

The gradient of a chunk is known as soon as its logits are, so it is computed there and then, and the logits go: what is
kept for the backward pass is [N, D]. With GPT-2's vocabulary and a frozen head 0.84 of the plain loss's time in 0.14 of
its memory (fp32, 432 labels, two cores of an Intel Xeon; `benchmarks/loss.py`). PyTorch's own `linear_cross_entropy`
does likewise, but took 2.4 to 6.9 times as long there, so it is not used.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from minipeft.kernels.machine import filling_of, product, product_type

ROWS = 256
"""Labels at a time: with GPT-2's vocabulary 51 MB of logits in fp32."""
WORDS = 8192
"""Words at a time, where the head or its gradient is of another type: with GPT-2 small 25 MB."""


def chunked_label_loss(
    hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], targets: Int[Tensor, "N"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """`minipeft.loss.label_loss`, in less memory."""
    return _ChunkedLoss.apply(hidden, head, targets, smoothing)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        wants_hidden, wants_head, *_ = ctx.needs_input_grad
        N, V = len(targets), len(head)
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        d_head = torch.zeros_like(head) if wants_head else None
        loss = hidden.new_zeros((), dtype=torch.float32)
        kind = product_type(hidden)
        # Half-precision parts of a sum would lose what all words have in common and what should cancel in their slopes.
        words_of = head if kind == torch.float32 else head.to(kind)
        for start in range(0, N, ROWS):
            rows = slice(start, min(start + ROWS, N))
            count = rows.stop - start
            fill = (0, filling_of(count, hidden.device))  # of rows that are computed and dropped
            wanted = F.pad(targets[rows], fill)[:, None]
            h = F.pad(hidden[rows], (0, 0, *fill)).to(kind)
            logits = _logits(h, words_of).float()  # [rows, V]
            logits.sub_(logits.amax(dim=-1, keepdim=True))  # from here on all in one place
            right = logits.gather(1, wanted)
            spread = smoothing * logits.mean(dim=-1, keepdim=True) if smoothing else 0.0
            total = logits.exp_().sum(dim=-1, keepdim=True)
            loss += (total.log() - (1 - smoothing) * right - spread)[:count].sum()
            if d_hidden is None and d_head is None:
                continue
            slope = logits.div_(N * total)  # d loss / d logits = (softmax − target) / N
            if smoothing:
                slope.sub_(smoothing / V / N)
            slope.scatter_add_(1, wanted, torch.full_like(right, (smoothing - 1) / N))
            slope = slope.to(kind)
            if d_hidden is not None:
                d_h = h.new_zeros(h.shape)
                for words, columns in _widened(words_of, kind):
                    d_h += product(slope[:, words], columns.T)
                d_hidden[rows] = d_h[:count]
            if d_head is not None:
                _add_slopes(d_head, slope[:count].T, h[:count])
            del logits, slope  # before the next chunk's are made
        ctx.save_for_backward(d_hidden, d_head)
        return loss / N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        # In place, so that [V, D] exists once; a second backward pass is then an error, and no wrong number.
        scaled = [None if d is None else d.mul_(d_loss.to(d.dtype)) for d in (d_hidden, d_head)]
        return (*scaled, None, None)


def _logits(h: Float[Tensor, "N D"], head: Float[Tensor, "V D"]) -> Float[Tensor, "N V"]:
    if h.dtype == head.dtype:
        return product(h, head)
    logits = h.new_empty(len(h), len(head))
    for words, columns in _widened(head, h.dtype):
        torch.mm(h, columns.T, out=logits[:, words])
    return logits


def _add_slopes(d_head: Float[Tensor, "V D"], slope: Float[Tensor, "V N"], h: Float[Tensor, "N D"]) -> None:
    """d_head += slope h, multiplied in their type and added up in the head's, some words at a time."""
    if slope.dtype == d_head.dtype:
        d_head.addmm_(slope, h)
        return
    for start in range(0, len(d_head), WORDS):
        d_head[start : start + WORDS] += slope[start : start + WORDS] @ h


def _widened(head: Float[Tensor, "V D"], kind: torch.dtype) -> Iterator[tuple[slice, Float[Tensor, "C D"]]]:
    """The head in this type: at once where it is so already, else some words at a time."""
    some = len(head) if head.dtype == kind else WORDS
    for start in range(0, len(head), some):
        words = slice(start, start + some)
        yield words, head[words].to(kind)
