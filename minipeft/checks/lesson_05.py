"""Lesson 05: attention that remembers, token by token against PyTorch's attention over the whole text."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.checks.exercise import Exercise, require

H, T, Dh = 2, 7, 4
SPLITS = ((7,), (4, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1), (3, 2, 2))


def judge(cached_attention: Callable[..., Any]) -> None:
    """The text at once, one token at a time, and in pieces: always what attention over the whole text gives."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(H, T, Dh, generator=generator) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for split in SPLITS:
        past, start = None, 0
        for size in split:
            new = slice(start, start + size)
            found = cached_attention(*(part[:, new].clone() for part in (q, k, v)), past)
            start += size
            past = _checked(found, size, start)
            _past(past, k[:, :start], v[:, :start], size)
            _output(found[0], expected[:, new], (q[:, new], k[:, :start], v[:, :start]), start - size)


def _checked(found: Any, size: int, seen: int) -> tuple[Tensor, Tensor]:
    require(
        isinstance(found, tuple | list)
        and len(found) == 2
        and isinstance(found[1], tuple | list)
        and len(found[1]) == 2,
        "cached_attention must return two things: the output, and the past as a pair of keys and values.",
    )
    output, (keys, values) = found
    require(
        tuple(output.shape) == (H, size, Dh),
        f"for {size} new tokens the output is {tuple(output.shape)}; it must be [H, T, Dh], {(H, size, Dh)}.",
    )
    for name, tensor in (("keys", keys), ("values", values)):
        if tuple(tensor.shape) == (H, seen, Dh):
            continue
        length = tensor.shape[1] if tensor.dim() == 3 else -1
        require(
            length != size,
            f"after {seen} tokens the past holds {name} for only the newest {size}; the older ones are lost.",
        )
        require(
            length != seen - size,
            f"after {seen} tokens the past still holds {name} for {length}: the new ones were not added to it.",
        )
        require(
            False,
            f"after {seen} tokens the {name} of the past are {tuple(tensor.shape)}, not [H, S, Dh], {(H, seen, Dh)}.",
        )
    return keys, values


def _past(past: tuple[Tensor, Tensor], k: Tensor, v: Tensor, size: int) -> None:
    keys, values = past
    if torch.equal(keys, k) and torch.equal(values, v):
        return
    require(
        not (torch.equal(keys, v) and torch.equal(values, k)),
        "the past is a pair of keys and values, in this order; yours is the other way round.",
    )
    turned = torch.cat([k[:, -size:], k[:, :-size]], dim=1)
    require(
        not torch.equal(keys, turned),
        "the new keys stand in front of the old ones; the past comes first, as it does in the text.",
    )
    require(False, "the past does not hold the keys and values of all tokens so far, in the order of the text.")


def _output(found: Tensor, expected: Tensor, read: tuple[Tensor, Tensor, Tensor], before: int) -> None:
    found, size = found.float(), found.shape[1]
    if torch.allclose(found, expected, atol=1e-5):
        return
    q, k, v = read
    upper_left = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    require(
        before == 0 or size > 1 or not torch.allclose(found, v[:, -size:], atol=1e-5),
        "with something in the past a new token still attends to itself alone: the past keys and values are not used.",
    )
    require(
        not (before and torch.allclose(found[:, -1], expected[:, -1], atol=1e-5)),
        f"with {before} tokens in the past and {size} new ones, an earlier of the new ones sees a later one: mask it.",
    )
    require(
        before > 0 or not torch.allclose(found[:, -1], expected[:, -1], atol=1e-5),
        f"when {size} tokens come at once, the first of them see the later ones: mask them.",
    )
    require(
        before == 0 or not torch.allclose(found, upper_left, atol=1e-5),
        f"with {before} tokens in the past, a new token does not see all of them: is the mask aligned to the upper "
        "left corner, as is_causal=True is?",
    )
    require(False, "the output is not that of attention over the whole text.")


EXERCISE = Exercise(
    name="05",
    function="cached_attention",
    judge=judge,
    hints=(
        "Join first: torch.cat([past[0], k], dim=1) has the keys of all tokens so far. Then attend as always.",
        "T queries, S + T keys: the mask of lesson two, lower_right_mask(T, S + T)[0, 0], hides later tokens and no "
        "earlier ones.",
        "What you return as the past are the joined keys and values, so that the next call finds everything.",
    ),
)
