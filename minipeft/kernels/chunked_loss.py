"""The loss of labelled tokens a few at a time, gradients included: no [N, V] tensor ever exists.

The gradient of a chunk is known as soon as its logits are, so it is computed there and then, and the logits go: what is
kept for the backward pass is [N, D]. With GPT-2's vocabulary and a frozen head the plain loss's time in 0.04 of its
memory (fp32, 432 labels, two cores; `benchmarks/loss.py`). PyTorch's own `linear_cross_entropy` does likewise, but took
9 times as long on a CPU in fp32, so it is not used.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 256
"""Labels at a time: with GPT-2's vocabulary 51 MB of logits in fp32."""


def chunked_label_loss(
    hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], targets: Int[Tensor, "N"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """`minipeft.loss.label_loss`, in less memory."""
    return _ChunkedLoss.apply(hidden, head, targets, smoothing)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        wants_hidden, wants_head, *_ = ctx.needs_input_grad
        N = len(targets)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_head = torch.zeros_like(head) if wants_head else None
        loss = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, N, ROWS):
            rows = slice(start, start + ROWS)
            logits = (hidden[rows] @ head.T).float()  # [rows, V]
            wanted = targets[rows, None]
            logits.sub_(logits.amax(dim=-1, keepdim=True))  # from here on all in one place
            right = logits.gather(1, wanted)
            spread = smoothing * logits.mean(dim=-1, keepdim=True) if smoothing else 0.0
            total = logits.exp_().sum(dim=-1, keepdim=True)
            loss += (total.log() - (1 - smoothing) * right - spread).sum()
            if d_hidden is None and d_head is None:
                continue
            slope = logits.div_(N * total)  # d loss / d logits = (softmax − target) / N
            if smoothing:
                slope.sub_(smoothing / slope.shape[1] / N)
            slope.scatter_add_(1, wanted, torch.full_like(right, (smoothing - 1) / N))
            slope = slope.to(head.dtype)
            if d_hidden is not None:
                torch.mm(slope, head, out=d_hidden[rows])
            if d_head is not None:
                d_head.addmm_(slope.T, hidden[rows])
        ctx.save_for_backward(d_hidden, d_head)
        return loss / N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        # In place, so that [V, D] exists once; a second backward pass is then an error, and no wrong number.
        scaled = [None if d is None else d.mul_(d_loss.to(d.dtype)) for d in (d_hidden, d_head)]
        return (*scaled, None, None)
