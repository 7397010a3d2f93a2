"""Beam search: the best of several beginnings, kept side by side, instead of the likeliest next token.

A beginning's score is its log-probability; what has ended is ranked by score / tokens^length_penalty. A row is done
when none of its beginnings could still come before the worst of the endings that are kept.
Source: Wu et al. 2016, §7; the rules of `transformers` with early_stopping="never".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nlargest

import torch
from jaxtyping import Float
from torch import Tensor

from minipeft.attention import FixedMemory
from minipeft.generate import Row, begun, go_on, read
from minipeft.gpt2 import GPT2
from minipeft.sampling import Sampling, discouraged
from minipeft.written import Written


@dataclass(frozen=True)
class Beginning:
    """What one beam has written."""

    tokens: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()
    score: float = 0.0
    parent: int = 0
    """Which of the beams before it goes on in this one."""


@dataclass
class Search:
    """The beams of one row."""

    row: Row
    going: list[Beginning] = field(default_factory=lambda: [Beginning()])
    ended: list[tuple[float, Beginning]] = field(default_factory=list)
    """Each with what it is ranked by; no more than there are beams."""

    def end(self, beginning: Beginning, tokens: int) -> None:
        """Keep it if it is among the best. `tokens`: its length, with what ended it."""
        sampling = self.row.sampling
        ranked = (beginning.score / tokens**sampling.length_penalty, beginning)
        self.ended = nlargest(sampling.beams, [*self.ended, ranked], key=lambda one: one[0])

    def is_done(self) -> bool:
        """Whether no beginning could become better than what has ended."""
        sampling = self.row.sampling
        if not self.going:
            return True
        if len(self.ended) < sampling.beams:
            return False
        longest = sampling.length_penalty > 0  # a score is negative: then the longest text would rank highest
        tokens = sampling.max_new_tokens if longest else len(self.going[0].tokens) + 1
        best = max(beginning.score for beginning in self.going) / tokens**sampling.length_penalty
        return best <= self.ended[-1][0]


def beam_search(
    model: GPT2,
    rows: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    prompt: Float[Tensor, "1 P D"] | None = None,
    memory: FixedMemory | None = None,
) -> list[Row]:
    """The best ending of each row. Raises ValueError if the rows' settings are not the same, and what `read` raises."""
    sampling = samplings[0].rules
    if any(other.rules != sampling for other in samplings):
        raise ValueError("beam search takes one setting for all rows of a batch.")
    every = [Search(begun(model, ids, sampling)) for ids in rows]
    cache, logits = read(model, [search.row for search in every], prompt, memory)
    there, width = list(every), 1
    while there:
        scored = logits.log_softmax(dim=-1)  # [rows · beams, V]
        for search, own in zip(there, scored.split(width), strict=True):
            _branch(model, search, own)
        staying = [place for place, search in enumerate(there) if not search.is_done()]
        parents = [place * width + one.parent for place in staying for one in _filled(there[place])]
        there, width = [there[place] for place in staying], sampling.beams
        if there:
            cache.select(torch.tensor(parents, device=model.device))
            last = [[one.tokens[-1]] for search in there for one in _filled(search)]
            logits = go_on(model, torch.tensor(last, device=model.device), cache)
    for search in every:
        _, best = search.ended[0]
        search.row.new, search.row.log_probabilities = list(best.tokens), list(best.log_probabilities)
        search.row.ended = True
    return [search.row for search in every]


def _branch(model: GPT2, search: Search, scored: Float[Tensor, "W V"]) -> None:
    """Every beam by every token: the best of them go on, or end."""
    row, sampling = search.row, search.row.sampling
    held = [row.prompt + list(one.tokens) for one in search.going]
    own = scored[: len(held)]
    allowed = discouraged(own, held, [sampling] * len(held))
    total = allowed + torch.tensor([[one.score] for one in search.going])
    best = total.flatten().topk(min(2 * sampling.beams, total.numel()))
    going: list[Beginning] = []
    for rank, (score, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        parent, token = divmod(place, total.shape[1])
        before = search.going[parent]
        if score == -math.inf or len(going) == sampling.beams:
            break
        noted = (*before.log_probabilities, float(own[parent, token]))
        if token == model.config.end_of_text:
            if rank < sampling.beams:
                search.end(Beginning(before.tokens, noted, score), len(noted))
            continue
        one = Beginning((*before.tokens, token), noted, score, parent)
        stopped = _stopped(model, one.tokens, sampling.stop)
        if len(one.tokens) == sampling.max_new_tokens or stopped:
            if rank < sampling.beams or not stopped:
                search.end(one, len(one.tokens))
            continue
        going.append(one)
    search.going = going


def _filled(search: Search) -> list[Beginning]:
    """As many beams as there are to be; where fewer go on, the first stands in, and what it scores is not read."""
    return search.going + [search.going[0]] * (search.row.sampling.beams - len(search.going))


def _stopped(model: GPT2, tokens: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the text of these tokens has one of `stop` in it."""
    shown = Written(model.tokenizer, stop) if stop else None
    return shown is not None and any(shown.add(token) is not None and shown.stopped for token in tokens)
