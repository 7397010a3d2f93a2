"""The loss of labelled tokens, plainly: all their logits at once."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def label_loss(
    hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], targets: Int[Tensor, "N"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of `targets`, each predicted from one hidden state.

    `smoothing` is the share of each target that is spread over the whole vocabulary: Szegedy et al. 2016, §7.
    """
    logits = F.linear(hidden.to(head.dtype), head)  # [N, V]
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
