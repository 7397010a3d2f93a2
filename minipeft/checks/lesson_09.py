"""Lesson 09: attention with a prefix, and the network that makes one, against plain loops."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.checks.exercise import Exercise, require

B, H, T, P, Dh = 3, 2, 6, 5, 4
LAYERS, WIDTH, HIDDEN = 3, H * Dh, 7


def judge_attention(prefix_attention: Callable[..., Any]) -> None:
    """Each query by itself: a softmax over the prefix and the text up to its own token."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, H, T, Dh, generator=generator) for _ in range(3))
    prefix_k, prefix_v = (torch.randn(H, P, Dh, generator=generator) for _ in range(2))
    heads = [_by_loop(q, k, v, prefix_k, prefix_v, b, h) for b in range(B) for h in range(H)]
    expected = torch.stack(heads).unflatten(0, (B, H))
    found = prefix_attention(*(part.clone() for part in (q, k, v, prefix_k, prefix_v)))
    require(isinstance(found, Tensor), f"prefix_attention must return a tensor, not a {type(found).__name__}.")
    require(
        tuple(found.shape) == (B, H, T, Dh),
        f"the output is {tuple(found.shape)}; it must be [B, H, T, Dh], {(B, H, T, Dh)}: a result for each token of "
        "the text, and none for the prefix.",
    )
    found = found.float()
    if torch.allclose(found, expected, atol=1e-5):
        return
    keys, values = (torch.cat([a.expand(B, -1, -1, -1), b], dim=2) for a, b in ((prefix_k, k), (prefix_v, v)))
    behind = torch.cat([k, keys[:, :, :P]], dim=2), torch.cat([v, values[:, :, :P]], dim=2)
    attend = F.scaled_dot_product_attention
    alone = attend(q, k, v, is_causal=True)
    for mistake, wrong in (
        (
            "the mask starts in the upper left corner, as is_causal=True does with more keys than queries: the first "
            "token sees one key of the prefix, and not itself.",
            attend(q, keys, values, is_causal=True),
        ),
        ("a token sees the tokens after it: mask them.", attend(q, keys, values)),
        ("that is attention without the prefix.", alone),
        (
            "the prefix got a softmax of its own, which was added: it must share one softmax with the text.",
            alone + attend(q, prefix_k.expand(B, -1, -1, -1), prefix_v.expand(B, -1, -1, -1)),
        ),
        (
            "the prefix's values come without its keys, or the other way round.",
            attend(q, torch.cat([torch.zeros_like(keys[:, :, :P]), k], dim=2), values, attn_mask=_mask()),
        ),
        (
            "the prefix stands behind the text, where the mask of a causal model hides it.",
            attend(q, *behind, attn_mask=_mask()),
        ),
        (
            "the scores are divided by the wrong number: it is the square root of Dh, the width of one head.",
            attend(q, keys, values, attn_mask=_mask(), scale=1.0),
        ),
        ("the prefix's keys and values are exchanged.", _exchanged(q, k, v, prefix_k, prefix_v)),
    ):
        require(not torch.allclose(found, wrong, atol=1e-5), mistake)
    require(False, "the output is not the softmax over prefix and text, token by token.")


def _by_loop(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, b: int, h: int) -> Tensor:
    rows = []
    for t in range(T):
        keys = [*prefix_k[h], *k[b, h, : t + 1]]
        values = [*prefix_v[h], *v[b, h, : t + 1]]
        shares = [math.exp(float(q[b, h, t] @ key) / math.sqrt(Dh)) for key in keys]
        rows.append(sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares))
    return torch.stack(rows)


def _mask() -> Tensor:
    return torch.tensor([[key <= P + query for key in range(P + T)] for query in range(T)])


def _exchanged(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    keys = torch.cat([prefix_v.expand(B, -1, -1, -1), k], dim=2)
    values = torch.cat([prefix_k.expand(B, -1, -1, -1), v], dim=2)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=_mask())


def judge_fold(fold: Callable[..., Any]) -> None:
    """Every number by its place: vector, block, key or value, head."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((P, WIDTH), (HIDDEN, WIDTH), (HIDDEN,), (2 * LAYERS * WIDTH, HIDDEN), (2 * LAYERS * WIDTH,))
    E, W1, b1, W2, b2 = (torch.randn(size, generator=generator) for size in sizes)
    made = _network(E, W1, b1, W2, b2)
    found = fold(*(part.clone() for part in (E, W1, b1, W2, b2)), LAYERS, H)
    if isinstance(found, Tensor) and found.shape[:1] == (2,):
        found = tuple(found)  # one tensor of two unpacks as a pair does
    require(
        isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, Tensor) for part in found),
        "fold must return two tensors: the keys and the values.",
    )
    shape = (LAYERS, H, P, Dh)
    for name, part in zip(("keys", "values"), found, strict=True):
        require(tuple(part.shape) == shape, f"the {name} are {tuple(part.shape)}; they must be [L, H, P, Dh], {shape}.")
    found = tuple(part.float() for part in found)
    if _same(found, made):
        return
    without_bend = [_affine(_affine(row, W1, b1), W2, b2) for row in E.tolist()]
    without_bias = _network(E, W1, torch.zeros_like(b1), W2, torch.zeros_like(b2))
    relu = [_affine([max(0.0, z) for z in _affine(row, W1, b1)], W2, b2) for row in E.tolist()]
    for mistake, wrong in (
        ("the tanh between the two layers is missing.", without_bend),
        ("between the two layers stands tanh, not ReLU.", relu),
        ("the two biases are missing.", without_bias),
        ("the first bias is missing.", _network(E, W1, torch.zeros_like(b1), W2, b2)),
        ("the second bias is missing.", _network(E, W1, b1, W2, torch.zeros_like(b2))),
    ):
        require(not _same(found, wrong), mistake)
    keys, values = _placed(made)
    require(
        not (_close(found[0], values) and _close(found[1], keys)),
        "keys and values are exchanged: the key comes first.",
    )
    flat = torch.tensor(made)
    halves = [half.reshape(P, LAYERS, H, Dh).permute(1, 2, 0, 3) for half in flat.chunk(2, dim=1)]
    require(
        not (_close(found[0], halves[0]) and _close(found[1], halves[1])),
        "you took the first half for the keys of all blocks; in each block the key is followed by the value.",
    )
    shaped = flat.reshape(LAYERS, 2, H, P, Dh)
    require(
        not (_close(found[0], shaped[:, 0]) and _close(found[1], shaped[:, 1])),
        "the shape is right and the numbers are mixed up: view as [P, L, 2, H, Dh], which is their order, and then "
        "move the dimensions with permute.",
    )
    require(False, "the keys and values are not those that a loop over vectors, blocks and heads finds.")


def _affine(row: list[float], W: Tensor, b: Tensor) -> list[float]:
    return [sum(w * x for w, x in zip(ws, row, strict=True)) + float(c) for ws, c in zip(W.tolist(), b, strict=True)]


def _network(E: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> list[list[float]]:
    """Of each vector of the prefix its 2·L·D numbers."""
    return [_affine([math.tanh(z) for z in _affine(row, W1, b1)], W2, b2) for row in E.tolist()]


def _placed(made: list[list[float]]) -> tuple[Tensor, Tensor]:
    keys, values = torch.zeros(LAYERS, H, P, Dh), torch.zeros(LAYERS, H, P, Dh)
    for p, row in enumerate(made):
        numbers = iter(row)
        for layer in range(LAYERS):
            for part in (keys, values):
                for h in range(H):
                    for d in range(Dh):
                        part[layer, h, p, d] = next(numbers)
    return keys, values


def _same(found: Any, made: list[list[float]]) -> bool:
    keys, values = _placed(made)
    return _close(found[0], keys) and _close(found[1], values)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4)


ATTENTION = Exercise(
    name="09a",
    function="prefix_attention",
    judge=judge_attention,
    hints=(
        "prefix_k.expand(B, -1, -1, -1) is [B, H, P, Dh]; join it in front of k along the dimension of the keys, 2.",
        "T queries and P + T keys: lower_right_mask(T, P + T)[0, 0] lets every token see the whole prefix.",
        "F.scaled_dot_product_attention(q, k, v, attn_mask=mask) does the rest.",
    ),
)

FOLD = Exercise(
    name="09b",
    function="fold",
    judge=judge_fold,
    hints=(
        "F.linear(x, W, b) is x Wᵀ + b. Two of them with torch.tanh between give [P, 2 L D].",
        "A view takes numbers in the order in which they lie. Theirs is: vector, block, key or value, head, number in "
        "the head. So view(P, L, 2, H, -1) first.",
        "permute(2, 1, 3, 0, 4) makes [2, L, H, P, Dh] of [P, L, 2, H, Dh].",
    ),
)
