"""How much of its attention a text gives to what stands before it: λ, the softmax mass on a prompt or prefix.

    head = (1 − λ) · Attn(q, K, V) + λ · Attn(q, P_k, P_v)        λ = Σ exp(q P_kᵀ) / (Σ exp(q P_kᵀ) + Σ exp(q Kᵀ))

Source: He et al. 2022, eq. 5–7.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from minipeft.attention import lower_right_mask
from minipeft.gpt2 import GPT2
from minipeft.tuned import Tuned

EXAMPLE = "The film tells the story of a man who comes home and finds that nobody knows him."
"""What is read where nobody gives a text."""


@torch.no_grad()
def attention_mass(tuned: Tuned, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "L H"]:
    """λ of every layer and head, averaged over the tokens of the text, which are all real.

    Raises ValueError if the method has neither prompt nor prefix, or the text leaves no room for it.
    """
    P, T = tuned.base.config.n_positions - tuned.room, tokens.shape[1]
    if P == 0:
        raise ValueError(f"{tuned.method.name} puts nothing before the text, so no attention goes there.")
    masses: list[Tensor] = []

    def note(q: Tensor, k: Tensor, mask: Tensor | None) -> None:
        scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])  # [B, H, P + T or T, P + T]
        allowed = lower_right_mask(q.shape[-2], k.shape[-2], device=q.device) if mask is None else mask
        shares = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
        masses.append(shares[:, :, -T:, :P].sum(dim=-1).mean(dim=(0, 2)))

    was_training = tuned.training
    packing, tuned.model.packing = tuned.model.packing, math.inf  # a packed prefix is attended to apart
    try:
        with _attention_seen_by(note, tuned.model):
            tuned.eval().hidden(tokens)
    finally:
        tuned.model.packing = packing
        tuned.train(was_training)
    return torch.stack(masses)


def mass_table(mass: Float[Tensor, "L H"]) -> Table:
    """λ of each layer: the mean of its heads, the head that gives least and the one that gives most."""
    table = Table(title="attention on what stands before the text")
    for column in ("layer", "mean", "least (head)", "most (head)"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer, heads in enumerate(mass):
        least, most = int(heads.argmin()), int(heads.argmax())
        table.add_row(
            f"h.{layer}", f"{heads.mean():.1%}", f"{heads[least]:.1%} ({least})", f"{heads[most]:.1%} ({most})"
        )
    table.add_section()
    table.add_row("all", f"{mass.mean():.1%}", "", "")
    return table


def finding(mass: Float[Tensor, "L H"], what: str) -> str:
    """What a table or picture of λ shows, in a sentence; `what` is "prefix" or "soft prompt"."""
    layers = mass.mean(dim=1)
    most = int(layers.argmax())
    all_told, there = (f"{100 * share:.0f} %" for share in (mass.mean(), layers[most]))
    return f"The {what} draws {all_told} of the attention; in h.{most}, where it is most, {there}"


@contextmanager
def _attention_seen_by(note: Callable[[Tensor, Tensor, Tensor | None], None], model: GPT2) -> Iterator[None]:
    """Within this, every block shows `note` its queries, keys and mask before it attends."""
    before = [block.attn.attend for block in model.blocks]

    def seen(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend_and_note(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
            note(q, k, mask)
            return attend(q, k, v, mask, dropout)

        return attend_and_note

    try:
        for block in model.blocks:
            block.attn.attend = seen(block.attn.attend)
        yield
    finally:
        for block, attend in zip(model.blocks, before, strict=True):
            block.attn.attend = attend
