"""Tiny random GPT-2s, the same models in `transformers`, and rows of unequal length."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.attention import FixedMemory
from minipeft.config import GPT2Config
from minipeft.gpt2 import GPT2

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 64}


def random_model(seed: int = 0, attention: str = "fused", **shape: Any) -> GPT2:
    """A tiny GPT-2 in evaluation mode, every number of it random."""
    model = GPT2(GPT2Config(**{**TINY, **shape}), attention, seed)
    shake(model, seed)
    return model.eval()


def twins(folder: Path, seed: int = 0, attention: str = "fused", **shape: Any) -> tuple[GPT2, Any]:
    """One random model twice: written by `transformers`, read by us. Returns ours and theirs."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = transformers.GPT2Config(
        **{"bos_token_id": 0, "eos_token_id": 0, **TINY, **shape}, attn_implementation="eager"
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    shake(theirs, seed)
    theirs.generation_config.update(eos_token_id=None, pad_token_id=0)
    theirs.save_pretrained(folder)
    return GPT2.from_pretrained(folder, attention=attention), theirs


@torch.no_grad()
def shake(model: nn.Module, seed: int, std: float = 0.1) -> None:
    """Move every weight, also biases (0) and norms (1), so that one left out or mixed up shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=std)


def random_memory(model: GPT2, length: int, seed: int = 0) -> FixedMemory:
    """Random keys and values that gradients can flow into."""
    c = model.config
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, c.n_layer, 1, c.n_head, length, c.head_size, generator=generator)
    return FixedMemory(keys.requires_grad_(), values.requires_grad_())


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    """Ids of the tiny vocabulary."""
    return torch.randint(TINY["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length as one padded batch."""

    rows: list[Tensor]
    tokens: Tensor
    mask: Tensor

    def unpadded(self, batch: Tensor) -> list[Tensor]:
        """What `batch` [B, T, …] holds for the real tokens of each row."""
        return [row[real] for row, real in zip(batch, self.mask.bool(), strict=True)]


def ragged(lengths: Sequence[int], side: str, seed: int = 0) -> Ragged:
    """Random rows padded on the "left" or the "right"; the filler is random too, so that no token is harmless."""
    T = max(lengths)
    tokens = random_tokens(len(lengths), T, seed=seed + 1)
    mask = torch.zeros(len(lengths), T, dtype=torch.long)
    rows = [random_tokens(length, seed=seed + 2 + row) for row, length in enumerate(lengths)]
    for number, row in enumerate(rows):
        place = slice(T - len(row), T) if side == "left" else slice(0, len(row))
        tokens[number, place] = row
        mask[number, place] = 1
    return Ragged(rows, tokens, mask)


def farthest(ours: Tensor, other: Tensor) -> float:
    """The largest absolute difference."""
    assert ours.shape == other.shape, f"{tuple(ours.shape)} against {tuple(other.shape)}"
    return float((ours - other).detach().abs().max())
