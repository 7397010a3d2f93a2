"""Lesson 02: the causal mask where there are more keys than queries."""

from collections.abc import Callable

import torch
from torch import Tensor

from minipeft.checks.exercise import Exercise, require

SIZES = ((3, 3), (1, 1), (2, 5), (4, 5), (1, 6), (5, 9))


def judge(causal_mask: Callable[[int, int], Tensor]) -> None:
    """Shape and type; every entry against a loop; then: does changing a later token change an earlier output?"""
    for T, S in SIZES:
        mask = causal_mask(T, S)
        require(isinstance(mask, Tensor), f"causal_mask must return a tensor, but returned a {type(mask).__name__}.")
        require(
            tuple(mask.shape) == (T, S), f"the mask of {T} queries and {S} keys is {tuple(mask.shape)}, not ({T}, {S})."
        )
        require(
            mask.dtype == torch.bool,
            f"the mask is of type {str(mask.dtype).removeprefix('torch.')}; make it one of True (may look) and False.",
        )
        _entries(mask, T, S)
    _nothing_from_the_future(causal_mask)


def _entries(mask: Tensor, T: int, S: int) -> None:
    """A loop over queries and keys, and for each wrong entry the mistake that it usually means."""
    expected = [[key <= S - T + query for key in range(S)] for query in range(T)]
    found = mask.tolist()
    if found == expected:
        return
    sizes = f"with {T} queries and {S} keys"
    upper_left = [[key <= query for key in range(S)] for query in range(T)]
    require(
        found != upper_left,
        f"{sizes} your mask starts in the upper left corner: the last query sees {T} of {S} keys, not all. The first "
        f"{S - T} keys stand before the text and every query may look at them.",
    )
    require(
        found != [[not one for one in row] for row in expected],
        "your mask is the wrong way round: True must mean that a query may look at a key.",
    )
    require(
        found != [[key < S - T + query for key in range(S)] for query in range(T)],
        "a query must see its own key, too; yours sees only those before it.",
    )
    require(not mask.all(), f"{sizes} every query sees every key, those of later tokens as well.")
    query, key = next((q, k) for q in range(T) for k in range(S) if found[q][k] != expected[q][k])
    may = "may" if expected[query][key] else "must not"
    require(False, f"{sizes} query {query} {may} look at key {key} (counted from 0); your mask says the contrary.")


def _nothing_from_the_future(causal_mask: Callable[[int, int], Tensor]) -> None:
    """PyTorch's attention with the mask: a later token must not reach an earlier output."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, length, 4, generator=generator) for length in (4, 7, 7))
    attend = torch.nn.functional.scaled_dot_product_attention
    before = attend(q, k, v, attn_mask=causal_mask(4, 7))
    k[..., -1, :] += 10
    v[..., -1, :] += 10
    changed = (attend(q, k, v, attn_mask=causal_mask(4, 7)) - before).abs().amax(dim=-1)[0, 0] > 1e-6
    require(changed.tolist() == [False, False, False, True], "changing the last token changed outputs before it.")


EXERCISE = Exercise(
    name="02",
    function="causal_mask",
    judge=judge,
    hints=(
        "The last query meets the last key. Which key belongs to query t then, if there are S keys and T queries?",
        "torch.arange(T)[:, None] is a column of query numbers, torch.arange(S)[None, :] a row of key numbers.",
        "Query t stands at position S - T + t, and may look at every key up to that position.",
    ),
)
