"""A step of training rehearsed without a number: what it holds at once, what it multiplies, what it moves.

PyTorch's fake tensors have a shape and a type and no values. So every tensor of the real step is made, counted while it
lives, and let go, by the same code: there is no formula of activations to keep up. It takes a second or two and no
memory worth mentioning.
"""

import math
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minipeft.attention import FixedMemory, Rows, lower_right_mask
from minipeft.config import GPT2Config
from minipeft.gpt2 import GPT2
from minipeft.kernels.machine import as_it_is
from minipeft.kernels.split_attention import can_split
from minipeft.methods import Method, Prefix, SoftPrompt, Stack, trains_a_copy
from minipeft.methods.base import Attachment
from minipeft.tuned import Tuned

MOST_ROWS = 16
"""Rows that are rehearsed: each takes its own call of the attention."""


@dataclass(frozen=True)
class Work:
    """A step of training to plan. `length`: tokens of a row; `scored`: how many of them are learned."""

    config: GPT2Config
    method: Method | None
    """None: pretraining, which trains the model itself."""
    batch_size: int = 8
    length: int = 128
    scored: int = 64
    dtype: torch.dtype = torch.float32
    """Of the frozen weights; where the model's own are trained, which are fp32, of the activations."""
    checkpointing: bool = False
    on_cpu: bool = True
    accumulates: bool = False
    """Whether the rows are a part of a batch, so that gradients of other parts are there before."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "scored"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @staticmethod
    def of(model: GPT2, method: Method | None, batch_size: int, length: int, scored: int) -> "Work":
        """The work of tuning this model as it is set up."""
        kind = model.activations or model.dtype
        return Work(model.config, method, batch_size, length, scored, kind, model.recompute, model.device.type == "cpu")

    @property
    def trains_weights(self) -> bool:
        """Whether the model's own weights are trained, in fp32."""
        return self.method is None or trains_a_copy(self.method)


@dataclass(frozen=True)
class Need:
    """What a step needs: bytes at once, and how much is multiplied and moved."""

    weights: int
    """Bytes of the weights that the step reads and does not change."""
    trained: int
    """Bytes of what is trained, with two moments each and, in the end, gradients."""
    peak: int
    """Bytes at the step's highest point, weights included."""
    widest: int
    """Bytes of a tensor of the MLP's width, in fp32."""
    flops: int
    """Operations of its matrix products, forward and backward."""
    moved: int
    """Bytes that all else reads and writes."""

    @property
    def activations(self) -> int:
        """Bytes at the highest point that are neither weights nor trained: what is computed and let go."""
        return max(0, self.peak - self.weights - self.trained)


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
"""Products that PyTorch's counter does not know, of the shapes that go in."""
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _FLOPS[torch.ops.mkldnn._linear_pointwise] = _linear


def rehearse(work: Work) -> Need:
    """What a step of this work needs. Raises ValueError if the method or the length does not fit the model.

    Of many rows a few are rehearsed: from there on what a step needs grows by the row.
    """
    if work.batch_size <= MOST_ROWS:
        return _rehearse(work)
    half, most = (_rehearse(replace(work, batch_size=rows)) for rows in (MOST_ROWS // 2, MOST_ROWS))
    times = (work.batch_size - MOST_ROWS) / (MOST_ROWS // 2)
    pairs = {name: (getattr(half, name), getattr(most, name)) for name in ("peak", "widest", "flops", "moved")}
    return replace(most, **{name: round(b + times * (b - a)) for name, (a, b) in pairs.items()})


def _rehearse(work: Work) -> Need:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        base = GPT2(work.config).to(torch.float32 if work.trains_weights else work.dtype)
        runs, attachment = base, Attachment()
        if work.method is not None:
            runs, attachment = _without_text(work.method).attach_to(base, None)
    with FakeTensorMode(), nullcontext() if work.on_cpu else as_it_is():
        _make_fake(nn.ModuleList([base, runs, attachment]))
        if work.method is not None:
            Tuned(base, work.method, runs, attachment)  # freezes what is to be
        if work.trains_weights and work.dtype != torch.float32:
            runs.use_activations(work.dtype)
        runs.train().use_kernels().use_checkpointing(work.checkpointing)
        runs.wte.gradient_by_rows &= work.on_cpu
        held = {*runs.parameters(), *attachment.parameters()}
        trained = [parameter for parameter in held if parameter.requires_grad]
        if not (work.trains_weights and work.on_cpu):  # there, what was copied goes back to its file
            held |= {*base.parameters()}
        if work.accumulates:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        live = _Live([*held, *moments, *gradients])
        with live:
            _step(runs, attachment, work)
        changed = sum(parameter.numel() for parameter in trained) * 4
        return Need(
            weights=live.at_first - (4 if gradients else 3) * changed,
            trained=4 * changed,
            peak=live.peak,
            widest=work.batch_size * work.length * 4 * work.config.n_embd * 4,
            flops=live.flops,
            moved=live.moved,
        )


def _step(model: GPT2, attachment: Attachment, work: Work) -> None:
    """A loss and its gradients, with rows of full length: what they hold cannot be asked of fake tensors."""
    B, T = work.batch_size, work.length
    doors = attachment.doors()
    P = 0 if doors.prompt is None else doors.prompt.shape[1]
    M = 0 if doors.memory is None else doors.memory.length
    model.check_room(M, P, T)
    scored = torch.zeros(B * min(work.scored, T), dtype=torch.long)
    mask: Tensor | Rows | None
    if work.on_cpu:  # one row of all texts, behind a prompt that they share: see `GPT2._packing`
        rows, length = 1, B * T
        split = not (P and isinstance(doors.memory, FixedMemory))
        mask = Rows((T,) * B, P, split and can_split(torch.empty(1), 0.0))
    else:  # texts below one another, padding and all
        rows, length, whole = B, T, torch.ones(B, M + P + T, dtype=torch.bool)
        mask = lower_right_mask(P + T, M + P + T, whole) if work.method else None
    tokens, positions = (torch.zeros(rows, size, dtype=torch.long) for size in (length, P + length))
    hidden = model.through_blocks(model.embed(tokens, positions, doors.prompt), mask, doors.memory, scored)
    picked = model.ln_f(hidden)[0]
    del hidden
    model.label_loss(picked, model.head, scored, 0.0).backward()


def _without_text(method: Method) -> Method:
    """The same method, started in a way that needs no vocabulary."""
    if isinstance(method, Stack):
        return Stack(tuple(map(_without_text, method.methods)))
    return replace(method, init="random") if isinstance(method, SoftPrompt | Prefix) else method


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


class _Live(TorchDispatchMode):
    """The bytes of all tensors that live, the most there ever were; operations of products, bytes that all else moves.

    PyTorch's own counter of operations would keep tensors alive that a step lets go.
    """

    _IDLE = (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten._unsafe_view)
    """What gives tensors without touching their numbers."""

    def __init__(self, held: list[Tensor]) -> None:
        from torch.utils.flop_counter import flop_registry, shape_wrapper

        super().__init__()
        self._flops_of = {**flop_registry, **{known: shape_wrapper(count) for known, count in _FLOPS.items()}}
        self.now = self.peak = self.moved = self.flops = 0
        self._seen: set[int] = set()
        for tensor in held:
            self._note(tensor)
        self.at_first = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = self._tensors(out)
        # Autograd adds a second gradient of a tensor to the first one in place, but not where tensors are fake.
        in_place = func is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() >= 0
        for tensor in tensors:
            self._note(tensor, at_once=not in_place)
        if count := self._flops_of.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        elif tensors and not func.is_view and func.overloadpacket not in self._IDLE:
            tensors += self._tensors((args, kwargs))
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out

    def _tensors(self, tree: Any) -> list[Tensor]:
        """All of them but sparse ones, whose numbers are another tensor's."""
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_sparse]

    def _note(self, tensor: Tensor, at_once: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            weakref.finalize(storage, self._gone, key, size)
            self.now += size
            if at_once:
                self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
