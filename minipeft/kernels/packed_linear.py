"""A linear layer by a copy of its weights in the order in which oneDNN's kernels read them; for inference on a CPU.

With few rows a product is as fast as its weights can be read, and PyTorch puts them in order anew for every product.
Kept in order they are read once: of GPT-2 small's matrices with one row and with sixteen, in bfloat16, 0.73 and 0.61 of
the time, in fp32 0.51 and 0.49; with 512 rows 0.8 to 0.95 (two cores of an AMD EPYC, Zen 4). The copy takes as much
memory as the weights.

Three more things, measured there by writing 64 tokens with GPT-2 small. Weights in huge pages: 0.86 of the time for one
row and 0.93 for sixteen in bfloat16, 0.91 for one in fp32. One row as four: 0.96 in bfloat16, 0.89 in fp32. GELU as a
part of its product, in bfloat16: 0.02 ms a block for 16 rows, 0.09 by itself; 0.3 ms for 512, 2.5 by itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minipeft.kernels.allocator import move_to_huge_pages

_CAN_REORDER = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_KNOWS_PLACE = hasattr(torch.ops.mkldnn, "data_ptr")

FEW = 4
"""Fewer rows get rows of zeros below them: oneDNN's kernels for one and two read weights slower than those for four."""
SETTLED, LARGE = 256, 1 << 20
"""So many products after it was packed a weight of so many bytes moves to huge pages, which takes half a second for all
of GPT-2 small: as long as it would have saved until then."""


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has an order of its own for such weights here."""
    if not (_CAN_REORDER and torch.backends.mkldnn.is_available() and weight.device.type == "cpu"):
        return False
    wide = weight.dtype == torch.float32
    return wide or (weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def linear_gelu(linear: Any, x: Float[Tensor, "*B I"], approximate: str) -> Float[Tensor, "*B O"]:
    """`gelu(linear(x))` for any module; by packed weights in one kernel, and what lies between is not rounded."""
    product = getattr(linear, "product", None)
    if isinstance(product, PackedLinear):
        return product(x, linear.weight, linear.bias, approximate)
    return F.gelu(linear(x), approximate=approximate)


class PackedLinear:
    """`torch.nn.functional.linear` for one weight, which is put in order at the first call, and again after a change.

    It has no gradient: where one may be asked for, or nothing can be packed, it is the plain function.
    """

    def __init__(self) -> None:
        self.packed: Tensor | None = None
        self._weight: Tensor | None = None
        self._state = (0, 0)
        self._products = 0

    def __call__(
        self,
        x: Float[Tensor, "*B I"],
        weight: Float[Tensor, "O I"],
        bias: Float[Tensor, "O"] | None = None,
        gelu: str | None = None,
    ) -> Float[Tensor, "*B O"]:
        """The product, or its GELU, of the form that PyTorch calls `gelu`."""
        if not self._holds(weight, x):
            y = F.linear(x, weight, bias)
            return y if gelu is None else F.gelu(y, approximate=gelu)
        self._products += 1
        if self._products == SETTLED and weight.nbytes >= LARGE and _KNOWS_PLACE:
            move_to_huge_pages(torch.ops.mkldnn.data_ptr(self.packed), weight.nbytes)
        after: tuple[str, list[float], str] = ("none", [], "") if gelu is None else ("gelu", [], gelu)
        rows = len(x)
        if rows == x.shape[:-1].numel() < FEW:
            filled = torch.cat([x, x.new_zeros(FEW - rows, *x.shape[1:])])
            return torch.ops.mkldnn._linear_pointwise(filled, self.packed, bias, *after)[:rows]
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, *after)

    def _holds(self, weight: Float[Tensor, "O I"], x: Float[Tensor, "*B I"]) -> bool:
        """Whether `packed` is this weight as it is now, and serves for `x`."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype != weight.dtype or x.numel() == 0:
            return False
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if weight is not self._weight or state != self._state:
            if not can_pack(weight):
                return False
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
            self._weight, self._state, self._products = weight, state, 0
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        """A copy of a model packs its own weights."""
        return PackedLinear()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedLinear, ()
