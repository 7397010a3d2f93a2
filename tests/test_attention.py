"""Attention: the mask, two ways to compute, and what stands in front of the text."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minipeft.attention import (
    ATTENTION,
    FixedMemory,
    KVCache,
    explicit_attention,
    fused_attention,
    lower_right_mask,
    next_positions,
)
from tests.models import Ragged, farthest, ragged, random_memory, random_model, random_tokens

B, H, DH = 2, 2, 4

ROUNDING = 2e-6
"""fp32 rounds at 6e-8; sums of up to 30 terms of order 1, in another order, stay below this."""

CASES: dict[str, tuple[int, int, list[list[int]] | None]] = {
    "the text alone": (6, 6, None),
    "a prefix in front": (6, 9, None),
    "one token after a cache": (1, 7, None),
    "three tokens after a cache": (3, 8, None),
    "left padding": (5, 5, [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    "right padding": (5, 5, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    "a prefix and left padding": (5, 7, [[1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]),
    "a prefix and right padding": (5, 7, [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
    "one token after a padded cache": (1, 5, [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    "three tokens after a padded cache": (3, 6, [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
}
each_case = pytest.mark.parametrize(("T", "S", "real"), CASES.values(), ids=CASES.keys())
each_attention = pytest.mark.parametrize("attention", ATTENTION)


def looped_mask(T: int, S: int, real: list[list[int]] | None) -> list[list[list[bool]]]:
    """[B][T][S]: query t is key S - T + t; it sees itself and every real key before it."""
    rows = real or [[1] * S] * B
    return [[[s == S - T + t or (s < S - T + t and bool(row[s])) for s in range(S)] for t in range(T)] for row in rows]


def looped_attention(q: Tensor, k: Tensor, v: Tensor, mask: list[list[list[bool]]]) -> Tensor:
    """One query at a time, in Python's doubles."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = [s for s in range(k.shape[2]) if mask[b][t][s]]
                scores = [sum((q[b, h, t] * k[b, h, s]).tolist()) / math.sqrt(q.shape[-1]) for s in seen]
                total = sum(math.exp(score) for score in scores)
                for s, score in zip(seen, scores, strict=True):
                    out[b, h, t] += math.exp(score) / total * v[b, h, s].double()
    return out


def queries_keys_values(T: int, S: int) -> list[Tensor]:
    return [torch.randn(B, H, length, DH, requires_grad=True) for length in (T, S, S)]


def mask_for(T: int, S: int, real: list[list[int]] | None) -> Tensor | None:
    return None if real is None else lower_right_mask(T, S, torch.tensor(real).bool())


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 5), (4, 4), (3, 5), (2, 7)])
def test_the_mask_is_causal_from_the_lower_right_corner(T: int, S: int) -> None:
    assert lower_right_mask(T, S).tolist() == [[looped_mask(T, S, None)[0]]]


@each_case
def test_the_mask_hides_padding_but_never_a_query_from_itself(T: int, S: int, real: list[list[int]] | None) -> None:
    real = real or [[1] * S, [0] * S]
    found = lower_right_mask(T, S, torch.tensor(real).bool())
    assert found[:, 0].tolist() == looped_mask(T, S, real)


@each_attention
@each_case
def test_attention_is_the_softmax_written_as_a_loop(
    attention: str, T: int, S: int, real: list[list[int]] | None
) -> None:
    q, k, v = queries_keys_values(T, S)
    found = ATTENTION[attention](q, k, v, mask_for(T, S, real))
    assert farthest(found.double(), looped_attention(q, k, v, looped_mask(T, S, real))) < ROUNDING


@each_case
def test_fused_equals_explicit_in_outputs_and_gradients(T: int, S: int, real: list[list[int]] | None) -> None:
    inputs = queries_keys_values(T, S)
    upstream = torch.randn(B, H, T, DH)
    outputs, gradients = [], []
    for attend in (explicit_attention, fused_attention):
        outputs.append(attend(*inputs, mask_for(T, S, real)))
        gradients.append(torch.autograd.grad(outputs[-1], inputs, upstream))
    assert farthest(*outputs) < ROUNDING
    for explicit, fused in zip(*gradients, strict=True):
        assert explicit.abs().max() > 1e-3
        assert farthest(explicit, fused) < 5 * ROUNDING  # a backward pass chains about five such sums


@pytest.mark.parametrize(("T", "S"), [(3, 5), (4, 7)])
def test_the_upper_left_corner_of_pytorch_is_wrong_once_keys_outnumber_queries(T: int, S: int) -> None:
    q, k, v = queries_keys_values(T, S)
    upper_left = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for attend in ATTENTION.values():
        assert farthest(attend(q, k, v), upper_left) > 0.1  # values are N(0, 1): seeing others moves the mean


def test_both_corners_coincide_without_a_memory() -> None:
    q, k, v = queries_keys_values(5, 5)
    for attend in ATTENTION.values():
        assert farthest(attend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True)) < ROUNDING


@each_attention
def test_a_zero_prefix_takes_its_share_of_the_softmax(attention: str) -> None:
    """A zero key scores 0, so P of them add P·e⁰ to the sum of exponentials and nothing to the values."""
    T, P = 4, 3
    q, k, v = queries_keys_values(T, T)
    zeros = torch.zeros(B, H, P, DH)
    alone = ATTENTION[attention](q, k, v)
    after_zeros = ATTENTION[attention](q, torch.cat([zeros, k], 2), torch.cat([zeros, v], 2))
    scores = (q @ k.mT / math.sqrt(DH)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    mass = scores.exp().sum(-1, keepdim=True)
    assert farthest(after_zeros, alone * mass / (mass + P)) < ROUNDING
    assert farthest(after_zeros, alone) > 0.1


@each_attention
def test_dropout_keeps_the_mean(attention: str) -> None:
    draws = 2000
    q, k, v = (torch.randn(1, H, 5, DH).expand(draws, -1, -1, -1) for _ in range(3))
    found = ATTENTION[attention](q, k, v, None, 0.2)
    exact = ATTENTION[attention](q[:1], k[:1], v[:1])[0]
    error_of_mean = found.std(dim=0) / math.sqrt(draws)
    assert error_of_mean.max() > 1e-3
    assert ((found.mean(dim=0) - exact).abs() < 5 * error_of_mean + ROUNDING).all()


@each_attention
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_later_token_changes_nothing_before_it(attention: str, data: st.DataObject) -> None:
    T = data.draw(st.integers(2, 8), label="T")
    P = data.draw(st.integers(0, 4), label="P")
    changed = data.draw(st.integers(1, T - 1), label="changed place")
    model = random_model(attention=attention, n_layer=2, n_embd=8)
    memory = random_memory(model, P) if P else None
    tokens = random_tokens(1, T, seed=data.draw(st.integers(0, 99), label="seed"))
    others = tokens.clone()
    others[0, changed] = (tokens[0, changed] + 1) % model.config.vocab_size
    before, after = model(tokens, memory=memory), model(others, memory=memory)
    # Not a tolerance: a masked key has weight 0 and 0 · v is 0.
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prefix_gets_the_same_gradients_from_both_attentions(side: str) -> None:
    batch = ragged([7, 4, 6], side)
    labels = batch.tokens.masked_fill(batch.mask == 0, -100)
    gradients = []
    for attention in ATTENTION:
        model = random_model(attention=attention)
        memory = random_memory(model, 3)
        model.loss(batch.tokens, labels, batch.mask, memory=memory).backward()
        gradients.append((memory.keys.grad, memory.values.grad))
    for explicit, fused in zip(*gradients, strict=True):
        assert explicit.abs().amax(dim=(1, 2, 3, 4)).min() > 1e-5  # every layer's part learns
        assert farthest(explicit, fused) < ROUNDING


def test_a_fixed_memory_stands_in_front_of_every_row_and_forgets_the_text() -> None:
    memory = FixedMemory(torch.randn(1, 1, H, 3, DH), torch.randn(1, 1, H, 3, DH))
    k, v = torch.randn(2, B, H, 4, DH)
    for _ in range(2):
        keys, values = memory.extend(0, k, v)
        memory.advance(torch.ones(B, 4).bool())
        for row in range(B):
            assert torch.equal(keys[row], torch.cat([memory.keys[0, 0], k[row]], dim=1))
            assert torch.equal(values[row], torch.cat([memory.values[0, 0], v[row]], dim=1))
    assert memory.length == 3


def test_a_memory_may_differ_by_row() -> None:
    model = random_model()
    tokens = random_tokens(2, 5)
    one, two = random_memory(model, 3, seed=1), random_memory(model, 3, seed=2)
    both = FixedMemory(torch.cat([one.keys, two.keys], 1), torch.cat([one.values, two.values], 1))
    found = model(tokens, memory=both)
    for row, memory in enumerate((one, two)):
        assert farthest(found[row], model(tokens[row : row + 1], memory=memory)[0]) < 1e-5  # fp32, another batch size


def read_in_parts(model, batch: Ragged, parts: list[int], cache: KVCache) -> Tensor:
    """The logits of a batch that is read a few tokens at a time."""
    found, start = [], 0
    for length in parts:
        part = slice(start, start + length)
        found.append(model(batch.tokens[:, part], batch.mask[:, part], memory=cache))
        start += length
    assert start == batch.tokens.shape[1]
    return torch.cat(found, dim=1)


@each_attention
@pytest.mark.parametrize("parts", [[8], [1] * 8, [3, 1, 4], [5, 3]], ids=str)
@pytest.mark.parametrize("lengths", [[8, 8], [8, 3], [2, 8]], ids=["unpadded", "padded", "padded before others"])
@torch.no_grad()
def test_reading_in_parts_through_a_cache_gives_what_reading_at_once_gives(
    attention: str, parts: list[int], lengths: list[int]
) -> None:
    model = random_model(attention=attention)
    batch = ragged(lengths, "left")
    found = read_in_parts(model, batch, parts, model.new_cache(len(lengths), capacity=10))
    for row, alone in zip(batch.unpadded(found), batch.rows, strict=True):
        assert farthest(row, model(alone[None])[0]) < 1e-5  # logits of order 3 in fp32


@each_attention
@torch.no_grad()
def test_a_cache_may_start_with_a_prefix(attention: str) -> None:
    model = random_model(attention=attention)
    memory = random_memory(model, 3)
    batch = ragged([6, 4], "left")
    cache = model.new_cache(2, capacity=9)
    cache.start_with(memory)
    found = read_in_parts(model, batch, [4, 1, 1], cache)
    for row, alone in zip(batch.unpadded(found), batch.rows, strict=True):
        assert farthest(row, model(alone[None], memory=memory)[0]) < 1e-5  # logits of order 3 in fp32


def test_a_cache_keeps_what_it_was_given_in_order() -> None:
    cache = KVCache(layers=2, batch=B, heads=H, capacity=6, head_size=DH, like=torch.zeros(1))
    kept: list[list[Tensor]] = [[], []]
    for T in (3, 1, 2):
        for layer in range(2):
            k, v = torch.randn(2, B, H, T, DH)
            kept[layer].append(k)
            keys, values = cache.extend(layer, k, v)
            assert torch.equal(keys, torch.cat(kept[layer], dim=2))
            assert torch.equal(values[:, :, -T:], v)
        cache.advance(torch.ones(B, T).bool())
    assert cache.length == 6
    assert cache.real is None


def test_a_cache_remembers_which_slots_are_padding() -> None:
    cache = KVCache(layers=1, batch=2, heads=H, capacity=5, head_size=DH, like=torch.zeros(1))
    cache.advance(torch.tensor([[False, True], [True, True]]))
    cache.advance(torch.ones(2, 1).bool())
    assert cache.real is not None
    assert cache.real.tolist() == [[False, True, True], [True, True, True]]


@pytest.mark.parametrize(
    "real",
    [[[1, 1, 1]], [[0, 0, 1, 1], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 1, 1, 1]], [[0, 1, 0, 1], [1, 0, 0, 1]]],
    ids=["unpadded", "left", "right", "holes"],
)
@pytest.mark.parametrize("memory", ["none", "prefix", "cache", "padded cache"])
def test_a_position_is_the_number_of_real_keys_before(real: list[list[int]], memory: str) -> None:
    rows = len(real)
    P = 3
    cache = KVCache(layers=1, batch=rows, heads=H, capacity=8, head_size=DH, like=torch.zeros(1))
    cached = [[int(memory == "cache" or place >= row) for place in range(P)] for row in range(rows)]
    if "cache" in memory:
        cache.advance(torch.tensor(cached).bool())
    prefix = FixedMemory(torch.zeros(1, 1, H, P, DH), torch.zeros(1, 1, H, P, DH))
    given_memory = {"none": None, "prefix": prefix}.get(memory, cache)
    before = [{"none": 0, "prefix": P}.get(memory, sum(cached[row])) for row in range(rows)]

    found = next_positions(torch.tensor(real).bool(), given_memory).tolist()
    for row in range(rows):
        for place, is_real in enumerate(real[row]):
            if is_real:
                assert found[row][place] == before[row] + sum(real[row][:place])
            assert found[row][place] >= 0
