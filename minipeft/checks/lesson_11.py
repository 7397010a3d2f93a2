"""Lesson 11: attention with a prefix as a gated sum, and how far shares of the text moved, against plain loops."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.checks.exercise import Exercise, require

B, H, T, P, Dh = 3, 2, 6, 5, 4
STEEP = 200.0
"""So many times as large, scores are hundreds, and exp of them is infinite in float32."""
ROUNDING = 1e-3
"""What is left of a sum in float32 after a right detour, by logarithms of hundreds or by 1 − λ of a λ near 1."""


def judge_gated_sum(gated_sum: Callable[..., Any]) -> None:
    """One softmax over prefix and text, query by query; λ is what of it falls on the prefix."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, H, T, Dh, generator=generator) for _ in range(3))
    prefix_k, prefix_v = (torch.randn(H, P, Dh, generator=generator) for _ in range(2))
    parts = (q, k, v, prefix_k, prefix_v)
    out, gate = _of(gated_sum, *parts)
    expected, share = _by_loop(*parts)
    if not _close(gate, share):
        _explain_gate(gate, share, q, k, prefix_k)
    if not _close(out, expected):
        _explain_sum(out, share, *parts)
    steep = (STEEP * q, k, v, prefix_k, prefix_v)
    out, gate = _of(gated_sum, *steep)
    expected, share = _by_loop(*steep)
    require(
        bool(out.isfinite().all() and gate.isfinite().all()),
        "right, until scores are large: then exp of them is infinite, and the quotient no number. Take torch.logsumexp "
        "of each part, and the sigmoid of the difference.",
    )
    require(
        _close(gate, share, ROUNDING) and _close(out, expected, ROUNDING),
        "right, until scores are large: then it is not. Is a small number added to a sum, or a score cut off?",
    )


def _of(gated_sum: Callable[..., Any], *parts: Tensor) -> tuple[Tensor, Tensor]:
    """What the learner's function returns, if that has the shapes that it must have."""
    found = gated_sum(*(part.clone() for part in parts))
    require(
        isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, Tensor) for part in found),
        "gated_sum must return two tensors: the output of the heads, and λ.",
    )
    for name, part, shape in (("the output", found[0], (B, H, T, Dh)), ("λ", found[1], (B, H, T))):
        letters = "[B, H, T, Dh]" if len(shape) == 4 else "[B, H, T], a number for each query of each head"
        require(tuple(part.shape) == shape, f"{name} is {tuple(part.shape)}; it must be {letters}: {shape}.")
    return found[0].float(), found[1].float()


def _by_loop(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> tuple[Tensor, Tensor]:
    outs, gates = torch.zeros(B, H, T, Dh), torch.zeros(B, H, T)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                keys, values = [*prefix_k[h], *k[b, h, : t + 1]], [*prefix_v[h], *v[b, h, : t + 1]]
                scores = [float(q[b, h, t] @ key) / math.sqrt(Dh) for key in keys]
                sizes = [math.exp(score - max(scores)) for score in scores]
                outs[b, h, t] = sum(size * value for size, value in zip(sizes, values, strict=True)) / sum(sizes)
                gates[b, h, t] = sum(sizes[:P]) / sum(sizes)
    return outs, gates


def _explain_gate(found: Tensor, share: Tensor, q: Tensor, k: Tensor, prefix_k: Tensor) -> None:
    """Raise `Mistake` with the mistake that gives this λ."""
    on_prefix = (q @ prefix_k.mT / math.sqrt(Dh)).exp().sum(dim=-1)
    scores = (q @ k.mT / math.sqrt(Dh)).exp()
    on_text, on_all = scores.tril().sum(dim=-1), scores.sum(dim=-1)
    unscaled = (q @ prefix_k.mT).exp().sum(dim=-1), (q @ k.mT).exp().tril().sum(dim=-1)
    keys = (P / (P + torch.arange(1, T + 1))).expand(B, H, T)
    for mistake, wrong in (
        ("that is 1 − λ, the text's share; λ is the prefix's.", 1 - share),
        (
            "λ is the prefix's sum divided by the text's alone: the wrong normaliser. It is a share of both together.",
            on_prefix / on_text,
        ),
        ("λ is made without the causal mask: it counts tokens after the query.", on_prefix / (on_prefix + on_all)),
        (
            "the scores in λ are not divided by the square root of Dh.",
            unscaled[0] / (unscaled[0] + unscaled[1]),
        ),
        ("that is the prefix's share of the keys; λ is its share of the softmax.", keys),
        *_too_coarse(share, lambda gate: gate),
    ):
        require(not _close(found, wrong), mistake)
    require(False, "λ is not the share of the softmax that falls on the prefix, query by query and head by head.")


def _explain_sum(
    found: Tensor, share: Tensor, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor
) -> None:
    """Raise `Mistake` with the mistake that gives this output though λ is right."""
    attend, gate = F.scaled_dot_product_attention, share[..., None]
    keys, values = (part.expand(B, -1, -1, -1) for part in (prefix_k, prefix_v))
    of_text, of_prefix = attend(q, k, v, is_causal=True), attend(q, keys, values)

    def gated(gate: Tensor) -> Tensor:
        return (1 - gate[..., None]) * of_text + gate[..., None] * of_prefix

    for mistake, wrong in (
        ("the two attentions are added, not gated: what both weigh must add up to 1.", of_text + of_prefix),
        ("the prefix is gated and the text is not: it gets 1 − λ.", of_text + gate * of_prefix),
        ("the gates are exchanged: λ belongs to the prefix, 1 − λ to the text.", gated(1 - share)),
        (
            "both parts are gated twice: weights cut out of the joint softmax add up to 1 − λ and λ already. Give each "
            "part a softmax of its own.",
            (1 - gate) ** 2 * of_text + gate**2 * of_prefix,
        ),
        (
            "the text is gated twice: its weights, cut out of the joint softmax, add up to 1 − λ already. Give it a "
            "softmax of its own.",
            (1 - gate) ** 2 * of_text + gate * of_prefix,
        ),
        (
            "λ is right, and the text's attention sees tokens after the query.",
            (1 - gate) * attend(q, k, v) + gate * of_prefix,
        ),
        (
            "λ is right, and the causal mask lies over the prefix: every query sees all of it.",
            (1 - gate) * of_text + gate * attend(q, keys, values, is_causal=True),
        ),
        (
            "λ is right, and the scores of the two attentions are not divided by the square root of Dh.",
            (1 - gate) * attend(q, k, v, is_causal=True, scale=1.0) + gate * attend(q, keys, values, scale=1.0),
        ),
        *_too_coarse(share, gated),
    ):
        require(not _close(found, wrong), mistake)
    require(False, "λ is right, and the output is not (1 − λ) · attention to the text + λ · attention to the prefix.")


def _too_coarse(share: Tensor, use: Callable[[Tensor], Tensor]) -> list[tuple[str, Tensor]]:
    """What comes of a λ that is a mean over what must not be averaged."""
    one_for = {
        "a whole row of the batch": (1, 2),
        "all heads of a token": (1,),
        "all tokens of a head": (2,),
        "everything": (0, 1, 2),
    }
    mistake = "λ is one number for {}; every query of every head has its own."
    return [
        (mistake.format(what), use(share.mean(dim=dims, keepdim=True).expand(B, H, T)))
        for what, dims in one_for.items()
    ]


def judge_shares_moved(shares_moved: Callable[..., Any]) -> None:
    """One prefix that changes no share, changes of every kind, and a method without a prefix."""
    generator = torch.Generator().manual_seed(2)
    scores = 3 * torch.randn(B, H, T, T, generator=generator)
    before = _softmax(scores)
    other = _softmax(torch.randn(B, H, T, P + T, generator=generator))  # flatter, so that the largest change is a fall
    found, expected = _number(shares_moved(before.clone(), other.clone())), _largest(before, other)
    if abs(found - expected) > 1e-5:
        _explain_shares(found, before, other)
    ours = torch.cat([torch.randn(B, H, T, P, generator=generator), scores], dim=-1)
    found = _number(shares_moved(before.clone(), _softmax(ours).clone()))
    require(
        found < ROUNDING, f"a prefix that leaves the text's scores alone moves no share, and this says {found:.2g}."
    )
    bare = _softmax(2 * torch.randn(B, H, T, T, generator=generator))
    found, expected = _number(shares_moved(before.clone(), bare.clone())), _largest(before, bare)
    require(
        abs(found - expected) < 1e-5,
        f"right with a prefix; without one, as for LoRA, it says {found:.3g} where it must be {expected:.3g}. P is "
        "S − T, which may be 0.",
    )


def _number(found: Any) -> float:
    require(
        isinstance(found, Real) or (isinstance(found, Tensor) and found.numel() == 1),
        "shares_moved must return one number, the largest change of all.",
    )
    require(
        math.isfinite(float(found)),
        "the result is no finite number: a token that is masked has the share 0, so subtract, and do not divide by it.",
    )
    return float(found)


def _softmax(scores: Tensor) -> Tensor:
    """Causal from the lower right corner."""
    T, S = scores.shape[-2:]
    return scores.masked_fill(torch.ones(T, S).triu(S - T + 1).bool(), float("-inf")).softmax(dim=-1)


def _largest(before: Tensor, after: Tensor) -> float:
    first, largest = after.shape[-1] - T, 0.0
    for old, new in zip(before.flatten(0, 2).tolist(), after.flatten(0, 2).tolist(), strict=True):
        on_text = sum(new[first:])
        changes = (abs(a / on_text - b) for a, b in zip(new[first:], old, strict=True))
        largest = max(largest, *changes)
    return largest


def _explain_shares(found: float, before: Tensor, after: Tensor) -> None:
    """Raise `Mistake` with the mistake that gives this number."""
    text = after[..., P:]
    sums = text.sum(dim=-1, keepdim=True)
    moved = text / sums - before
    start = after[..., :T]
    for mistake, wrong in (
        (
            "the text's weights are not renormalised: what the prefix takes from all alike then looks like a change. "
            "Divide by what goes to the text, query by query.",
            (text - before).abs().max(),
        ),
        (
            "you took the first T columns; the prefix's keys stand in front, so the text's are the last T.",
            (start / start.sum(dim=-1, keepdim=True) - before).abs().max(),
        ),
        ("that is the mean of all changes; the largest is asked for.", moved.abs().mean()),
        ("a share that falls has moved, too: take the size of each change, abs(), before the largest.", moved.max()),
        (
            "that is a second softmax, over weights; they need only be divided by their sum.",
            (text.softmax(dim=-1) - before).abs().max(),
        ),
        *(
            (
                "the weights are divided by one number for a whole row of the batch or a head; each query gives the "
                "text another part, so divide by its own.",
                (text / sums.mean(dim=dims, keepdim=True) - before).abs().max(),
            )
            for dims in ((1, 2), (2,))
        ),
    ):
        require(abs(found - float(wrong)) > 1e-5, mistake)
    require(False, f"the largest change of a share is {_largest(before, after):.4f} here, and this says {found:.4f}.")


def _close(a: Tensor, b: Tensor, atol: float = 1e-5) -> bool:
    return torch.allclose(a, b, rtol=0, atol=atol)


GATED_SUM = Exercise(
    name="11a",
    function="gated_sum",
    judge=judge_gated_sum,
    hints=(
        "Three things: explicit_attention(q, k, v), which is causal by itself; the same for the prefix, where every "
        "query sees every key, so a softmax without a mask; and λ.",
        "The scores of the text are q @ k.mT / √Dh, with minus infinity where lower_right_mask(T, T)[0, 0] is False; "
        "those of the prefix q @ prefix_k.mT / √Dh. [H, P, Dh] goes with [B, H, T, Dh] as it is.",
        "a / (a + b) is torch.sigmoid(log a − log b), and torch.logsumexp(scores, dim=-1) is the logarithm of the sum.",
    ),
)

SHARES = Exercise(
    name="11b",
    function="shares_moved",
    judge=judge_shares_moved,
    hints=(
        "The text's keys are the last T of S. What a query gives to them adds up to 1 − λ, not to 1.",
        "text.sum(dim=-1, keepdim=True) is what each query gives to the text; divide by it, subtract, abs(), max().",
    ),
)
