"""Texts to read, and reading them from a position of one's choice."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

import minipeft as mp
from minipeft.attention import FixedMemory, lower_right_mask
from minipeft.tasks import TASKS


def beginnings(model: mp.GPT2, split: str, rows: int, length: int) -> Int[Tensor, "B T"]:
    """The first tokens of so many movie reviews that are long enough."""
    tokenizer = model.tokenizer
    read = (tokenizer.encode(example.text) for example in TASKS["movie"]().splits[split])
    return torch.tensor([ids[:length] for ids in read if len(ids) >= length][:rows])


@torch.no_grad()
def states_from(
    model: mp.GPT2, tokens: Int[Tensor, "B T"], first: int, memory: FixedMemory | None = None
) -> Float[Tensor, "B T D"]:
    """Final hidden states of texts that begin at position `first`, however long the memory is."""
    T = tokens.shape[1]
    mask = None if memory is None else lower_right_mask(T, memory.length + T)
    return model.ln_f(model.through_blocks(model.embed(tokens, first + torch.arange(T)[None], None), mask, memory))
