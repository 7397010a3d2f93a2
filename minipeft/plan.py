"""What a step of training will need, before anything is trained: a rehearsal for memory, measured rates for time.

The step is rehearsed with PyTorch's fake tensors, which have a shape and a type and no numbers. So every tensor of the
real step is made, counted while it lives, and let go, by the same code: there is no formula of activations to keep up.
A rehearsal takes a second or two and no memory worth mentioning.
"""

import math
import os
import time
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minipeft.attention import FixedMemory, Rows
from minipeft.gpt2 import GPT2, GPT2Config
from minipeft.kernels.split_attention import can_split
from minipeft.methods import FullFinetuning, Method, Prefix, SoftPrompt, Stack
from minipeft.methods.base import Attachment, Doors
from minipeft.tuned import Tuned

KEPT_FREE = 1.15
"""What a process holds over what its tensors need: freed blocks that the next tensor does not fit in."""
LIBRARIES = 90_000_000
"""Bytes that the libraries take once they multiply: code, and buffers of each thread."""
SAFE = 0.9
"""The share of the memory that there is which a plan uses."""


@dataclass(frozen=True)
class Work:
    """A step of training to plan. `length`: tokens of a row; `scored`: how many of them are learned."""

    config: GPT2Config
    method: Method
    batch_size: int = 8
    length: int = 128
    scored: int = 64
    dtype: torch.dtype = torch.float32
    """Of the frozen weights; of full finetuning, whose weights are fp32, of the activations."""
    checkpointing: bool = False
    on_cpu: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "scored"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @staticmethod
    def of(model: GPT2, method: Method, batch_size: int, length: int, scored: int) -> "Work":
        """The work of tuning this model as it is set up."""
        kind = model.activations or model.dtype
        return Work(model.config, method, batch_size, length, scored, kind, model.recompute, model.device.type == "cpu")


@dataclass(frozen=True)
class Need:
    """What a step needs: bytes at once, and how much is multiplied and moved."""

    weights: int
    """Bytes of the weights that the step reads and does not change."""
    trained: int
    """Bytes of what is trained, with two moments each and, in the end, gradients."""
    peak: int
    """Bytes at the step's highest point, weights included."""
    flops: int
    """Operations of its matrix products, forward and backward."""
    moved: int
    """Bytes that all else reads and writes."""


@dataclass(frozen=True)
class Rates:
    """What a machine was measured to do in a second: operations of matrix products, bytes of everything else."""

    flops: float
    moved: float

    def seconds(self, need: Need) -> float:
        """About how long the step takes."""
        return need.flops / self.flops + need.moved / self.moved


Shape = tuple[int, ...]


def _linear(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _added_product(_: Shape, a: Shape, b: Shape, *__: Any, **___: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _attention(q: Shape, k: Shape, *_: Any, **__: Any) -> int:
    return 2 * 2 * math.prod(q) * k[-2]


def _attention_backward(_: Shape, q: Shape, k: Shape, *__: Any, **___: Any) -> int:
    return 5 * 2 * math.prod(q) * k[-2]


_FLOPS = {
    torch.ops.aten.addmm_: _added_product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""What PyTorch's counter does not know, of the shapes that go in."""
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _FLOPS[torch.ops.mkldnn._linear_pointwise] = _linear


def rehearse(work: Work) -> Need:
    """What a step of this work needs. Raises ValueError if the method or the length does not fit the model."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    trains_copy = _trains_copy(work.method)
    with torch.device("meta"):
        base = GPT2(work.config).to(torch.float32 if trains_copy else work.dtype)
        runs, attachment = _without_text(work.method).attach_to(base, None)
    with FakeTensorMode():
        _make_fake(nn.ModuleList([base, runs, attachment]))
        tuned = Tuned(base, work.method, runs, attachment).train()
        if trains_copy and work.dtype != torch.float32:
            runs.use_activations(work.dtype)
        runs.use_kernels().use_checkpointing(work.checkpointing)
        trained = list(tuned.trainable_parameters().values())
        moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]
        held = {*runs.parameters(), *attachment.parameters()}
        if not (trains_copy and work.on_cpu):  # there, what was copied goes back to its file
            held |= {*base.parameters()}
        live = _Live([*held, *moments])
        with live, FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
            _step(runs, attachment, work)
        changed = sum(parameter.numel() for parameter in trained) * 4
        return Need(
            weights=live.at_first - 3 * changed,
            trained=4 * changed,
            peak=live.peak,
            flops=counter.get_total_flops(),
            moved=live.moved,
        )


def needed_bytes(need: Need) -> int:
    """What the process will hold at most for this step, beyond what it holds before it has a model."""
    return round(need.weights + (need.peak - need.weights) * KEPT_FREE) + LIBRARIES


def rows_that_fit(work: Work, memory: int) -> int | None:
    """The largest of the batch, its half, its quarter … that fits in so many bytes; None if not even one row does."""
    rows = work.batch_size
    while needed_bytes(rehearse(replace(work, batch_size=rows))) > SAFE * memory:
        if rows == 1:
            return None
        rows = (rows + 1) // 2
    return rows


def available_memory(device: torch.device) -> int:
    """Bytes that are free on the device now; of a CPU those that the system can give without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    told = Path("/proc/meminfo")
    if told.exists():
        lines = dict(line.split(":") for line in told.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 << 30  # nothing tells it: half of what a small machine has


def measure_rates(config: GPT2Config, dtype: torch.dtype, device: torch.device, rows: int = 1024) -> Rates:
    """What this machine does in a second, from a second of products and GELUs as this model has them."""
    from minipeft.kernels.mixed_linear import mixed_linear

    D = config.n_embd
    x, weight = (torch.randn(n, D, device=device).to(dtype) for n in (rows, 4 * D))
    wide = torch.randn(rows, 4 * D, device=device).to(dtype)
    product = _seconds(lambda: mixed_linear(x, weight), device)
    other = _seconds(lambda: torch.nn.functional.gelu(wide, approximate="tanh").add_(wide), device)
    size = wide.numel() * wide.element_size()
    return Rates(2 * rows * D * 4 * D / product, 5 * size / other)


def _seconds(work: Any, device: torch.device) -> float:
    """The median of some runs, after two to warm up."""
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken[2:])[3]


class _Live(TorchDispatchMode):
    """The bytes of all tensors that live, the most there ever were, and what passed through all but products."""

    PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")

    def __init__(self, held: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.moved = 0
        self._seen: set[int] = set()
        for tensor in held:
            self._note(tensor)
        self.at_first = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self._note(tensor)
        if not func.is_view and func.overloadpacket.__name__ not in self.PRODUCTS:
            tensors += [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            weakref.finalize(storage, self._gone, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _step(model: GPT2, attachment: Attachment, work: Work) -> None:
    """A loss and its gradients, with rows of full length: what they hold cannot be asked of fake tensors."""
    B, T = work.batch_size, work.length
    doors = attachment.doors()
    shared = 0 if doors.prompt is None else doors.prompt.shape[1]
    x, mask = _inputs(model, doors, B, T, work.on_cpu)
    hidden = model.through_blocks(x, mask, doors.memory)[:, shared:].view(B, T, -1)
    picked = model.ln_f(hidden).flatten(0, 1).index_select(0, torch.zeros(B * min(work.scored, T), dtype=torch.long))
    del x, hidden
    model.label_loss(picked, model.head, torch.zeros(len(picked), dtype=torch.long), 0.0).backward()


def _inputs(model: GPT2, doors: Doors, B: int, T: int, on_cpu: bool) -> tuple[Tensor, Rows]:
    """The embedded batch without padding, behind a prompt that all rows share."""
    P = 0 if doors.prompt is None else doors.prompt.shape[1]
    M = 0 if doors.memory is None else doors.memory.length
    model.check_room(M, P, T)
    x = model.wte(torch.zeros(1, B * T, dtype=torch.long))
    if doors.prompt is not None:
        x = torch.cat([doors.prompt.to(x.dtype), x], dim=1)
    x = x + model.wpe(torch.zeros(1, P + B * T, dtype=torch.long))
    if model.activations is not None:
        x = x.to(model.activations)
    split = on_cpu and can_split(x, 0.0) and not (P and isinstance(doors.memory, FixedMemory))
    return x, Rows((T,) * B, P, split)


def _make_fake(modules: nn.Module) -> None:
    """Replace every parameter by a fake one on the CPU, shared ones by one."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in modules.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    own = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    made[parameter] = nn.Parameter(own, parameter.requires_grad)
                module._parameters[name] = made[parameter]


def _trains_copy(method: Method) -> bool:
    """Whether weights of the model itself are trained, in fp32."""
    parts = method.methods if isinstance(method, Stack) else (method,)
    return any(isinstance(part, FullFinetuning) for part in parts)


def _without_text(method: Method) -> Method:
    """The same method, started in a way that needs no vocabulary."""
    if isinstance(method, Stack):
        return Stack(tuple(map(_without_text, method.methods)))
    return replace(method, init="random") if isinstance(method, SoftPrompt | Prefix) else method
