"""Writing text: one loop for the base, every tuned model and a bank of prompts, over a key-value cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipeft.attention import FixedMemory, KVCache
from minipeft.gpt2 import GPT2
from minipeft.kernels.decoding import all_slots_pay, go_on_over_slots, plain_step
from minipeft.sampling import Sampling, choose, discouraged
from minipeft.written import Written

Prompts = TypeVar("Prompts", str, list[str], list[int], list[list[int]], Tensor)
STEPS_ALIKE = 64
"""A compiled step is compiled again for every number of slots, so there are only multiples of this."""
LEAVE = 4
"""Rows that have ended leave the batch when they are one in so many; until then computing them costs less than copying
the cache of the others."""


@dataclass
class Row:
    """One text that is being written."""

    sampling: Sampling
    prompt: list[int]
    generator: torch.Generator
    written: Written | None
    """Its text, where something in it may end it."""
    new: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    """Of each new token and of the `<|endoftext|>` behind them, by the model's own distribution: before temperature,
    penalties and cuts."""
    ended: bool = False

    def __post_init__(self) -> None:
        self.rules = self.sampling.rules  # made once, and not at every token

    def add(self, token: int, end_of_text: int) -> None:
        """Take a token, and see whether it is the last."""
        if token == end_of_text:
            self.ended = True
            return
        self.new.append(token)
        if self.written is not None:
            self.written.add(token)
        stopped = self.written is not None and self.written.stopped
        self.ended = stopped or len(self.new) == self.sampling.max_new_tokens


def generate(
    model: GPT2,
    prompts: Prompts,
    sampling: Sampling | Sequence[Sampling] | None = None,
    *,
    prompt: Float[Tensor, "1 P D"] | None = None,
    memory: FixedMemory | None = None,
    attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
) -> Prompts:
    """Continue `prompts`: a text, a list of texts, token ids, a list of them, or a tensor [B, T]; the same type back.

    What comes back begins with what was given and ends before `<|endoftext|>`, if one was written (a tensor is filled
    up with it), and before a text of `Sampling.stop` (token ids: with the token that completes it).
    `sampling`: for all rows, whose draws then begin from seed, seed + 1, …; or one for each row, with its own seed.
    `attention_mask`: of a tensor, 1 real, 0 padding, left or right; what is written stands behind each row.
    Raises ValueError if a prompt is empty or leaves no room for `max_new_tokens`.
    """
    rows = _rows(model, prompts, attention_mask)
    return _as_given(model, prompts, _written(model, rows, sampling, prompt, memory))


def write(
    model: GPT2,
    prompts: Prompts,
    sampling: Sampling | Sequence[Sampling] | None = None,
    *,
    prompt: Float[Tensor, "1 P D"] | None = None,
    memory: FixedMemory | None = None,
    log_probabilities: bool = False,
) -> list[Row]:
    """What `generate` does, as rows: the tokens that were written and, if asked for, their log-probabilities."""
    return _written(model, _rows(model, prompts), sampling, prompt, memory, log_probabilities)


def _written(
    model: GPT2,
    rows: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling] | None,
    prompt: Float[Tensor, "1 P D"] | None,
    memory: FixedMemory | None,
    log_probabilities: bool = False,
) -> list[Row]:
    """The rows, written to their ends."""
    samplings = of_each(sampling, len(rows))
    if any(sampling.beams > 1 for sampling in samplings):
        from minipeft.beams import beam_search

        with at_rest(model):
            return beam_search(model, rows, samplings, prompt=prompt, memory=memory)
    with at_rest(model):
        *_, last = steps(model, rows, samplings, prompt=prompt, memory=memory, log_probabilities=log_probabilities)
    return last


def stream(
    model: GPT2,
    rows: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    *,
    prompt: Float[Tensor, "1 P D"] | None = None,
    memory: FixedMemory | None = None,
) -> Iterator[list[int | None]]:
    """The next token of every row, step by step; None once a row has ended.

    Raises ValueError for beam search, in which nothing is sure before the end.
    """
    samplings = of_each(sampling, len(rows))
    if any(own.beams > 1 for own in samplings):
        raise ValueError("beam search cannot be streamed: no token is sure before the end; use generate.")
    with at_rest(model):
        for step, written in enumerate(steps(model, rows, samplings, prompt=prompt, memory=memory)):
            tokens = [row.new[step] if step < len(row.new) else None for row in written]
            if any(token is not None for token in tokens):
                yield tokens


def stream_text(
    model: GPT2,
    text: str,
    sampling: Sampling | None = None,
    *,
    prompt: Float[Tensor, "1 P D"] | None = None,
    memory: FixedMemory | None = None,
) -> Iterator[str]:
    """What is written behind `text`, piece by piece as it is sure; the pieces make up what `generate` adds."""
    sampling = sampling or Sampling()
    shown = Written(model.tokenizer, sampling.stop)
    for (token,) in stream(model, _rows(model, text), sampling, prompt=prompt, memory=memory):
        if token is not None and (piece := shown.add(token)):
            yield piece
    if rest := shown.end():
        yield rest


def steps(
    model: GPT2,
    rows: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    prompt: Float[Tensor, "1 P D"] | None = None,
    memory: FixedMemory | None = None,
    log_probabilities: bool = False,
) -> Iterator[list[Row]]:
    """The rows after each token, until all have ended; those that have, leave the batch."""
    end_of_text = model.config.end_of_text
    every = [begun(model, row, sampling) for row, sampling in zip(rows, samplings, strict=True)]
    cache, logits = read(model, every, prompt, memory)
    there = list(every)
    while True:
        chosen = _chosen(logits, there)
        if log_probabilities:
            _note(logits, there, chosen)
        for row, token in zip(there, chosen, strict=True):
            if not row.ended:
                row.add(token, end_of_text)
        yield every
        ended = sum(row.ended for row in there)
        if ended == len(there):
            return
        tokens = torch.tensor(chosen, device=model.device)[:, None]
        no_room = ended > 0 and cache.length >= model.config.n_positions  # one that has ended may have none left
        if (ended * LEAVE >= len(there) or no_room) and model.step is None:  # a compiled step is for one number of rows
            staying = torch.tensor([place for place, row in enumerate(there) if not row.ended], device=model.device)
            cache.select(staying)
            tokens, there = tokens[staying], [row for row in there if not row.ended]
        logits = go_on(model, tokens, cache)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Within this every part of a model is as in evaluation; then those that were in training are so again."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def begun(model: GPT2, ids: Sequence[int], sampling: Sampling) -> Row:
    """A row before its first token."""
    written = Written(model.tokenizer, sampling.stop) if sampling.stop else None
    return Row(sampling, list(ids), torch.Generator().manual_seed(sampling.seed), written)


@torch.no_grad()
def read(
    model: GPT2, rows: Sequence[Row], prompt: Float[Tensor, "1 P D"] | None, memory: FixedMemory | None
) -> tuple[KVCache, Float[Tensor, "B V"]]:
    """A cache in which prefix, prompt and texts stand, with room for what is to be written, and the next logits.

    Raises ValueError, before any compute, if there are not enough positions for a row.
    """
    ids = [row.prompt for row in rows]
    tokens, real = left_padded(ids, model.config.end_of_text, model.device)
    P = 0 if prompt is None else prompt.shape[1]
    slots = 0 if memory is None else memory.length
    before = [slots] * len(rows) if memory is None or memory.real is None else memory.real.sum(dim=1).tolist()
    for row, own in zip(rows, before, strict=True):
        if own + P + len(row.prompt) + row.sampling.max_new_tokens - 1 > model.config.n_positions:
            raise ValueError(
                f"{own + P} positions of the adapter + {len(row.prompt)} of the text + {row.sampling.max_new_tokens} "
                f"new tokens do not fit into this model's {model.config.n_positions}; lower max_new_tokens or shorten "
                "the text."
            )
    most_new = max(row.sampling.max_new_tokens for row in rows)
    capacity = slots + P + tokens.shape[1] + most_new - 1
    cache = model.new_cache(len(rows), capacity if model.step is None else capacity + -capacity % STEPS_ALIKE)
    if memory is not None:
        cache.start_with(memory)
    last = torch.zeros_like(real)
    last[:, -1] = True
    padding = None if bool(real.all()) else real
    hidden = model.hidden(tokens, padding, prompt=prompt, memory=cache, only=last)
    return cache, model.logits(hidden)[:, : model.config.tokens].float().cpu()


@torch.no_grad()
def go_on(model: GPT2, tokens: Int[Tensor, "B 1"], cache: KVCache) -> Float[Tensor, "B V"]:
    """Read one more token of each row; the logits of the next."""
    if model.step is not None or all_slots_pay(cache):
        logits = go_on_over_slots(model.step or plain_step(model), tokens, cache, model.config.n_positions - 1)
    else:
        logits = model.logits(model.hidden(tokens, memory=cache)[:, -1]).float().cpu()
    return logits[:, : model.config.tokens]


def _chosen(logits: Float[Tensor, "B V"], rows: Sequence[Row]) -> list[int]:
    """One token for each row, by its own settings."""
    samplings = [row.sampling for row in rows]
    held = [row.prompt + row.new if row.sampling.forbids else [] for row in rows]
    allowed = discouraged(logits, held, samplings)
    alike: dict[Sampling, list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(row.rules, []).append(place)
    chosen = [0] * len(rows)
    for sampling, places in alike.items():
        own = allowed if len(places) == len(rows) else allowed[places]
        for place, token in zip(places, choose(own, sampling, [rows[i].generator for i in places]), strict=True):
            chosen[place] = token
    return chosen


def _note(logits: Float[Tensor, "B V"], rows: Sequence[Row], chosen: Sequence[int]) -> None:
    """Remember the log-probability of what was chosen."""
    scored = logits.log_softmax(dim=-1)
    for place, row in enumerate(rows):
        if not row.ended:
            row.log_probabilities.append(float(scored[place, chosen[place]]))


def of_each(sampling: Sampling | Sequence[Sampling] | None, rows: int) -> list[Sampling]:
    """Settings for each row; of one for all, the seeds count up. Raises ValueError if there are not as many as rows."""
    if sampling is None or isinstance(sampling, Sampling):
        one = sampling or Sampling()
        return [replace(one, seed=(one.seed + row) % 2**32) for row in range(rows)]
    if len(sampling) != rows:
        raise ValueError(f"there are {len(sampling)} settings of sampling for {rows} rows.")
    return list(sampling)


def left_padded(
    rows: Sequence[Sequence[int]], filler: int, device: torch.device
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rows of unequal length as one batch that ends together, and its mask."""
    T = max(map(len, rows))
    tokens = torch.tensor([[filler] * (T - len(row)) + list(row) for row in rows], device=device)
    real = torch.tensor([[False] * (T - len(row)) + [True] * len(row) for row in rows], device=device)
    return tokens, real


def _rows(model: GPT2, prompts: Any, attention_mask: Tensor | None = None) -> list[list[int]]:
    if attention_mask is not None and (not isinstance(prompts, Tensor) or attention_mask.shape != prompts.shape):
        raise ValueError("attention_mask belongs to prompts that are a tensor, and has its shape.")
    if isinstance(prompts, Tensor):
        table = prompts if prompts.dim() == 2 else prompts[None]
        real = torch.ones_like(table, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        rows = [row[own].tolist() for row, own in zip(table, real.view_as(table), strict=True)]
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
    outside = [token for row in rows for token in row if not 0 <= token < model.config.tokens]
    if outside:
        raise ValueError(f"token id {outside[0]} is outside this model's vocabulary of {model.config.tokens:,}.")
    return rows


def _as_given(model: GPT2, prompts: Prompts, written: list[Row]) -> Prompts:
    if isinstance(prompts, Tensor):
        T = max(len(row.new) for row in written)
        ends = [row.new + [model.config.end_of_text] * (T - len(row.new)) for row in written]
        table = prompts if prompts.dim() == 2 else prompts[None]
        return torch.cat([table, torch.tensor(ends, dtype=table.dtype, device=table.device).view(len(ends), T)], dim=1)
    if isinstance(prompts, str):
        return prompts + _text(model, written[0])
    if isinstance(prompts[0], str):
        return [str(text) + _text(model, row) for text, row in zip(prompts, written, strict=True)]
    if isinstance(prompts[0], int):
        return written[0].prompt + written[0].new
    return [row.prompt + row.new for row in written]


def _text(model: GPT2, row: Row) -> str:
    """What a row has written, without what ended it."""
    shown = Written(model.tokenizer, row.sampling.stop)
    return "".join(map(shown.add, row.new)) + shown.end()
