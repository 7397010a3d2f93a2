"""Writing text: the likeliest token or a fair draw, stopping where the text ends, every row on its own."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minipeft import GPT2, GPT2Config, Sampling, generate
from minipeft.generate import stream
from minipeft.sampling import choose
from tests.models import TINY, random_model, random_tokens

READABLE = 512
"""A vocabulary of 256 bytes, 255 merges and the end of text: small, and yet a tokenizer has it."""
END = TINY["vocab_size"] - 1
LIVELY = 1
"""The seed of a tiny model whose greedy text is more than one token repeated."""
DRAWS = 4000

LOGITS = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.9, -1.5, 1.6, 0.0])
"""Probabilities from 1 % to 33 %."""


def exact(temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """What each token's probability should be, in Python's doubles: scale, keep the k likeliest, keep the nucleus."""
    weights = {token: math.exp(logit / temperature) for token, logit in enumerate(LOGITS.tolist())}
    kept = sorted(weights, key=lambda token: -weights[token])[:top_k]
    if top_p is not None:
        nucleus: list[int] = []
        while sum(weights[token] for token in nucleus) < top_p * sum(weights[token] for token in kept):
            nucleus.append(kept[len(nucleus)])
        kept = nucleus
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in weights]


def by_rows(sampling: Sampling) -> Counter[int]:
    """One draw by each of many rows, whose generators have neighbouring seeds, as those of a batch do."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(DRAWS)]
    return Counter(choose(LOGITS.expand(DRAWS, -1), sampling, generators))


def by_steps(sampling: Sampling) -> Counter[int]:
    """Many draws by one row."""
    generator = torch.Generator().manual_seed(0)
    return Counter(choose(LOGITS[None], sampling, [generator])[0] for _ in range(DRAWS))


def is_drawn_from(counts: Counter[int], shares: list[float]) -> bool:
    """Pearson's chi-square test at 0.1 %; its bound by Wilson and Hilferty (1931), whose error is below 2 % here."""
    if any(counts[token] for token, share in enumerate(shares) if share == 0):
        return False
    possible = {token: share * DRAWS for token, share in enumerate(shares) if share}
    assert min(possible.values()) > 5  # what the test needs
    statistic = sum((counts[token] - expected) ** 2 / expected for token, expected in possible.items())
    freedom = len(possible) - 1
    if not freedom:
        return statistic == 0
    return statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.7, None, None),
        (1.8, None, None),
        (1.0, 3, None),
        (1.3, 8, None),
        (1.3, 100, None),
        (1.0, None, 0.1),
        (1.0, None, 0.5),
        (1.0, None, 0.9),
        (0.7, None, 0.9),
        (1.0, None, 1.0),
        (1.2, 5, 0.8),
        (1.0, 2, 0.99),
    ],
)
def test_tokens_are_drawn_from_the_exact_distribution(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    counts = by_rows(Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert is_drawn_from(counts, exact(temperature, top_k, top_p))


def test_one_row_draws_from_the_exact_distribution_step_after_step() -> None:
    assert is_drawn_from(by_steps(Sampling(temperature=0.8, top_p=0.95)), exact(0.8, None, 0.95))


def test_the_comparison_tells_similar_distributions_apart() -> None:
    counts = by_rows(Sampling(temperature=1.0))
    assert not is_drawn_from(counts, exact(1.15, None, None))
    assert not is_drawn_from(counts, exact(1.0, 7, None))
    assert not is_drawn_from(by_rows(Sampling(temperature=1.0, top_p=0.9)), exact(1.0, None, None))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.0, top_k=3, top_p=0.5),
        Sampling(temperature=2.0, top_k=1),
        Sampling(temperature=2.0, top_p=1e-6),
        Sampling(temperature=1e-3),
        Sampling(temperature=1e-40),
    ],
)
def test_with_nothing_to_draw_the_likeliest_token_is_taken(sampling: Sampling) -> None:
    assert by_rows(sampling) == {int(LOGITS.argmax()): DRAWS}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be at least 1, got -3"),
        ({"temperature": -0.1}, "temperature must be a number of at least 0, got -0.1"),
        ({"temperature": math.inf}, "temperature must be a number of at least 0, got inf"),
        ({"temperature": math.nan}, "temperature must be a number of at least 0, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.01}, "top_p must be above 0 and at most 1, got 1.01"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, got nan"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be a whole number"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(**setting)


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param("", id="text"),
        pytest.param(["a word", ""], id="one of two texts"),
        pytest.param([], id="list"),
        pytest.param([[1, 2], []], id="one of two rows"),
        pytest.param(torch.zeros(0, 3, dtype=torch.long), id="tensor without rows"),
        pytest.param(torch.zeros(2, 0, dtype=torch.long), id="tensor without tokens"),
    ],
)
def test_an_empty_prompt_is_refused(prompts: Any) -> None:
    with pytest.raises(ValueError, match="there is nothing to continue: a prompt is empty"):
        generate(random_model(vocab_size=READABLE), prompts)


@pytest.mark.parametrize(("prompts", "outside"), [([3, 64], 64), ([[3], [5, -1]], -1), (torch.tensor([[3, 99]]), 99)])
def test_an_id_outside_the_vocabulary_is_named(prompts: Any, outside: int) -> None:
    with pytest.raises(ValueError, match=f"token id {outside} is outside this model's vocabulary of 64"):
        generate(random_model(), prompts)


def test_text_that_leaves_no_room_is_refused_before_any_compute() -> None:
    model = random_model(LIVELY)
    computed: list[str] = []
    model.wte.register_forward_hook(lambda *_: computed.append("wte"))
    row = random_tokens(20).tolist()
    room = TINY["n_positions"] - 20 + 1  # what is written last is never read
    with pytest.raises(ValueError, match=rf"20 of the text \+ {room + 1} new tokens do not fit .* 32; lower max_new"):
        generate(model, row, Sampling(room + 1))
    assert not computed
    assert len(generate(model, row, Sampling(room))) == 20 + room


def given_as(kind: str, model: GPT2) -> Any:
    texts = ["naïve 🤗 <|endoftext|>", "a"]
    rows = [model.tokenizer.encode(text) for text in texts]
    return {"text": texts[0], "texts": texts, "row": rows[0], "rows": rows, "tensor": torch.tensor(rows[:1] * 2)}[kind]


@pytest.mark.parametrize("kind", ["text", "texts", "row", "rows", "tensor"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_comes_back_is_of_the_same_type_and_begins_with_what_was_given(kind: str, temperature: float) -> None:
    model = random_model(LIVELY, vocab_size=READABLE, n_positions=64)
    given = given_as(kind, model)
    found = generate(model, given, Sampling(5, temperature=temperature))
    assert type(found) is type(given)
    assert len(found) == len(given) + 5 if kind == "row" else kind == "text" or len(found) == len(given)
    pairs = [(given, found)] if kind in ("text", "row") else zip(given, found, strict=True)
    for before, after in pairs:
        assert type(after) is type(before)
        assert len(after) > len(before)
        begin = after[: len(before)]
        assert torch.equal(begin, before) if isinstance(before, Tensor) else begin == before


def test_text_is_the_text_of_the_tokens() -> None:
    model = random_model(LIVELY, vocab_size=READABLE)
    tokenizer = model.tokenizer
    ids = generate(model, tokenizer.encode("Once upon"), Sampling(8))
    assert generate(model, "Once upon", Sampling(8)) == tokenizer.decode(ids)


def test_a_batch_is_continued_as_transformers_does(tmp_path: Path) -> None:
    """Greedy, rows of unequal length, the padding on the left."""
    from transformers import GPT2LMHeadModel

    ours = random_model(LIVELY)
    ours.save_pretrained(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    rows = [random_tokens(length, seed=length).tolist() for length in (7, 2, 4)]
    found = generate(ours, rows, Sampling(14))
    tokens = torch.tensor([[0] * (7 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (7 - len(row)) + [1] * len(row) for row in rows])
    settings = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(tokens, attention_mask=mask, **settings)[:, 7:].tolist()
    assert all(END not in row for row in expected)  # where we would stop
    assert all(len(set(row)) > 2 for row in expected)
    assert found == [row + new for row, new in zip(rows, expected, strict=True)]


@torch.no_grad()
def swapped(model: GPT2, token: int) -> GPT2:
    """The same model with `token` and the end of text for each other."""
    model.wte.weight[[token, END]] = model.wte.weight[[END, token]]
    return model


@pytest.mark.parametrize("kind", ["rows", "tensor"])
def test_a_row_ends_where_it_writes_the_end_of_text_and_the_others_go_on(kind: str) -> None:
    prompts, steps = [[5, 1], [9, 9], [7, 0]], 12
    free = generate(random_model(LIVELY), prompts, Sampling(steps))
    new = [row[2:] for row in free]
    token = next(token for token in new[0] if new[0].index(token) > 1 and any(token not in row for row in new[1:]))
    assert not any(END in row for row in free)
    expected = [row[: row.index(token)] if token in row else row for row in new]
    assert {len(row) for row in expected} > {steps}

    given = prompts if kind == "rows" else torch.tensor(prompts)
    found = generate(swapped(random_model(LIVELY), token), given, Sampling(steps))
    if kind == "rows":
        assert found == [row + end for row, end in zip(prompts, expected, strict=True)]
    else:
        filled = [end + [END] * (steps - len(end)) for end in expected]
        assert found.tolist() == [row + end for row, end in zip(prompts, filled, strict=True)]


def test_nothing_is_written_behind_an_immediate_end() -> None:
    prompt = [5, 1]
    (first,) = generate(random_model(LIVELY), prompt, Sampling(1))[2:]
    model = swapped(random_model(LIVELY), first)
    assert generate(model, prompt, Sampling(20)) == prompt
    assert generate(model, torch.tensor([prompt]), Sampling(20)).tolist() == [prompt]
    assert list(stream(model, [prompt], Sampling(20))) == []


def test_the_end_of_text_inside_a_prompt_ends_nothing() -> None:
    assert len(generate(random_model(LIVELY), [5, END, 1, END], Sampling(3))) == 4 + 3


def test_a_seed_gives_the_same_text_and_another_seed_another() -> None:
    model, prompt = random_model(LIVELY), [5, 1]
    first = generate(model, prompt, Sampling(20, temperature=1.0, seed=3))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert generate(model, prompt, Sampling(20, temperature=1.0, seed=3)) == first
    assert torch.equal(torch.get_rng_state(), state)  # and draws nothing from anyone else
    assert generate(model, prompt, Sampling(20, temperature=1.0, seed=4)) != first


def test_equal_rows_of_a_batch_are_drawn_apart() -> None:
    rows = generate(random_model(LIVELY), [[5, 1]] * 4, Sampling(20, temperature=1.0))
    assert len(set(map(tuple, rows))) == 4


def test_what_a_row_draws_does_not_depend_on_its_neighbours() -> None:
    model, drawn = random_model(LIVELY), Sampling(12, temperature=1.0, top_k=20, top_p=0.95)
    alone = generate(model, [[5, 1]], drawn)[0]
    assert generate(model, [[5, 1], [3] * 9, [8]], drawn)[0] == alone
    assert generate(model, [[5, 1], [END, 2]], drawn)[0] == alone
    second = generate(model, [[8], [5, 1]], drawn)[1]
    assert generate(model, [[3] * 9, [5, 1], [8]], drawn)[1] == second


def test_tokens_come_one_step_at_a_time() -> None:
    model, rows = random_model(LIVELY), [[5, 1], [9]]
    steps = list(stream(model, rows, Sampling(6)))
    assert [row + list(new) for row, new in zip(rows, zip(*steps, strict=True), strict=True)] == generate(
        model, rows, Sampling(6)
    )
    first = next(stream(model, rows, Sampling(6)))  # before the rest is computed
    assert first == steps[0]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"beams": 2}, {"repetition_penalty": 1.3}])
def test_rows_that_fill_up_a_vocabulary_are_never_written(how: dict[str, Any]) -> None:
    """As in nanoGPT's models, whose 50,304 rows are GPT-2's 50,257 tokens and 47 that stand for nothing."""
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=32, vocab_size=50_304, tied=False)
    assert (config.end_of_text, config.tokens) == (50_256, 50_257)
    model = GPT2(config, seed=0).eval()
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[50_257:] *= 1_000
        best = model(torch.tensor([[1, 2, 3]]))[0, -1].argmax()
    assert best > 50_256  # such a row is the likeliest
    text = generate(model, "To be", Sampling(max_new_tokens=8, **how))
    assert text.startswith("To be")
    written = generate(model, [[1, 2, 3], [4]], Sampling(max_new_tokens=8, **how))
    assert max(token for row in written for token in row) < 50_257
    with pytest.raises(ValueError, match="token id 50300 is outside this model's vocabulary of 50,257"):
        generate(model, [50_300], Sampling(max_new_tokens=1))


def test_the_end_of_text_is_the_last_token_of_other_vocabularies() -> None:
    for size in (257, 8_257, 50_257, 50_305, 60_000):
        assert GPT2Config(vocab_size=size).end_of_text == size - 1
