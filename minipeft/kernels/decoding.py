"""One more token of each row, with shapes that never change: for `torch.compile`, and on a GPU for CUDA graphs.

The cache of `minipeft.attention` grows slot by slot, and so does what is computed. Here every step attends to all
slots that there will ever be, a mask hides those that are not filled, and where to write is a tensor: one graph for all
steps. Without a compiler it is faster, too, where there are many rows.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipeft.attention import MANY_ROWS, KVCache, next_positions

if TYPE_CHECKING:
    from minipeft.gpt2 import GPT2

Step = Callable[..., Tensor]


class Slots:
    """The memory door over all slots of a cache; what is new goes to the slot `at`."""

    real = None

    def __init__(
        self, keys: Float[Tensor, "L B H S Dh"], values: Float[Tensor, "L B H S Dh"], at: Int[Tensor, "1"]
    ) -> None:
        self.keys, self.values, self.at = keys, values, at
        self.length = keys.shape[3]

    def extend(
        self, layer: int, k: Float[Tensor, "B H 1 Dh"], v: Float[Tensor, "B H 1 Dh"]
    ) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        """Write one key and value of each row, return all slots."""
        if torch.compiler.is_compiling():
            self.keys[layer].index_copy_(2, self.at, k)
            self.values[layer].index_copy_(2, self.at, v)
        else:  # 0.47 of the time
            at = int(self.at)
            self.keys[layer, :, :, at : at + 1] = k
            self.values[layer, :, :, at : at + 1] = v
        return self.keys[layer], self.values[layer]

    def advance(self, real: Bool[Tensor, "B T"]) -> None:
        """Nothing: the cache itself is told."""


def plain_step(model: "GPT2") -> Step:
    """What gives logits [B, V] of tokens [B, 1], positions [B, 1], the slot `at` [1], mask [B, 1, 1, S] and a cache."""

    def step(tokens: Tensor, positions: Tensor, at: Tensor, mask: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        x = model.through_blocks(model.embed(tokens, positions), mask, Slots(keys, values, at))
        return model.logits(model.ln_f(x[:, -1])).float()

    return step


def compiled_step(model: "GPT2") -> Step:
    """`plain_step` by `torch.compile`."""
    # Graphs of CUDA replay a step without the CPU; on a CPU there is nothing of that kind.
    mode = "reduce-overhead" if model.device.type == "cuda" else "default"
    return torch.compile(plain_step(model), mode=mode, dynamic=False, fullgraph=True)


def all_slots_pay(cache: KVCache) -> bool:
    """Whether attending to all slots is faster than to those that are filled, though it is more.

    All of them lie together, so that a step is one product for all rows and heads; the filled ones PyTorch's kernel
    for CPUs takes head by head. Equal results. Four rows on, 116 slots of which 84 are filled, GPT-2 small on two
    cores of an AMD EPYC (Zen 4): 0.4 to 0.6 of the time in bfloat16, 0.8 to 0.95 in fp32.
    """
    rows, capacity = cache.filled.shape
    return cache.keys.device.type == "cpu" and rows >= MANY_ROWS and 2 * (cache.length + 1) >= capacity


def go_on_over_slots(step: Step, tokens: Int[Tensor, "B 1"], cache: KVCache, last: int) -> Float[Tensor, "B V"]:
    """Read one more token of each row by such a step; the logits of the next.

    `last`: the last position, where rows stay that have ended, and whose logits nobody reads.
    """
    real = torch.ones_like(tokens, dtype=torch.bool)
    positions = next_positions(real, cache).clamp(max=last).expand_as(tokens).contiguous()
    at = torch.tensor([cache.length], device=tokens.device)
    cache.advance(real)
    logits = step(tokens, positions, at, cache.filled[:, None, None, :], cache.keys, cache.values)
    return logits.cpu()
