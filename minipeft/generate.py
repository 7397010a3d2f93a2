"""Writing text: one loop for the base and every tuned model, greedy or sampled, over a key-value cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipeft.attention import FixedMemory
from minipeft.gpt2 import GPT2
from minipeft.seeds import check_seed

Prompts = TypeVar("Prompts", str, list[str], list[int], list[list[int]], Tensor)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the likeliest, else one is drawn among the top_k / top_p.

    Source: nucleus (top_p) sampling, Holtzman et al. 2020, §3.1.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}.")
        check_seed(self.seed)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")


def generate(
    model: GPT2,
    prompts: Prompts,
    sampling: Sampling | None = None,
    *,
    prompt: Float[Tensor, "1 P D"] | None = None,
    memory: FixedMemory | None = None,
) -> Prompts:
    """Continue `prompts`: a text, a list of texts, token ids, a list of them, or a tensor [B, T]; the same type back.

    What comes back begins with what was given and ends before `<|endoftext|>`, if one was written (a tensor is filled
    up with it). Raises ValueError if a prompt is empty or leaves no room for `max_new_tokens`.
    """
    rows = _rows(model, prompts)
    new: list[list[int]] = [[] for _ in rows]
    for step in stream(model, rows, sampling or Sampling(), prompt=prompt, memory=memory):
        for row, token in zip(new, step, strict=True):
            if token is not None:
                row.append(token)
    return _as_given(model, prompts, rows, new)


@torch.no_grad()
def stream(
    model: GPT2,
    rows: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    prompt: Float[Tensor, "1 P D"] | None = None,
    memory: FixedMemory | None = None,
) -> Iterator[list[int | None]]:
    """The next token of every row, step by step; None once a row has written `<|endoftext|>`."""
    tokens, real = left_padded(rows, model.config.vocab_size - 1, model.device)
    P = 0 if prompt is None else prompt.shape[1]
    M = 0 if memory is None else memory.length
    capacity = M + P + tokens.shape[1] + sampling.max_new_tokens - 1
    if capacity > model.config.n_positions:
        raise ValueError(
            f"{M + P} positions of the adapter + {tokens.shape[1]} of the text + {sampling.max_new_tokens} new tokens "
            f"do not fit into this model's {model.config.n_positions}; lower max_new_tokens or shorten the text."
        )
    cache = model.new_cache(len(rows), capacity)
    if memory is not None:
        cache.start_with(memory)
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in range(len(rows))]
    finished = [False] * len(rows)
    eot = model.config.vocab_size - 1
    padding = None if bool(real.all()) else real

    hidden = model.hidden(tokens, padding, prompt=prompt, memory=cache)
    for left in reversed(range(sampling.max_new_tokens)):
        chosen = choose(model.logits(hidden[:, -1]).float().cpu(), sampling, generators)
        finished = [done or token == eot for done, token in zip(finished, chosen, strict=True)]
        if all(finished):
            return
        yield [None if done else token for done, token in zip(finished, chosen, strict=True)]
        if left:
            hidden = model.hidden(torch.tensor(chosen, device=model.device)[:, None], memory=cache)


def choose(logits: Float[Tensor, "B V"], sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token per row; a row's draw depends on its own generator alone."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    best = logits.max(dim=-1, keepdim=True).values
    logits = (logits - best) / sampling.temperature  # at most 0, so that no temperature is too small
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p is not None:
        logits = logits.masked_fill(~_nucleus(logits, sampling.top_p), float("-inf"))
    shares = logits.softmax(dim=-1)
    return [int(torch.multinomial(row, 1, generator=g)) for row, g in zip(shares, generators, strict=True)]


def left_padded(
    rows: Sequence[Sequence[int]], filler: int, device: torch.device
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rows of unequal length as one batch that ends together, and its mask."""
    T = max(map(len, rows))
    tokens = torch.tensor([[filler] * (T - len(row)) + list(row) for row in rows], device=device)
    real = torch.tensor([[False] * (T - len(row)) + [True] * len(row) for row in rows], device=device)
    return tokens, real


def _nucleus(logits: Float[Tensor, "B V"], top_p: float) -> Bool[Tensor, "B V"]:
    """The smallest set of likeliest tokens whose probabilities reach top_p."""
    shares, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = shares.cumsum(dim=-1) - shares  # the probability of all likelier tokens
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < top_p)


def _rows(model: GPT2, prompts: Any) -> list[list[int]]:
    if isinstance(prompts, Tensor):
        rows = prompts.tolist() if prompts.dim() == 2 else [prompts.tolist()]
    elif isinstance(prompts, str):
        rows = [model.tokenizer.encode(prompts)]
    elif prompts and isinstance(prompts[0], str):
        rows = model.tokenizer.encode_batch([str(prompt) for prompt in prompts])
    elif prompts and isinstance(prompts[0], int):
        rows = [list(prompts)]
    else:
        rows = [list(row) for row in prompts]
    if not rows or not all(rows):
        raise ValueError("there is nothing to continue: a prompt is empty.")
    outside = [token for row in rows for token in row if not 0 <= token < model.config.vocab_size]
    if outside:
        raise ValueError(f"token id {outside[0]} is outside this model's vocabulary of {model.config.vocab_size:,}.")
    return rows


def _as_given(model: GPT2, prompts: Prompts, rows: list[list[int]], new: list[list[int]]) -> Prompts:
    if isinstance(prompts, Tensor):
        T = max(map(len, new))
        filled = [
            row + ids + [model.config.vocab_size - 1] * (T - len(ids)) for row, ids in zip(rows, new, strict=True)
        ]
        return torch.tensor(filled, device=prompts.device)
    if isinstance(prompts, str):
        return prompts + model.tokenizer.decode(new[0])
    if isinstance(prompts[0], str):
        return [str(text) + model.tokenizer.decode(ids) for text, ids in zip(prompts, new, strict=True)]
    if isinstance(prompts[0], int):
        return rows[0] + new[0]
    return [row + ids for row, ids in zip(rows, new, strict=True)]
