"""How the next token is chosen: what a person may ask for, and the choice among a model's logits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minipeft.seeds import check_seed

COLD = 1e-30
"""Below this a temperature is none: fp32 would divide by 0."""


@dataclass(frozen=True)
class Sampling:
    """How text is written: temperature 0 takes the likeliest token, else one is drawn among the top_k / top_p.

    Source: nucleus (top_p) sampling, Holtzman et al. 2020, §3.1.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    repetition_penalty: float = 1.0
    """What the logits of tokens that the row has already are divided by, or multiplied by where they are negative.

    Source: Keskar et al. 2019, §4.1.
    """
    no_repeat_ngram: int = 0
    """So many tokens never stand one behind another twice in a row; 0: no such rule.

    Source: Paulus et al. 2018, §2.5.
    """
    stop: Sequence[str] = ()
    """Texts that end a row as soon as it has written one of them; the text that comes back ends before it."""
    beams: int = 1
    """From 2 on: how many beginnings beam search goes on with; nothing is drawn then."""
    length_penalty: float = 1.0
    """Beam search ranks by log-probability / tokens to this power: above 0 longer texts gain, below 0 shorter ones.

    Source: Wu et al. 2016, §7, as `transformers` computes it.
    """

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
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be a number above 0, got {self.repetition_penalty}.")
        if self.no_repeat_ngram < 0:
            raise ValueError(f"no_repeat_ngram must be at least 0, got {self.no_repeat_ngram}.")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is a list of texts that are not empty, got {self.stop!r}.")
        object.__setattr__(self, "stop", tuple(self.stop))  # so that settings can be compared and hashed
        if self.beams < 1:
            raise ValueError(f"beams must be at least 1, got {self.beams}.")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beam search draws nothing: with beams, leave temperature at 0.")
        if not abs(self.length_penalty) < float("inf"):
            raise ValueError(f"length_penalty must be a number, got {self.length_penalty}.")

    @property
    def rules(self) -> "Sampling":
        """All but the seed: what rows that are chosen together, or searched together, have in common."""
        return replace(self, seed=0)

    @property
    def forbids(self) -> bool:
        """Whether what a row holds already changes what may come next."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0


def choose(logits: Float[Tensor, "B V"], sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token per row; a row's draw depends on its own generator alone."""
    if sampling.temperature < COLD:
        return logits.argmax(dim=-1).tolist()
    best = logits.max(dim=-1, keepdim=True).values
    logits = (logits - best) / sampling.temperature  # at most 0, so that nothing becomes infinite above
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p is not None:
        logits = logits.masked_fill(~_nucleus(logits, sampling.top_p), float("-inf"))
    shares = logits.softmax(dim=-1)
    return [int(torch.multinomial(row, 1, generator=g)) for row, g in zip(shares, generators, strict=True)]


def discouraged(
    scores: Float[Tensor, "B V"], rows: Sequence[Sequence[int]], samplings: Sequence[Sampling]
) -> Float[Tensor, "B V"]:
    """The scores, logits or log-probabilities, changed by what each row holds: see `Sampling.forbids`."""
    if not any(sampling.forbids for sampling in samplings):
        return scores
    scores = scores.clone()
    for own, row, sampling in zip(scores, rows, samplings, strict=True):
        if sampling.repetition_penalty != 1.0:
            held = torch.tensor(sorted(set(row)), device=scores.device)
            before = own[held]
            own[held] = torch.where(
                before > 0, before / sampling.repetition_penalty, before * sampling.repetition_penalty
            )
        if sampling.no_repeat_ngram and (again := _would_repeat(row, sampling.no_repeat_ngram)):
            own[torch.tensor(sorted(again), device=scores.device)] = float("-inf")
    return scores


def _would_repeat(row: Sequence[int], n: int) -> set[int]:
    """The tokens that would end the row in n tokens that it holds already."""
    last = list(row[len(row) - n + 1 :])
    return {row[i + n - 1] for i in range(len(row) - n + 1) if list(row[i : i + n - 1]) == last}


def _nucleus(logits: Float[Tensor, "B V"], top_p: float) -> Bool[Tensor, "B V"]:
    """The smallest set of likeliest tokens whose probabilities reach top_p."""
    shares, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = shares.cumsum(dim=-1) - shares  # the probability of all likelier tokens
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < top_p)
