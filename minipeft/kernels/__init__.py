"""What makes it fast: each behind its plain version, tested equal to it, with its measured ratio in its docstring."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from minipeft.kernels.chunked_loss import chunked_label_loss
from minipeft.kernels.mixed_linear import mixed_linear
from minipeft.kernels.packed_linear import PackedLinear
from minipeft.loss import label_loss

LOSSES: dict[str, Callable[..., Tensor]] = {"plain": label_loss, "chunked": chunked_label_loss}
PRODUCTS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "plain": lambda: F.linear,
    "mixed": lambda: mixed_linear,
    "packed": PackedLinear,
}
"""What makes each layer's own product."""
