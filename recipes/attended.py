"""What goes into and comes out of each layer's attention, read off a running model from outside."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from reading import states_from
from torch import Tensor, nn

import minipeft as mp


@dataclass(frozen=True)
class Attended:
    """One layer's queries, keys and values of the tokens themselves, and what its heads gave to `c_proj`."""

    q: Float[Tensor, "B H T Dh"]
    k: Float[Tensor, "B H T Dh"]
    v: Float[Tensor, "B H T Dh"]
    heads: Float[Tensor, "B H T Dh"]


@contextmanager
def attended(model: mp.GPT2) -> Iterator[list[Attended]]:
    """The list that every layer adds itself to as `model` runs; its attention and masks are not touched."""
    found: list[Attended] = []
    with ExitStack() as hooks:
        for block in model.blocks:
            for handle in _hooks(block.attn, found):
                hooks.callback(handle.remove)
        yield found


def causal_scores(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"]) -> Float[Tensor, "B H T S"]:
    """q kᵀ / √Dh; minus infinity where a key comes later than the query, the last of both being one token."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    later = torch.ones_like(scores).triu(k.shape[2] - q.shape[2] + 1).bool()
    return scores.masked_fill(later, float("-inf"))


@torch.no_grad()
def among_text(tuned: mp.Tuned, tokens: Int[Tensor, "B T"]) -> list[tuple[Tensor, Tensor]]:
    """By layer, before and after: each text token's share [B, H, T, T] of the attention that goes to text tokens.

    Before: the frozen model reads the same text at the same positions, with nothing in front of it.
    """
    T, first, memory = tokens.shape[1], tuned.base.config.n_positions - tuned.room, tuned.doors().memory
    with attended(tuned.base) as before:
        states_from(tuned.base, tokens, first)
    with attended(tuned.model) as after:
        tuned(tokens)
    found = []
    for layer, (b, a) in enumerate(zip(before, after, strict=True)):
        k = a.k if memory is None else torch.cat([memory.of(layer)[0].expand(len(tokens), -1, -1, -1), a.k], dim=2)
        shares = causal_scores(a.q[:, :, -T:], k).softmax(dim=-1)[..., -T:]
        found.append((causal_scores(b.q, b.k).softmax(dim=-1), shares / shares.sum(dim=-1, keepdim=True)))
    return found


def _hooks(attention: nn.Module, found: list[Attended]) -> list[torch.utils.hooks.RemovableHandle]:
    qkv: list[Tensor] = []

    def split(x: Tensor) -> Tensor:
        return x.detach().unflatten(-1, (attention.n_head, -1)).transpose(1, 2)  # [B, T, D] -> [B, H, T, Dh]

    def keep(module: nn.Module, ins: tuple[Tensor, ...], out: Tensor) -> None:
        qkv[:] = [split(part) for part in out.chunk(3, dim=-1)]

    def note(module: nn.Module, ins: tuple[Tensor, ...]) -> None:
        found.append(Attended(*qkv, heads=split(ins[0])))

    return [attention.c_attn.register_forward_hook(keep), attention.c_proj.register_forward_pre_hook(note)]
