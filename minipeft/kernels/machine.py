"""Matrix products as this processor computes them fastest: in which type, and by which of PyTorch's libraries.

Decided by what the processor is, not by timing it: two runs of one seed on one machine round alike. Measured were an
AMD EPYC of the Zen 5 kind (bfloat16 2.2 times as fast as fp32), and an Intel Xeon without AMX (half as fast).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_CAN = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
CPU_NAME = str(_CAN.get("cpu_name") or "")
"""As the processor tells it; empty where PyTorch cannot ask."""
_AMD = "AMD" in CPU_NAME
HAS_AMX = bool(_CAN.get("amx_tile"))
"""Whether it has units for matrices in bfloat16, several times as fast as fp32."""
QUICK_IN_BFLOAT16 = HAS_AMX or (_AMD and bool(_CAN.get("avx512_bf16")))
"""Whether it multiplies bfloat16 faster than fp32."""
QUICK_BY_ONEDNN = _AMD and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether oneDNN multiplies faster in fp32 than MKL, which PyTorch takes, and which is made for Intel's processors."""
LARGE = 1 << 18
"""So many weights are worth a call of oneDNN: of a [128, 384] matrix it takes twice as long."""
_types_as_they_are = False


def product_type(tensor: Tensor) -> torch.dtype:
    """The type in which to multiply such tensors: their own, unless this is a CPU that is faster in fp32."""
    quick = tensor.device.type != "cpu" or tensor.dtype.itemsize > 2 or _types_as_they_are
    return tensor.dtype if quick or (tensor.dtype == torch.bfloat16 and QUICK_IN_BFLOAT16) else torch.float32


def attention_type(tensor: Tensor, learning: bool) -> torch.dtype:
    """The type in which to attend by PyTorch's kernel for CPUs: in half precision its backward pass takes longer on
    any of them (with AMX three times as long for texts of 50 tokens), its forward pass where there is no AMX."""
    quick = tensor.device.type != "cpu" or _types_as_they_are or (HAS_AMX and not learning)
    return tensor.dtype if quick else torch.promote_types(tensor.dtype, torch.float32)


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` of these takes another library than PyTorch does; not in what PyTorch's compiler makes, which
    cannot lower such a call."""
    alike = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    large = alike and weight.numel() >= LARGE and x.numel() > 0
    return QUICK_BY_ONEDNN and large and not torch.compiler.is_compiling()


def product(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "*B O"]:
    """`torch.nn.functional.linear`, without a gradient of its own."""
    if by_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def filling_of(count: int, device: torch.device) -> int:
    """What to add to `count` rows, up to an eighth and at most 63, so that few sizes of products occur; on a GPU 0.

    oneDNN keeps code for each size that it has ever multiplied, and between those pieces memory that was freed fits no
    size but its own. Twenty steps of E2E rows, GPT-2 small with a prefix in fp32 on two cores of an AMD EPYC: 0.84 of
    the memory, 0.90 of the time.
    """
    if device.type != "cpu":
        return 0
    step = min(64, 1 << max(0, (count // 8).bit_length() - 1))
    return -count % step


@contextmanager
def as_it_is() -> Iterator[None]:
    """Within this, every type is multiplied as it is, as on a GPU: for planning one's work without it."""
    global _types_as_they_are
    before, _types_as_they_are = _types_as_they_are, True
    try:
        yield
    finally:
        _types_as_they_are = before
