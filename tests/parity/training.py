"""Two adapters that should be the same, trained side by side; `recipes/parity.py` makes its table with it, too."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import farthest
from tests.tuning import labelled_batch

STEPS = 20
Loss = Callable[[Tensor, Tensor], Tensor]
"""Of tokens and labels."""


def shifted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """What a trainer makes of logits: each label against the position before it."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def apart_after_training(ours: Loss, theirs: Loss, pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> tuple[float, float]:
    """After equal steps of AdamW on equal batches: the largest difference of any step's loss, and of any parameter."""
    optimizers = [torch.optim.AdamW([pair[side] for pair in pairs], lr=1e-2) for side in (0, 1)]
    losses_apart = []
    for step in range(STEPS):
        tokens, labels = labelled_batch(step)
        losses = ours(tokens, labels), theirs(tokens, labels)
        losses_apart.append(abs(losses[0].item() - losses[1].item()))
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return max(losses_apart), max(farthest(mine, other.reshape(mine.shape)) for mine, other in pairs)
