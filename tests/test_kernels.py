"""What makes it fast computes what the plain version computes, and allocates no more than it promises."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minipeft as mp
from minipeft.kernels import chunked_loss
from minipeft.kernels.chunked_loss import ROWS, chunked_label_loss
from minipeft.loss import label_loss
from tests.models import Ragged, farthest, ragged, random_model, random_tokens, shake
from tests.tuning import TINY_METHODS, labelled_batch

EXACT = 1e-6
"""fp32 sums in another order, on losses of about 4 and gradients below 1."""


# -- the loss ---------------------------------------------------------------------------------------------------------


def value_and_gradients(loss: Callable[..., Tensor], n: int, smoothing: float, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(size, 8, generator=draw).to(dtype).requires_grad_() for size in (n, 50))
    found = loss(hidden, head, torch.randint(50, (n,), generator=draw), smoothing)
    return [found, *torch.autograd.grad(3 * found, [hidden, head])]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("n", [1, ROWS - 1, ROWS, 2 * ROWS + 5])
def test_the_chunked_loss_is_the_plain_one(n: int, smoothing: float) -> None:
    plain, chunked = (
        value_and_gradients(loss, n, smoothing, torch.float32) for loss in (label_loss, chunked_label_loss)
    )
    for one, other in zip(plain, chunked, strict=True):
        assert farthest(one, other) < EXACT * max(1, float(one.detach().abs().max()))
        assert one.dtype == other.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chunked_loss_is_as_exact_in_half_precision(dtype: torch.dtype) -> None:
    """Both are as far from fp32 on the same rounded numbers as their type is coarse."""
    exact = value_and_gradients(lambda h, w, t, s: label_loss(h.float(), w.float(), t, s), ROWS + 3, 0.1, dtype)
    for loss in (label_loss, chunked_label_loss):
        for one, other in zip(exact, value_and_gradients(loss, ROWS + 3, 0.1, dtype), strict=True):
            assert farthest(one.float(), other.float()) < 8 * torch.finfo(dtype).eps * float(one.detach().abs().max())


def test_smoothing_spreads_a_share_of_each_target() -> None:
    draw = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(5, 8, generator=draw), torch.randn(50, 8, generator=draw)
    costs = -(hidden @ head.T).log_softmax(-1)
    expected = torch.stack([0.9 * row[t] + 0.1 * row.mean() for row, t in zip(costs, range(5), strict=True)]).mean()
    for loss in (label_loss, chunked_label_loss):
        assert farthest(loss(hidden, head, torch.arange(5), 0.1), expected) < EXACT * 10


@pytest.mark.parametrize("kind", ["soft prompt", "prefix", "LoRA"])
def test_a_tuned_model_smooths_its_labels(kind: str) -> None:
    tuned, (tokens, labels) = mp.attach(random_model(), TINY_METHODS[kind]), labelled_batch()
    logits = tuned(tokens)[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), label_smoothing=0.2)
    for way in ("plain", "chunked"):
        tuned.model.use_loss(way)
        assert farthest(tuned.loss(tokens, labels, label_smoothing=0.2), expected) < EXACT * 10


def test_a_frozen_head_gets_no_gradient_and_evaluating_computes_none() -> None:
    hidden, head = torch.randn(300, 8, requires_grad=True), torch.randn(50, 8)
    chunked_label_loss(hidden, head, torch.randint(50, (300,))).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert chunked_label_loss(hidden, head, torch.randint(50, (300,))).grad_fn is None


class Watcher(TorchDispatchMode):
    """The most rows that any tensor as wide as the vocabulary had."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.most = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage().data_ptr() in given:
                continue  # the embeddings on their side are no logits
            if tensor.dim() and tensor.shape[-1] == self.vocabulary:
                self.most = max(self.most, tensor.numel() // self.vocabulary)
        return out


@pytest.mark.parametrize("kind", TINY_METHODS)
def test_no_step_of_tuning_makes_more_logits_than_a_chunk(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "ROWS", 5)
    most = {}
    for loss in ("plain", "chunked"):
        tuned = mp.attach(random_model(vocab_size=331).use_loss(loss), TINY_METHODS[kind])
        with Watcher(331) as seen:
            tuned.loss(*labelled_batch()).backward()
        most[loss] = seen.most
        assert all(parameter.grad is None for parameter in tuned.base.parameters())
    assert most == {"plain": 3 * 4, "chunked": 5}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident set as Linux tells it")
@pytest.mark.parametrize("kind", ["soft prompt", "prefix by MLP", "LoRA", "full"])
def test_the_memory_of_a_step_does_not_grow(kind: str) -> None:
    model = random_model(n_embd=64, vocab_size=5000).use_loss("chunked").use_packing(always=True)
    tuned, batch = mp.attach(model, TINY_METHODS[kind]), ragged([30 - 4, 7, 20], "right")
    labels = batch.tokens.masked_fill(batch.mask == 0, -100)
    optimizer = torch.optim.AdamW(tuned.trainable_parameters().values(), lr=1e-3, fused=True)

    def resident_after(steps: int) -> int:
        for _ in range(steps):
            tuned.loss(batch.tokens, labels, batch.mask).backward()
            optimizer.step()
            optimizer.zero_grad()
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1])

    before = resident_after(20)
    # A step's logits alone are 1 MB; if 200 steps left only these behind, it would be 200 MB.
    assert resident_after(200) - before < 20_000


# -- batches without padding ------------------------------------------------------------------------------------------


def loss_and_gradients(kind: str, packing: bool, batch: Ragged, **shape: Any) -> list[Tensor]:
    tuned = mp.attach(random_model(**shape).use_packing(packing, always=True), TINY_METHODS[kind])
    shake(tuned.attachment, seed=3)
    labels = batch.tokens.masked_fill(batch.mask == 0, -100)
    loss = tuned.loss(batch.tokens, labels, batch.mask)
    return [loss, *torch.autograd.grad(loss, list(tuned.trainable_parameters().values()))]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", TINY_METHODS)
def test_packing_changes_neither_loss_nor_gradients(kind: str, side: str) -> None:
    batch = ragged([9, 1, 6, 9], side)
    plain, packed = (loss_and_gradients(kind, packing, batch) for packing in (False, True))
    assert farthest(plain[0], packed[0]) < EXACT * 10
    for one, other in zip(plain[1:], packed[1:], strict=True):
        assert float(one.abs().max()) > 0
        assert farthest(one, other) < EXACT * 10


@pytest.mark.parametrize("kind", ["soft prompt", "prefix", "LoRA"])
def test_packing_computes_nothing_for_padding(kind: str) -> None:
    batch, read = ragged([9, 3, 6], "right"), []
    tuned = mp.attach(random_model().use_packing(always=True), TINY_METHODS[kind])
    tuned.model.blocks[1].mlp.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    logits = tuned(batch.tokens, batch.mask)
    assert read == [(1, 18 + (3 * 4 if kind == "soft prompt" else 0), 32)]
    assert logits.shape == (3, 9, 64)
    tuned(random_tokens(3, 9))  # without padding there is nothing to leave out
    assert read[1][0] == 3


@pytest.mark.parametrize(("padding", "packed"), [(300, False), (1600, True)])
def test_packing_waits_until_it_pays(padding: int, packed: bool) -> None:
    """A row's padding times the width squared: 32² · 300 is below 1.5 million, 32² · 1,600 is not."""
    model, read = random_model(n_positions=4000).use_packing(), []
    model.blocks[0].mlp.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[0]))
    batch = ragged([padding * 2 + 8, 8], "right")
    model.hidden(batch.tokens, batch.mask)
    assert read == [1 if packed else 2]


def test_packing_leaves_generation_and_a_memory_of_each_row_alone() -> None:
    batch = ragged([9, 3, 6], "left")
    rows = [row.tolist() for row in batch.rows]
    plain, packed = (
        mp.attach(random_model().use_packing(on, always=True), TINY_METHODS["prefix"]) for on in (False, True)
    )
    assert packed.generate(rows, 6) == plain.generate(rows, 6)
    memory = plain.doors().memory
    each = type(memory)(memory.keys.expand(-1, 3, -1, -1, -1), memory.values.expand(-1, 3, -1, -1, -1))
    found = packed.base(batch.tokens, batch.mask, memory=each)
    for row, wanted in zip(batch.unpadded(found), batch.unpadded(plain(batch.tokens, batch.mask)), strict=True):
        assert farthest(row, wanted) < EXACT * 10


@pytest.mark.parametrize("kind", TINY_METHODS)
def test_packing_and_computing_again_go_together(kind: str) -> None:
    batch, found = ragged([9, 3, 6], "right"), []
    for again in (False, True):
        model = random_model().use_packing(always=True).use_checkpointing(again)
        tuned = mp.attach(model, TINY_METHODS[kind]).train()
        shake(tuned.attachment, seed=3)
        loss = tuned.loss(batch.tokens, batch.tokens.masked_fill(batch.mask == 0, -100), batch.mask)
        found.append(torch.autograd.grad(loss, list(tuned.trainable_parameters().values())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
