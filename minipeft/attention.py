"""Attention over a memory and the text: one mask, two ways to compute, and the keys and values kept from before."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipeft.kernels.machine import attention_type
from minipeft.kernels.product_attention import by_products, product_attention
from minipeft.kernels.single_query import single_query_attention

MANY_ROWS = 4
"""So many single queries are faster by two products for all of them than by PyTorch's kernel for CPUs."""


def lower_right_mask(
    T: int, S: int, real: Bool[Tensor, "B S"] | None = None, device: torch.device | None = None
) -> Bool[Tensor, "#B 1 T S"]:
    """Which of S keys each of T queries may see: all up to its own, where the last query meets the last key.

    The corner matters: with P keys in front of the text S = P + T, and a mask aligned to the upper left corner
    (`is_causal=True` in PyTorch) would hide the text from itself. `real` marks the keys that are no padding.
    A query always sees its own key, so that a padded query's softmax has something to sum over.
    """
    query = torch.arange(S - T, S, device=device)[:, None]
    key = torch.arange(S, device=device)[None, :]
    causal = (key <= query)[None, None]  # [1, 1, T, S]
    if real is None:
        return causal
    return (causal & real[:, None, None, :]) | (key == query)  # [B, 1, T, S]


def explicit_attention(
    q: Float[Tensor, "B H T Dh"],
    k: Float[Tensor, "B H S Dh"],
    v: Float[Tensor, "B H S Dh"],
    mask: Bool[Tensor, "#B 1 T S"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T Dh"]:
    """softmax(q kᵀ / √Dh) v, written out; no mask means causal from the lower right corner.

    Source: Vaswani et al. 2017, eq. 1.
    """
    T, S, Dh = q.shape[-2], k.shape[-2], q.shape[-1]
    if mask is None:
        mask = lower_right_mask(T, S, device=q.device)
    scores = q @ k.transpose(-2, -1) / math.sqrt(Dh)  # [B, H, T, S]
    scores = scores.masked_fill(~mask, float("-inf"))
    exact = torch.promote_types(scores.dtype, torch.float32)  # half precision is too coarse for a sum of many shares
    weights = torch.softmax(scores, dim=-1, dtype=exact).to(v.dtype)
    return F.dropout(weights, dropout, training=dropout > 0) @ v


def fused_attention(
    q: Float[Tensor, "B H T Dh"],
    k: Float[Tensor, "B H S Dh"],
    v: Float[Tensor, "B H S Dh"],
    mask: Bool[Tensor, "#B 1 T S"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T Dh"]:
    """The same function by PyTorch's fused kernel, which never stores the [T, S] weights.

    On CUDA the mask of a prefix without padding is given as a bias by name, so that the flash kernel can serve it. On a
    CPU that kernel takes single queries one by one; where keys lie together, products for all of them are faster, and
    so they are in bfloat16 on some processors. What is left to it there is computed in the type that it is fast in.
    """
    T, S = q.shape[-2], k.shape[-2]
    many_single = T == 1 and len(q) >= MANY_ROWS and k.is_contiguous() and not q.is_cuda
    if many_single and not q.requires_grad and not dropout:
        return single_query_attention(q, k, v, mask)
    if mask is None and T == S and by_products(q, dropout):
        return product_attention(q, k, v, lower_right_mask(T, S, device=q.device)[0, 0])
    kind = attention_type(q, q.requires_grad)
    own, q, k, v = q.dtype, q.to(kind), k.to(kind), v.to(kind)
    if mask is None and T == S:  # both corners coincide, so the kernel's own causal mask is right
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).to(own)
    if mask is None and T > 1:  # a single query sees every key and needs no mask
        mask = _named_mask(T, S) if q.is_cuda else lower_right_mask(T, S, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).to(own)


def _named_mask(T: int, S: int) -> Tensor:
    """`lower_right_mask` as a bias that PyTorch knows by name."""
    from torch.nn.attention.bias import causal_lower_right  # slow to import, and for CUDA alone

    return causal_lower_right(T, S)


@dataclass(frozen=True)
class Rows:
    """In place of a mask: texts of these lengths stand one behind another in one row, and see only themselves."""

    lengths: tuple[int, ...]
    shared: int = 0
    """Tokens before all of them that each of them sees: a prompt."""
    split: bool = False
    """Whether attention is split in the prefix's part and the text's: `minipeft.kernels.split_attention`."""


def attend_row_by_row(
    attend: Callable[..., Tensor],
    q: Float[Tensor, "1 H N Dh"],
    k: Float[Tensor, "1 H S Dh"],
    v: Float[Tensor, "1 H S Dh"],
    rows: Rows,
    dropout: float = 0.0,
) -> Float[Tensor, "1 H N Dh"]:
    """`attend` for each text by itself, and nothing for padding; each sees a memory's keys and a shared prompt, too.

    N: the prompt's tokens and all texts'; S - N keys are the memory's.
    """
    before = k.shape[2] - q.shape[2] + rows.shared
    own_q, own_k, own_v = (
        part.split((first, *rows.lengths), dim=2) for part, first in ((q, rows.shared), (k, before), (v, before))
    )
    outs = [attend(own_q[0], own_k[0], own_v[0], None, dropout)] if rows.shared else []
    for text_q, text_k, text_v in zip(own_q[1:], own_k[1:], own_v[1:], strict=True):
        if before:
            text_k, text_v = torch.cat([own_k[0], text_k], dim=2), torch.cat([own_v[0], text_v], dim=2)
        outs.append(attend(text_q, text_k, text_v, None, dropout))
    return torch.cat(outs, dim=2)


ATTENTION: dict[str, Callable[..., Tensor]] = {"explicit": explicit_attention, "fused": fused_attention}


@runtime_checkable
class Memory(Protocol):
    """Keys and values that stand in front of a block's own, in every layer: the memory door."""

    length: int
    """Key slots in use."""

    @property
    def real(self) -> Bool[Tensor, "B S"] | None:
        """Which of them are no padding; None: all."""
        ...

    def extend(
        self, layer: int, k: Float[Tensor, "B H T Dh"], v: Float[Tensor, "B H T Dh"]
    ) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        """The keys and values that layer `layer` attends to: the memory's, then `k` and `v`."""
        ...

    def advance(self, real: Bool[Tensor, "B T"]) -> None:
        """Called once after the last layer, with the mask of the T tokens just read."""
        ...


class FixedMemory:
    """P learned keys and values before every text, the same for all or each row's own; gradients flow into them.

    `keys`, `values`: [L, 1 or B, H, P, Dh]. `real`: which of them a row has, where rows have unlike many.
    """

    def __init__(
        self,
        keys: Float[Tensor, "L B H P Dh"],
        values: Float[Tensor, "L B H P Dh"],
        real: Bool[Tensor, "B P"] | None = None,
    ) -> None:
        self.keys, self.values, self._real = keys, values, real
        self.length = keys.shape[3]

    @property
    def real(self) -> Bool[Tensor, "B P"] | None:
        """None where all of them are: one prefix alone is never padding."""
        return self._real

    def of(self, layer: int) -> tuple[Float[Tensor, "B H P Dh"], Float[Tensor, "B H P Dh"]]:
        """The learned keys and values of one layer."""
        return self.keys[layer], self.values[layer]

    def extend(
        self, layer: int, k: Float[Tensor, "B H T Dh"], v: Float[Tensor, "B H T Dh"]
    ) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        """P learned keys and values first (shared by the rows), then the text's."""
        B = k.shape[0]
        learned_k, learned_v = (part.to(k.dtype).expand(B, -1, -1, -1) for part in self.of(layer))
        return torch.cat([learned_k, k], dim=2), torch.cat([learned_v, v], dim=2)

    def advance(self, real: Bool[Tensor, "B T"]) -> None:
        """Nothing: a learned memory does not remember what is read."""


class KVCache:
    """Room for the keys and values of `capacity` positions, filled from the front as text is read; for inference.

    Source: the cache of GPT-2's own `sample.py`, with its memory set aside beforehand.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, capacity: int, head_size: int, like: Float[Tensor, "..."]
    ) -> None:
        shape = (layers, batch, heads, capacity, head_size)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.length = 0
        self._real = torch.zeros(batch, capacity, dtype=torch.bool, device=like.device)
        self._padded = False

    @property
    def real(self) -> Bool[Tensor, "B S"] | None:
        """Which of the filled slots are no padding; None: all."""
        return self._real[:, : self.length] if self._padded else None

    @property
    def filled(self) -> Bool[Tensor, "B S"]:
        """Which of all slots hold a key that is no padding."""
        return self._real

    def start_with(self, memory: FixedMemory) -> None:
        """Fill the first slots with a learned memory: from here on a prefix is a part of the cache."""
        assert self.length == 0
        self.keys[:, :, :, : memory.length] = memory.keys.detach()
        self.values[:, :, :, : memory.length] = memory.values.detach()
        self._real[:, : memory.length] = True if memory.real is None else memory.real
        self._padded = memory.real is not None
        self.length = memory.length

    def select(self, rows: Int[Tensor, "N"]) -> None:
        """Go on with these rows, in this order; one may come several times."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self._real = self._real.index_select(0, rows)

    def extend(
        self, layer: int, k: Float[Tensor, "B H T Dh"], v: Float[Tensor, "B H T Dh"]
    ) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        """Write `k` and `v` behind what is there, return everything so far."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, real: Bool[Tensor, "B T"]) -> None:
        """Count the tokens just read."""
        end = self.length + real.shape[1]
        self._real[:, self.length : end] = real
        self._padded = self._padded or not bool(real.all())
        self.length = end


def next_positions(real: Bool[Tensor, "B T"], memory: Memory | None) -> Int[Tensor, "#B T"]:
    """Each token's position: the number of real keys before it, in the memory and in the text.

    This one rule offsets positions for prompts, prefixes, caches and padding alike.
    """
    if memory is None:
        before: Tensor | int = 0
    elif memory.real is None:
        before = memory.length
    else:
        before = memory.real.sum(dim=1, keepdim=True)
    return (before + real.cumsum(dim=1) - 1).clamp(min=0)
