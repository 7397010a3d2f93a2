"""What pretraining reads and how it is measured: windows of tokens, perplexities."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from minipeft.corpus import Corpus, CorpusError
from minipeft.perplexity import perplexities, unigram_perplexities
from minipeft.pretrain import TokenWindows
from tests.models import random_model

T = 5
STREAM = np.arange(100, 100 + 12 * T + 3, dtype=np.uint16)
"""Its values tell where a window was cut; it gives 11 windows to an epoch."""
WINDOWS = 11

HELD_OUT = {"long": 1500, "short": 3, "even": 64}
"""Lengths for a model of 32 positions: windows over several blocks, one small rest, two full rows without a rest."""


def test_a_batch_is_rows_of_neighbouring_tokens() -> None:
    batch = TokenWindows(STREAM, T, batch_size=4, seed=0)(0)
    assert batch.shape == (4, T)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, batch[:, :1] + torch.arange(T))


def test_a_batch_depends_on_its_step_alone() -> None:
    steps = [7, 0, 3, 7, 25, 1]
    windows = TokenWindows(STREAM, T, batch_size=4, seed=0)
    for step in steps:
        assert torch.equal(windows(step), TokenWindows(STREAM, T, batch_size=4, seed=0)(step))


def test_another_seed_gives_other_batches() -> None:
    one, two = (TokenWindows(STREAM, T, batch_size=8, seed=seed)(0) for seed in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11])
def test_every_epoch_reads_each_window_once_without_overlap(batch_size: int) -> None:
    windows = TokenWindows(STREAM, T, batch_size, seed=0)
    rows = torch.cat([windows(step) for step in range(-(-4 * WINDOWS // batch_size))])
    for epoch in range(4):
        read = sorted(rows[epoch * WINDOWS : (epoch + 1) * WINDOWS].flatten().tolist())
        assert read == list(range(read[0], read[0] + WINDOWS * T))
        assert STREAM[0] <= read[0] < STREAM[0] + T


def test_epochs_differ_in_order_and_offset() -> None:
    windows = TokenWindows(STREAM, T, WINDOWS, seed=0)
    epochs = [windows(step) for step in range(6)]
    assert len({int(epoch.min()) for epoch in epochs}) > 1
    assert len({tuple((epoch[:, 0] - epoch.min()).tolist()) for epoch in epochs}) == 6


@pytest.mark.parametrize("batch_size", [1, 3])
def test_too_few_tokens_for_a_batch_are_refused(batch_size: int) -> None:
    enough = (batch_size + 1) * T
    assert TokenWindows(STREAM[:enough], T, batch_size, seed=0)(0).shape == (batch_size, T)
    with pytest.raises(CorpusError, match=f"{enough - 1} tokens are too few for a batch of {batch_size} × {T}"):
        TokenWindows(STREAM[: enough - 1], T, batch_size, seed=0)


def corpus_of(held_out: dict[str, int], vocab_size: int = 64) -> Corpus:
    draw = np.random.default_rng(0)
    train = draw.integers(vocab_size // 2, size=400, dtype=np.uint16)  # half of the words never occur in training
    return Corpus(train, {name: draw.integers(vocab_size, size=n, dtype=np.uint16) for name, n in held_out.items()})


@pytest.mark.parametrize("held_out", [HELD_OUT, {"other": 20, "all": 50}], ids=["files", "a file named all"])
def test_the_unigram_perplexity_is_that_of_counting(held_out: dict[str, int]) -> None:
    corpus = corpus_of(held_out)
    counts = Counter(corpus.train.tolist())

    def counted(tokens: list[int]) -> float:
        costs = [-math.log((counts[token] + 1) / (len(corpus.train) + 64)) for token in tokens]
        return math.exp(sum(costs) / len(costs))

    found = unigram_perplexities(corpus, 64)
    everything = [token for tokens in corpus.held_out.values() for token in tokens.tolist()]
    assert found.overall == pytest.approx(counted(everything), rel=1e-12)  # doubles
    for name in held_out:
        assert found.by_source[name] == pytest.approx(counted(corpus.held_out[name].tolist()), rel=1e-12)


@torch.no_grad()
def test_a_perplexity_is_that_of_every_token_within_its_window() -> None:
    model = random_model()
    corpus = corpus_of(HELD_OUT)
    costs: dict[str, list[float]] = {}
    for name, tokens in corpus.held_out.items():
        costs[name] = []
        for start in range(0, len(tokens), model.config.n_positions):
            row = torch.from_numpy(tokens[start : start + model.config.n_positions].astype(np.int64))
            chances = model(row[None])[0].double().log_softmax(-1)
            costs[name] += [-float(chances[place - 1, row[place]]) for place in range(1, len(row))]
    found = perplexities(model.train(), corpus)
    assert model.training
    assert found.by_source.keys() == HELD_OUT.keys()
    everything = [cost for some in costs.values() for cost in some]
    for name, cost, perplexity in [
        ("overall", everything, found.overall),
        *((name, costs[name], found.by_source[name]) for name in costs),
    ]:
        assert perplexity == pytest.approx(math.exp(sum(cost) / len(cost)), rel=1e-5), name  # means of fp32 losses


def test_nothing_held_out_has_no_perplexity() -> None:
    corpus = corpus_of({})
    for found in (perplexities(random_model(), corpus), unigram_perplexities(corpus, 64)):
        assert math.isnan(found.overall)
        assert found.by_source == {}


def test_a_held_out_part_of_one_token_is_left_out() -> None:
    assert perplexities(random_model(), corpus_of({"one": 1, "two": 2})).by_source.keys() == {"two"}
