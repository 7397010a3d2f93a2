"""Rules of writing that go beyond the next token: penalties, stops, log-probabilities, rows of unlike settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minipeft as mp
from minipeft import GPT2, Sampling, generate, stream_text, write
from minipeft.generate import LEAVE, steps
from minipeft.kernels.decoding import plain_step
from minipeft.written import Written
from tests.models import ragged, random_memory, random_model, random_tokens, shake, twins

READABLE = 512
LIVELY = 1
"""The seed of a tiny model whose greedy text is more than one token repeated."""


def readable() -> GPT2:
    return random_model(LIVELY, vocab_size=READABLE, n_positions=96)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2},
        {"no_repeat_ngram": 3},
        {"repetition_penalty": 1.2, "no_repeat_ngram": 2},
    ],
)
def test_what_a_row_holds_counts_as_in_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = twins(tmp_path, LIVELY)
    row = random_tokens(6, seed=3).tolist()
    named = {"no_repeat_ngram_size" if name == "no_repeat_ngram" else name: value for name, value in settings.items()}
    expected = theirs.generate(torch.tensor([row]), max_new_tokens=20, do_sample=False, **named)[0].tolist()
    found = generate(ours, row, Sampling(20, **settings))
    assert found == expected
    assert found != generate(ours, row, Sampling(20))


def test_rows_of_unlike_settings_write_what_they_write_alone() -> None:
    model = readable()
    rows = [row.tolist() for row in ragged([9, 3, 6, 1, 4], "left").rows]
    samplings = [
        Sampling(7),
        Sampling(20, temperature=1.0, seed=5),
        Sampling(3, temperature=0.7, top_k=9, seed=1),
        Sampling(20, repetition_penalty=1.5),
        Sampling(12, temperature=1.0, top_p=0.9, seed=5),
    ]
    alone = [generate(model, [row], [sampling])[0] for row, sampling in zip(rows, samplings, strict=True)]
    assert generate(model, rows, samplings) == alone
    backwards = generate(model, rows[::-1], samplings[::-1])
    assert backwards[::-1] == alone
    assert [len(new) - len(row) for new, row in zip(alone, rows, strict=True)] == [7, 20, 3, 20, 12]


def test_as_many_settings_as_rows_are_needed() -> None:
    with pytest.raises(ValueError, match="there are 1 settings of sampling for 2 rows"):
        generate(random_model(), [[1], [2]], [Sampling()])


def test_rows_that_have_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, widths = readable(), []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: widths.append(len(hidden)) or logits(hidden))
    rows = [[5 + row] for row in range(8)]
    lengths = [1, 2, 3, 4, 10, 10, 10, 12]
    generate(model, rows, [Sampling(length) for length in lengths])
    assert LEAVE == 4
    #         two of eight have ended, two of six, three of four
    assert widths == [8, 8, 6, 6] + [4] * 6 + [1] * 2


@pytest.mark.parametrize("step", [None, plain_step], ids=["leaving", "staying"])
def test_a_row_that_has_ended_needs_no_more_positions(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at the end of all positions beside some that have many left; by a compiled step's rules no row leaves."""
    model = readable()
    n = model.config.n_positions
    rows = [[1] * (n - 4), [5], [6], [7], [8]]
    samplings = [Sampling(3), *[Sampling(20)] * 4]
    alone = [generate(model, [row], [sampling])[0] for row, sampling in zip(rows, samplings, strict=True)]
    monkeypatch.setattr(model, "step", step and step(model))
    assert generate(model, rows, samplings) == alone


def test_nothing_is_dropped_out_while_writing() -> None:
    """And a model that is being trained goes on with being trained."""
    tuned = mp.attach(readable(), mp.LoRA(rank=2, dropout=0.9))
    shake(tuned.attachment, seed=1)
    wanted = tuned.eval().generate([5, 1, 2], 12)
    tuned.train()
    assert tuned.generate([5, 1, 2], 12) == wanted
    assert all(module.training for module in (*tuned.modules(), *tuned.model.modules()))


def test_beam_search_is_not_streamed() -> None:
    with pytest.raises(ValueError, match="beam search cannot be streamed"):
        next(stream_text(readable(), "Once", Sampling(8, beams=3)))


def test_a_temperature_next_to_nothing_takes_the_likeliest() -> None:
    model = readable()
    assert generate(model, [5, 1], Sampling(9, temperature=1e-46)) == generate(model, [5, 1], Sampling(9))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("learned", [0, 3])
def test_a_padded_tensor_is_continued_as_its_rows_are(side: str, learned: int) -> None:
    model, batch = random_model(LIVELY), ragged([9, 3, 6], side)
    memory = random_memory(model, learned) if learned else None
    alone = [generate(model, row.tolist(), Sampling(8), memory=memory)[len(row) :] for row in batch.rows]
    found = generate(model, batch.tokens, Sampling(8), memory=memory, attention_mask=batch.mask)
    assert torch.equal(found[:, :9], batch.tokens)
    assert found[:, 9:].tolist() == alone


def test_a_mask_belongs_to_a_tensor() -> None:
    with pytest.raises(ValueError, match="attention_mask belongs to prompts that are a tensor"):
        generate(random_model(), [[1, 2]], attention_mask=torch.ones(1, 2, dtype=torch.long))


def test_log_probabilities_are_those_of_the_whole_text() -> None:
    model, rows = random_model(LIVELY), [[5, 1, 7], [9]]
    sampling = [Sampling(9, temperature=1.3, top_k=5, seed=3), Sampling(6, repetition_penalty=2.0)]
    for row, written in zip(rows, write(model, rows, sampling, log_probabilities=True), strict=True):
        text = torch.tensor([[*row, *written.new]])
        scored = model(text)[0, len(row) - 1 : -1].log_softmax(dim=-1)
        expected = scored.gather(1, text[0, len(row) :, None])[:, 0]
        assert torch.tensor(written.log_probabilities) == pytest.approx(expected.tolist(), abs=1e-5)
    assert not write(model, rows, Sampling(5))[0].log_probabilities


def test_a_stop_ends_a_row_and_stands_in_no_text() -> None:
    model = readable()
    free = generate(model, "Once", Sampling(30, temperature=1.0, seed=4)).removeprefix("Once")
    stop = free[8:11]
    at = free.index(stop)
    sampling = Sampling(30, temperature=1.0, seed=4, stop=(stop, "never written"))
    assert generate(model, "Once", sampling) == "Once" + free[:at]
    (row,) = write(model, "Once", sampling)
    text = model.tokenizer.decode(row.new)
    assert stop in text
    assert stop not in model.tokenizer.decode(row.new[:-1])  # ended as soon as it stood there


def test_a_stop_of_one_row_is_none_of_anothers() -> None:
    model = readable()
    free = [generate(model, text, Sampling(20)) for text in ("Once", "a b")]
    stop = (free[0].removeprefix("Once")[:2],)
    found = generate(model, ["Once", "a b"], [Sampling(20, stop=stop), Sampling(20)])
    assert found == ["Once", free[1]]


@pytest.mark.parametrize("pieces", [["ab", "c", "d"], ["a", "bcd"], ["abcd"], ["a", "b", "c", "d"]])
@pytest.mark.parametrize(("stop", "text"), [("bc", "a"), ("cd", "ab"), ("a", ""), ("de", "abcd"), ("abcd", "")])
def test_text_is_told_when_it_is_sure(pieces: list[str], stop: str, text: str) -> None:
    class Letters(mp.Tokenizer):
        def __init__(self) -> None:
            pass

        def token_bytes(self, token: int) -> bytes:
            return pieces[token].encode()

    written = Written(Letters(), (stop,))
    told = [written.add(token) for token in range(len(pieces))]
    assert "".join(told) + written.end() == text
    assert all(text.startswith("".join(told[: n + 1])) for n in range(len(told)))
    assert written.stopped == (stop in "abcd")


def test_streamed_text_is_the_text() -> None:
    model = readable()
    for seed in range(5):
        sampling = Sampling(40, temperature=1.5, seed=seed)
        whole = generate(model, "naïve", sampling).removeprefix("naïve")
        assert "".join(stream_text(model, "naïve", sampling)) == whole
        stop = Sampling(40, temperature=1.5, seed=seed, stop=(whole[5:7],))
        assert "".join(stream_text(model, "naïve", stop)) == whole[: whole.index(whole[5:7])]


def test_streaming_gives_what_a_batch_gives() -> None:
    model, rows = random_model(LIVELY), [[5, 1], [9], [4, 4, 4]]
    samplings = [Sampling(3), Sampling(9, temperature=1.0, seed=2), Sampling(5)]
    written = write(model, rows, samplings)
    *_, last = steps(model, rows, samplings)
    assert [row.new for row in last] == [row.new for row in written]


def test_padding_takes_no_position() -> None:
    """Side by side two rows need more slots than there are positions; each alone fits."""
    model = random_model(LIVELY)
    memory = random_memory(model, 20)
    keys, values = (torch.cat([part, torch.zeros_like(part)], dim=1).detach() for part in (memory.keys, memory.values))
    real = torch.tensor([[True] * 20, [False] * 20])
    both = mp.attention.FixedMemory(keys, values, real)
    rows, samplings = (
        [random_tokens(3, seed=1).tolist(), random_tokens(25, seed=2).tolist()],
        [Sampling(10), Sampling(8)],
    )
    found = generate(model, rows, samplings, memory=both)
    assert found[0] == generate(model, rows[0], samplings[0], memory=memory)
    assert found[1] == generate(model, rows[1], samplings[1])
    with pytest.raises(ValueError, match="20 positions of the adapter \\+ 3 of the text \\+ 11 new tokens do not fit"):
        generate(model, rows, [Sampling(11), Sampling(8)], memory=both)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a number above 0, got 0.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be a number above 0, got nan"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must be at least 0, got -1"),
        ({"stop": "text"}, "stop is a list of texts that are not empty, got 'text'"),
        ({"stop": ("a", "")}, "stop is a list of texts that are not empty"),
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"beams": 2, "temperature": 1.0}, "beam search draws nothing"),
        ({"length_penalty": float("inf")}, "length_penalty must be a number, got inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(**setting)


def exhaustive(model: GPT2, row: list[int], tokens: int, penalty: float, end: int) -> tuple[float, list[int]]:
    """The best ending of at most so many tokens, by trying all of them."""
    best = (-float("inf"), [0])

    def go_on(new: list[int], score: float) -> None:
        nonlocal best
        scored: Tensor = model(torch.tensor([row + new]))[0, -1].log_softmax(dim=-1)
        for token, own in enumerate(scored.tolist()):
            total, length = score + own, len(new) + 1
            if token == end or length == tokens:
                best = max(best, (total / length**penalty, new if token == end else [*new, token]))
            else:
                go_on([*new, token], total)

    with torch.no_grad():
        go_on([], 0.0)
    return best


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_with_enough_beams_the_best_of_all_endings_is_found(penalty: float) -> None:
    model = random_model(LIVELY, vocab_size=5)
    rows, tokens = [[1, 3], [0], [2, 2, 1]], 4
    sampling = Sampling(tokens, beams=5**3, length_penalty=penalty)
    for row, found in zip(rows, write(model, rows, sampling), strict=True):
        rank, new = exhaustive(model, row, tokens, penalty, end=4)
        assert found.new == new
        assert sum(found.log_probabilities) / len(found.log_probabilities) ** penalty == pytest.approx(rank, abs=1e-4)


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("settings", [{}, {"length_penalty": 0.2}, {"length_penalty": 2.0}, {"no_repeat_ngram": 2}])
def test_beam_search_finds_what_transformers_finds(beams: int, settings: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = twins(tmp_path, LIVELY, vocab_size=20)
    rows = [
        torch.randint(19, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in (6, 2, 4)
    ]
    tokens = torch.tensor([[0] * (6 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (6 - len(row)) + [1] * len(row) for row in rows])
    named = {"no_repeat_ngram_size" if name == "no_repeat_ngram" else name: value for name, value in settings.items()}
    expected = theirs.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=12,
        num_beams=beams,
        early_stopping="never",
        do_sample=False,
        eos_token_id=19,
        pad_token_id=19,
        **named,
    )[:, 6:].tolist()
    found = write(ours, rows, Sampling(12, beams=beams, **settings))
    assert [row.new for row in found] == [[token for token in row if token != 19] for row in expected]


def test_beams_of_a_row_do_not_depend_on_its_neighbours() -> None:
    model, rows = random_model(LIVELY, vocab_size=20), [[5, 1], [3] * 9, [8]]
    sampling = Sampling(10, beams=3, length_penalty=0.5)
    assert generate(model, rows, sampling) == [generate(model, row, sampling) for row in rows]
    with pytest.raises(ValueError, match="beam search takes one setting for all rows"):
        generate(model, rows, [sampling, sampling, Sampling(9, beams=3)])


def test_beams_end_at_a_stop() -> None:
    model = readable()
    free = generate(model, "Once", Sampling(8, beams=3)).removeprefix("Once")
    (row,) = write(model, "Once", Sampling(8, beams=3, stop=(free[2:4],)))
    text = model.tokenizer.decode(row.new)
    assert free[2:4] not in model.tokenizer.decode(row.new[:-1])  # nothing goes on behind a stop
    assert free[2:4] in text or len(row.new) == 8
