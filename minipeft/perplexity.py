"""Perplexity on text that is held out, over all of it and by source."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from minipeft.corpus import Corpus
from minipeft.gpt2 import GPT2
from minipeft.token_files import Shards, TokenFiles


@dataclass(frozen=True)
class Perplexities:
    """exp of the mean loss over all held-out tokens, and over those of each source. NaN where nothing is held out."""

    overall: float
    by_source: dict[str, float]


@torch.no_grad()
def perplexities(model: GPT2, corpus: Corpus | TokenFiles) -> Perplexities:
    """What `model` makes of the held-out text, in neighbouring windows of n_positions."""
    was_training = model.training
    model.eval()
    losses: dict[str, float] = {}
    counts: dict[str, int] = {}
    stretch = model.config.n_positions * 16
    for source, tokens in corpus.held_out.items():
        for start in range(0, len(tokens), stretch):
            block = torch.from_numpy(tokens[start : start + stretch].astype(np.int64)).to(model.device)
            for rows in _rows(block, model.config.n_positions):
                scored = rows.shape[0] * (rows.shape[1] - 1)
                losses[source] = losses.get(source, 0.0) + float(model.loss(rows, rows)) * scored
                counts[source] = counts.get(source, 0) + scored
    model.train(was_training)
    overall = perplexity_of(sum(losses.values()) / sum(counts.values())) if counts else math.nan
    return Perplexities(overall, {source: perplexity_of(losses[source] / counts[source]) for source in counts})


def unigram_perplexities(corpus: Corpus | TokenFiles, vocab_size: int) -> Perplexities:
    """What knowing only how often each token occurs in the training text gives (add-one smoothing)."""
    train = corpus.train
    counts = train.counts(vocab_size) if isinstance(train, Shards) else np.bincount(train, minlength=vocab_size)
    occurrences = counts + 1.0
    cost = -np.log(occurrences / occurrences.sum())
    by_source = {source: math.exp(cost[tokens].mean()) for source, tokens in corpus.held_out.items()}
    everything = np.concatenate([*corpus.held_out.values()]) if corpus.held_out else np.zeros(0, int)
    return Perplexities(math.exp(cost[everything].mean()) if len(everything) else math.nan, by_source)


def perplexity_of(nats: float) -> float:
    """e to a mean loss in nats, infinite where Python's own function would refuse."""
    return math.exp(nats) if nats < 700 else math.inf


def _rows(block: Int[Tensor, "N"], length: int) -> list[Int[Tensor, "B T"]]:
    """A stretch of tokens as one batch of full rows and one of the rest, if it has a token to predict."""
    full = len(block) // length * length
    batches = [block[:full].view(-1, length)] if full else []
    if len(block) - full > 1:
        batches.append(block[full:].view(1, -1))
    return batches
