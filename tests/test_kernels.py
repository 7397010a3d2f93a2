"""What makes it fast computes what the plain version computes, and allocates no more than it promises."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minipeft as mp
from minipeft.attention import MANY_ROWS, explicit_attention, fused_attention, lower_right_mask
from minipeft.kernels import chunked_loss, machine, packed_linear, product_attention
from minipeft.kernels.allocator import move_to_huge_pages, page_out
from minipeft.kernels.chunked_loss import ROWS, chunked_label_loss
from minipeft.kernels.mixed_linear import gelu_linear, mixed_linear
from minipeft.kernels.packed_linear import PackedLinear, can_pack, linear_gelu
from minipeft.kernels.single_query import single_query_attention
from minipeft.kernels.split_attention import can_split, split_attention
from minipeft.layers import Linear
from minipeft.loss import label_loss
from tests.models import TINY, Ragged, farthest, ragged, random_model, random_tokens, shake
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
        given = {tensor.untyped_storage().data_ptr() for tensor in self._dense((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in self._dense(out):
            if tensor.untyped_storage().data_ptr() in given:
                continue  # the embeddings on their side are no logits
            if tensor.dim() and tensor.shape[-1] == self.vocabulary:
                self.most = max(self.most, tensor.numel() // self.vocabulary)
        return out

    def _dense(self, tree: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_sparse]


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


def loss_and_gradients(kind: str, packing: bool, batch: Ragged, attention: str = "fused") -> list[Tensor]:
    tuned = mp.attach(random_model(attention=attention).use_packing(packing, always=True), TINY_METHODS[kind])
    shake(tuned.attachment, seed=3)
    labels = batch.tokens.masked_fill(batch.mask == 0, -100)
    loss = tuned.loss(batch.tokens, labels, batch.mask)
    return [loss, *torch.autograd.grad(loss, list(tuned.trainable_parameters().values()))]


@pytest.mark.parametrize("attention", ["fused", "explicit", "split"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", TINY_METHODS)
def test_packing_changes_neither_loss_nor_gradients(kind: str, side: str, attention: str) -> None:
    batch = ragged([9, 1, 6, 9], side)
    plain, packed = loss_and_gradients(kind, False, batch), loss_and_gradients(kind, True, batch, attention)
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
    assert read == [(1, 18 + (4 if kind == "soft prompt" else 0), 32)]
    assert logits.shape == (3, 9, 64)
    tuned(random_tokens(3, 9))  # without padding there is nothing to leave out, but for a prompt's copies
    filling = 1  # 31 are rounded up to 32
    assert read[1] == ((1, 4 + 27 + filling, 32) if kind == "soft prompt" else (3, 9, 32))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", TINY_METHODS)
def test_the_last_mlp_reads_nothing_but_what_is_scored(kind: str, packing: bool) -> None:
    """What it leaves out changes no gradient: the reference takes its loss from the logits of all tokens."""
    batch, read = ragged([19, 1, 6, 9], "left"), []
    tuned = mp.attach(random_model().use_packing(packing, always=True), TINY_METHODS[kind])
    shake(tuned.attachment, seed=3)
    labels = batch.tokens.masked_fill((batch.mask == 0) | (torch.arange(19) < 15), -100)
    logits = tuned(batch.tokens, batch.mask)[:, :-1].flatten(0, 1)
    after_padding = torch.nn.functional.pad(batch.mask[:, :-1] == 0, (1, 0))
    targets = labels.masked_fill(after_padding, -100)[:, 1:].flatten()
    tuned.model.blocks[-1].mlp.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[:2].numel()))
    losses = torch.nn.functional.cross_entropy(logits, targets), tuned.loss(batch.tokens, labels, batch.mask)
    assert read == [4 + 4 + 4]  # of the row with one token none has a token before it
    assert farthest(*losses) < EXACT * 10
    trained = list(tuned.trainable_parameters().values())
    for one, other in zip(*(torch.autograd.grad(loss, trained) for loss in losses), strict=True):
        assert farthest(one, other) < EXACT * 10


def test_hidden_states_of_some_tokens_are_those_of_all() -> None:
    batch = ragged([9, 4, 6], "right")
    wanted = (batch.mask == 1) & (torch.arange(9) % 3 == 1)
    for packing in (False, True):
        tuned = mp.attach(random_model().use_packing(packing, always=True), TINY_METHODS["soft prompt"])
        found = tuned.hidden(batch.tokens, batch.mask, only=wanted)
        assert farthest(found, tuned.hidden(batch.tokens, batch.mask)[wanted]) < EXACT * 10


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


@pytest.mark.parametrize("attention", ["fused", "split"])
@pytest.mark.parametrize("kind", TINY_METHODS)
def test_packing_and_computing_again_go_together(kind: str, attention: str) -> None:
    batch, found = ragged([9, 3, 6], "right"), []
    for again in (False, True):
        model = random_model(attention=attention).use_packing(always=True).use_checkpointing(again)
        tuned = mp.attach(model, TINY_METHODS[kind]).train()
        shake(tuned.attachment, seed=3)
        loss = tuned.loss(batch.tokens, batch.tokens.masked_fill(batch.mask == 0, -100), batch.mask)
        found.append(torch.autograd.grad(loss, list(tuned.trainable_parameters().values())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# -- attention split in the prefix's part and the text's --------------------------------------------------------------


def test_splitting_is_what_runs_when_asked_and_only_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    split = []

    def seen(*inputs: Any) -> Tensor:
        split.append(inputs[2])
        return split_attention(*inputs)

    monkeypatch.setattr("minipeft.gpt2.split_attention", seen)
    for attention, dropout in (("fused", 0.0), ("split", 0.0), ("split", 0.1)):
        model = mp.GPT2(mp.GPT2Config(**TINY, dropout=dropout), attention, seed=0).use_packing(always=True)
        batch = ragged([9, 3, 6], "right")
        mp.attach(model, mp.Prefix(3, None)).train().hidden(batch.tokens, batch.mask)
    assert split == [(9, 3, 6)] * TINY["n_layer"]
    assert not can_split(torch.zeros(1, device="meta"), 0.0)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(("P", "shared"), [(0, 0), (5, 0), (0, 6)])
def test_split_attention_is_explicit_attention_in_every_type(
    P: int, shared: int, slow: bool, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference computes in fp32 on the same rounded numbers, so a result is wrong by its type's own coarseness."""
    monkeypatch.setattr(machine, "HAS_AMX", not slow)
    draw, lengths, H, Dh = torch.Generator().manual_seed(0), (7, 1, 40), 3, 16
    qkv = torch.randn(1, shared + sum(lengths), 3 * H * Dh, generator=draw).to(kind).requires_grad_()
    prefix = [torch.randn(1, H, P, Dh, generator=draw).requires_grad_() for _ in range(2)] if P else []
    weight = torch.randn(1, shared + sum(lengths), H * Dh, generator=draw)

    def plain() -> Tensor:
        q, k, v = (part.unflatten(-1, (H, Dh)).transpose(1, 2) for part in qkv.float().chunk(3, dim=-1))
        if P:
            k, v = (torch.cat([learned, own], dim=2) for learned, own in zip(prefix, (k, v), strict=True))
        whole = lower_right_mask(q.shape[2], k.shape[2])[0, 0]
        text = torch.tensor([-1] * (P + shared) + [n for n, length in enumerate(lengths) for _ in range(length)])
        sees = whole & ((text == text[P:, None]) | (text == -1))  # its own text, and what stands before all
        return explicit_attention(q, k, v, sees[None, None]).transpose(1, 2).flatten(2)

    found = [
        [heads, *torch.autograd.grad((heads.float() * weight).sum(), [qkv, *prefix])]
        for heads in (plain(), split_attention(qkv, H, lengths, shared, tuple(prefix) or None))
    ]
    for one, other in zip(*found, strict=True):
        assert farthest(one.float(), other.float()) < 4 * torch.finfo(kind).eps * float(one.detach().abs().max())


def test_the_mask_that_cuda_knows_by_name_is_ours() -> None:
    from minipeft.attention import _named_mask

    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=draw) for n in (5, 9, 9))
    by_name = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=_named_mask(5, 9))
    assert farthest(by_name, explicit_attention(q, k, v, lower_right_mask(5, 9))) < EXACT


# -- causal attention by products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 2, 11, 8), (1, 3, 4, 8), (5, 1, 1, 8)])
@pytest.mark.parametrize(("block", "most"), [(4, 1), (4, 200), (128, 1 << 23)])
def test_attention_by_products_is_explicit_attention(
    block: int, most: int, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks and rows of any number, of tensors that are views of one, as a layer makes them."""
    monkeypatch.setattr(product_attention, "BLOCK", block)
    monkeypatch.setattr(product_attention, "MOST_SHARES", most)
    (B, H, T, Dh), draw = shape, torch.Generator().manual_seed(0)
    qkv = torch.randn(B, T, 3 * H * Dh, generator=draw).to(dtype).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    weight = torch.randn(shape, generator=draw)
    found = []
    by_products = partial(product_attention.product_attention, causal=lower_right_mask(T, T)[0, 0])
    for attend, joined in ((by_products, qkv), (explicit_attention, exact)):
        heads = attend(*(part.unflatten(-1, (H, Dh)).transpose(1, 2) for part in joined.chunk(3, dim=-1)))
        found.append([heads, *torch.autograd.grad((heads.double() * weight).sum(), joined)])
    assert found[0][0].dtype == dtype
    assert found[0][0].transpose(1, 2).is_contiguous()  # what is joined to [B, T, D] without a copy
    as_close = 1e-5 if dtype == torch.float32 else 0.02
    for one, other in zip(*found, strict=True):
        assert farthest(one.double(), other) < as_close * max(1.0, float(other.detach().abs().max()))


def test_attention_by_products_is_for_training_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("minipeft.attention.product_attention", lambda q, k, v, causal: asked.append(causal) or v)

    def attend(dtype: torch.dtype = torch.bfloat16, grad: bool = True, **options: Any) -> None:
        q, k, v = (torch.randn(1, 2, 5, 4, dtype=dtype, requires_grad=grad) for _ in range(3))
        fused_attention(q, k, v, **options)

    monkeypatch.setattr(product_attention, "QUICK_IN_BFLOAT16", True)
    monkeypatch.setattr(product_attention, "FEWEST_SHARES", 50)  # 2 heads of 5 queries with 5 keys
    attend()
    assert len(asked) == 1
    attend(torch.float32)
    attend(grad=False)
    attend(dropout=0.1)
    attend(mask=lower_right_mask(5, 5))
    monkeypatch.setattr(product_attention, "FEWEST_SHARES", 51)
    attend()
    monkeypatch.setattr(product_attention, "FEWEST_SHARES", 50)
    monkeypatch.setattr(product_attention, "QUICK_IN_BFLOAT16", False)
    attend()
    assert len(asked) == 1


# -- attention of single queries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "as_close"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03)])  # rounding, once more
@pytest.mark.parametrize("padded", [True, False])
def test_single_queries_attend_by_products(padded: bool, dtype: torch.dtype, as_close: float) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(MANY_ROWS, 3, T, 8, generator=draw).to(dtype) for T in (1, 30, 30))
    real = torch.rand(MANY_ROWS, 30, generator=draw) > 0.5
    mask = lower_right_mask(1, 30, real) if padded else None
    wanted = explicit_attention(q.double(), k.double(), v.double(), mask)
    found = single_query_attention(q, k, v, mask)
    assert found.dtype == dtype
    assert farthest(found, wanted) < as_close
    assert torch.equal(fused_attention(q, k, v, mask), found)
    if mask is not None:  # what is hidden may be anything
        hidden = ~mask.mT
        assert torch.equal(single_query_attention(q, k.masked_fill(hidden, 9), v.masked_fill(hidden, 9), mask), found)


# -- products in another type -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gelu", [None, "tanh", "none"])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("types", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")])
def test_a_mixed_product_is_the_product(
    types: tuple[str, str], slow: bool, gelu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "QUICK_IN_BFLOAT16", not slow)
    draw, of_x, of_weight = torch.Generator().manual_seed(0), *(getattr(torch, name) for name in types)
    x = torch.randn(2, 7, 24, generator=draw).to(of_x).requires_grad_()
    layer = [torch.randn(*shape, generator=draw).to(of_weight).requires_grad_() for shape in ((10, 24), (10,))]
    slope = torch.randn(2, 7, 10, generator=draw)
    seen = x.float() if gelu is None else torch.nn.functional.gelu(x.float(), approximate=gelu)
    plain = torch.nn.functional.linear(seen, *(tensor.float() for tensor in layer))
    ours = mixed_linear(x, *layer) if gelu is None else gelu_linear(x, *layer, gelu)
    assert ours.dtype == of_x
    wanted, found = (torch.autograd.grad((y.float() * slope).sum(), [x, *layer]) for y in (plain, ours))
    coarse = max(torch.finfo(of_x).eps, torch.finfo(of_weight).eps)
    for one, other in zip((plain, *wanted), (ours, *found), strict=True):
        assert farthest(one.float(), other.float()) < 4 * coarse * float(one.detach().abs().max())


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN")
def test_a_product_by_onednn_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "QUICK_BY_ONEDNN", True)
    monkeypatch.setattr(machine, "LARGE", 1)
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw).requires_grad_() for shape in ((2, 7, 24), (10, 24), (10,)))
    assert machine.by_onednn(x, weight)
    found = []
    for linear in (torch.nn.functional.linear, mixed_linear):
        y = linear(x, weight, bias)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, weight, bias])])
    for one, other in zip(*found, strict=True):
        assert farthest(one, other) < EXACT * 10 * float(one.detach().abs().max())


def test_a_frozen_layer_keeps_no_input_for_its_gradient() -> None:
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        x = torch.randn(2, 7, 24, dtype=torch.bfloat16, requires_grad=True)
        mixed_linear(x, torch.randn(10, 24)).sum()
    assert (10, 24) in kept
    assert (2, 7, 24) not in kept


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", TINY_METHODS)
def test_all_kernels_together_give_the_plain_loss_and_gradients(kind: str, base: str) -> None:
    """In half precision as near to fp32 arithmetic on the same rounded weights as the plain code is."""
    batch = ragged([9, 1, 6, 9], "right")
    labels = batch.tokens.masked_fill(batch.mask == 0, -100)

    def run(dtype: torch.dtype, kernels: bool) -> tuple[float, Tensor]:
        model = random_model().to(getattr(torch, base)).to(dtype)
        tuned = mp.attach(model.use_kernels().use_packing(always=True) if kernels else model, TINY_METHODS[kind])
        shake(tuned.attachment, seed=3)
        loss = tuned.train().loss(batch.tokens, labels, batch.mask)
        gradients = torch.autograd.grad(loss, list(tuned.trainable_parameters().values()))
        return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])

    loss, exact = run(torch.float32, False)
    _, plain = run(getattr(torch, base), False)
    own_loss, ours = run(getattr(torch, base), True)
    assert abs(own_loss - loss) < (EXACT * 30 if base == "float32" else 0.01)
    assert (ours - exact).norm() <= max(1.5 * float((plain - exact).norm()), EXACT * float(exact.norm()))


@pytest.mark.parametrize("kernels", [False, True])
def test_mixed_precision_trains_fp32_weights_through_bfloat16(kernels: bool) -> None:
    batch, seen = ragged([9, 4], "right"), []
    labels = batch.tokens.masked_fill(batch.mask == 0, -100)

    def run(kind: torch.dtype | None) -> tuple[mp.Tuned, list[Tensor]]:
        model = random_model().use_activations(kind)
        tuned = mp.attach(model.use_kernels() if kernels else model, mp.FullFinetuning()).train()
        tuned.model.blocks[1].register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
        loss = tuned.loss(batch.tokens, labels, batch.mask)
        return tuned, [loss, *torch.autograd.grad(loss, list(tuned.trainable_parameters().values()))]

    (_, exact), (tuned, mixed) = run(None), run(torch.bfloat16)
    assert seen == [torch.float32, torch.bfloat16]
    for one, other in zip(exact, mixed, strict=True):
        assert other.dtype == torch.float32
        assert 0 < farthest(one, other) < 0.05 * float(one.detach().abs().max()) + 0.01
    assert (
        farthest(tuned.eval()(batch.tokens), random_model()(batch.tokens)) < EXACT
    )  # in full where nothing is trained


# -- products by weights that were put in order -----------------------------------------------------------------------

AS_CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Of products that are below 10."""


def layer(inputs: int, outputs: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, generator=draw).div(8).to(dtype) for size in ((outputs, inputs), (outputs,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 24), (3, 5, 24), (70, 24)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_a_packed_product_is_the_plain_one(shape: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    weight, bias = layer(24, 50, dtype)
    if not can_pack(weight):
        pytest.skip(f"oneDNN has no order for weights in {dtype} here")
    x, product = torch.randn(shape).to(dtype), PackedLinear()
    with torch.no_grad():
        found = product(x, weight, bias if biased else None)
        wanted = x.double() @ weight.double().T + (bias.double() if biased else 0.0)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    assert product.packed is not None
    assert farthest(found, wanted) < AS_CLOSE[dtype]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["tanh", "none"])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_gelu_in_a_packed_product_is_the_gelu_of_the_product(rows: int, form: str, dtype: torch.dtype) -> None:
    linear = Linear(24, 50).to(dtype)
    if not can_pack(linear.weight):
        pytest.skip(f"oneDNN has no order for weights in {dtype} here")
    x = torch.randn(rows, 2, 24).to(dtype)
    wanted = F.gelu(F.linear(x.double(), linear.weight.double(), linear.bias.double()), approximate=form)
    assert farthest(linear_gelu(linear, x, form), wanted) < AS_CLOSE[dtype]
    linear.product = PackedLinear()
    assert farthest(linear_gelu(linear, x, form), wanted) < AS_CLOSE[dtype]
    assert linear.product.packed is not None
    with torch.enable_grad():  # the plain function, whose gradient is there
        assert linear_gelu(linear, x, form).requires_grad
    assert farthest(linear_gelu(nn.Sequential(linear), x, form), wanted) < AS_CLOSE[dtype]  # a layer that is wrapped


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (3, 1, 24), (1, 2, 24)], ids=str)
def test_few_rows_get_rows_below_them_that_change_nothing(shape: tuple[int, ...]) -> None:
    weight, bias = layer(24, 50, torch.float32)
    x = torch.randn(shape)
    found = PackedLinear()(x, weight, bias, "tanh")
    assert found.shape == (*shape[:-1], 50)
    assert farthest(found, F.gelu(F.linear(x, weight, bias), approximate="tanh")) < AS_CLOSE[torch.float32]


@torch.no_grad()
def test_a_packed_weight_that_is_used_often_moves_to_huge_pages_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []

    def move(start: int, size: int) -> None:
        moved.append(size)
        move_to_huge_pages(start, size)

    monkeypatch.setattr(packed_linear, "move_to_huge_pages", move)
    monkeypatch.setattr(packed_linear, "SETTLED", 3)
    x, small, large = torch.randn(2, 1024), torch.randn(16, 1024), torch.randn(1024, 1024)
    for weight, times in ((small, 0), (large, 1)):
        product = PackedLinear()
        found = [product(x, weight) for _ in range(7)]
        assert moved == [weight.nbytes] * times
        assert all(torch.equal(found[0], other) for other in found)
    large.mul_(2)  # another copy, which moves anew
    assert farthest(product(x, large), 2 * found[0]) < 1e-3
    assert len(moved) == 1
    product(x, large), product(x, large)
    assert len(moved) == 2


def test_packed_weights_follow_the_weights() -> None:
    linear = nn.Linear(24, 50)
    x, product = torch.randn(2, 24), PackedLinear()

    def changed(change: Callable[[], Any]) -> None:
        change()
        with torch.no_grad():
            found = product(x.to(linear.weight.dtype), linear.weight, linear.bias)
        wanted = x.double() @ linear.weight.double().T + linear.bias.double()
        assert farthest(found, wanted) < AS_CLOSE[linear.weight.dtype]

    changed(lambda: None)
    changed(lambda: linear.weight.detach().mul_(-2))  # as an optimizer does
    changed(lambda: linear.load_state_dict(nn.Linear(24, 50).state_dict()))
    changed(lambda: setattr(linear, "weight", nn.Parameter(torch.randn(50, 24))))
    changed(linear.bfloat16)
    changed(linear.float)


def test_where_gradients_are_asked_for_nothing_is_packed() -> None:
    weight, bias = layer(24, 50, torch.float32)
    x, product = torch.randn(2, 24, requires_grad=True), PackedLinear()
    product(x, weight, bias).sum().backward()
    assert x.grad is not None
    assert farthest(x.grad, weight.sum(dim=0).expand(2, -1)) < EXACT
    assert product.packed is None


@torch.no_grad()
def test_what_cannot_be_packed_is_multiplied_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = layer(24, 50, torch.float32)
    x, product = torch.randn(2, 24), PackedLinear()
    assert product(x[:0], weight, bias).shape == (0, 50)
    assert not can_pack(weight.double())
    assert not can_pack(weight.half())
    assert not can_pack(weight.to("meta"))
    assert product(x.double(), weight.double()).dtype == torch.float64
    monkeypatch.setattr(packed_linear, "_CAN_REORDER", False)
    assert torch.equal(product(x, weight, bias), F.linear(x, weight, bias))
    assert product.packed is None


def test_a_model_writes_the_same_by_packed_weights_and_a_copy_packs_its_own() -> None:
    model = random_model()
    tokens = random_tokens(5, 6)
    wanted = mp.generate(model, tokens, mp.Sampling(12))
    model.use_products("packed")
    assert torch.equal(mp.generate(model, tokens, mp.Sampling(12)), wanted)
    assert isinstance(model.head_product, PackedLinear)
    assert model.head_product.packed is not None
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
        both = [some(tokens) for some in (model, copied)]
        model.use_products("plain"), copied.use_products("plain")
        for some, found in zip((model, copied), both, strict=True):
            assert farthest(found, some(tokens)) < EXACT * 10
    assert farthest(*both) > 0.1


@torch.inference_mode()
def test_weights_made_for_inference_alone_can_be_packed() -> None:
    weight, bias = layer(24, 50, torch.float32)
    assert weight.is_inference()
    x = torch.randn(2, 24)
    assert farthest(PackedLinear()(x, weight, bias), F.linear(x, weight, bias)) < AS_CLOSE[torch.float32]


# -- memory -----------------------------------------------------------------------------------------------------------


def test_weights_that_were_paged_out_are_what_they_were(tmp_path: Path) -> None:
    model = random_model(n_embd=128, vocab_size=3000)
    model.save_pretrained(tmp_path)
    mapped = mp.GPT2.from_pretrained(tmp_path)
    with torch.no_grad():
        for each in (model, mapped):
            each.wte.weight[5] = 7.0  # changed in memory: the file knows nothing of it
    page_out([*mapped.parameters(), torch.zeros(3), torch.zeros(0)])
    for one, other in zip(model.parameters(), mapped.parameters(), strict=True):
        assert torch.equal(one, other)
