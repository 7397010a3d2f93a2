"""How many bytes a process sends to the others: counted where PyTorch's collective operations begin."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
}
"""What PyTorch calls the operations, for itself and within sharded tensors; others go by their own names."""
PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "broadcast_": 1}
"""How often a ring of processes passes a tensor on (Patarasuk & Yuan 2009)."""


class Traffic(TorchDispatchMode):
    """Within `with Traffic() as traffic:`, the bytes of the whole tensors that collectives work on, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._schema.name.split("::")[1]
            # Of what goes in and what comes out, the larger one is whole.
            most = max((sum(tensor.nbytes for tensor in _tensors(arg)) for arg in args), default=0)
            self.bytes[NAMES.get(name, name)] += most
        return func(*args, **(kwargs or {}))


def sent_in_a_ring(by_operation: dict[str, int], size: int) -> float:
    """Bytes that each of `size` processes sends for these collectives, each (n - 1) / n of a tensor in a pass."""
    return sum(PASSES[name] * bytes_ * (size - 1) / size for name, bytes_ in by_operation.items())


def _tensors(arg: Any) -> Iterable[Tensor]:
    if isinstance(arg, Tensor):
        yield arg
    elif isinstance(arg, list | tuple):
        for one in arg:
            yield from _tensors(one)
