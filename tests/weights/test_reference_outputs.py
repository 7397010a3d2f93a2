"""What the real GPT-2 small is known to write and to cost, wherever its weights are: in the hub's cache, or in a folder
or file that MINIPEFT_GPT2 names.

The same functions run everywhere on a random model of the same size, whose references `transformers` computes on the
spot: so the day the weights are at hand nothing here runs for the first time.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minipeft as mp
from minipeft.downloads import PUBLIC
from minipeft.zero_shot import ZERO_SHOT, Settings, Subject, measure
from tests.models import twins

DOG = [464, 3290]
HELLO, TODAY = "Hello, my dog is a little", "Today, I"
EFFORT = "Every effort moves"
BATCH, LENGTH, STEPS = 4, 64, 10
CHOICES, EXAMPLES, CHARACTERS = ("lambada", "hellaswag"), 50, 20_000


@dataclass(frozen=True)
class Known:
    """What a model is known to do; `losses` needs the text of tinyshakespeare. Each is computed when asked for."""

    dog: Callable[[], list[int]]
    """Greedy from `DOG` to 20 tokens. Source for GPT-2: the tests of `transformers`."""
    hello: Callable[[], list[str]]
    """Greedy, `HELLO` and `TODAY` in one batch padded on the left. Source: the tests of `transformers`."""
    effort: Callable[[], str]
    """30 greedy tokens after `EFFORT`. Source: Raschka, Build a Large Language Model, ch. 5."""
    hello_world: Callable[[], float]
    """The mean loss of "Hello world!" after `<|endoftext|>`. Source: TransformerLens."""
    losses: Callable[[Tensor], list[float]]
    """Ten steps of AdamW (1e-4, decay 0.01 on all) on one batch, rows of 65 ids. Source: llm.c, test_gpt2.c."""


GPT2 = Known(
    dog=lambda: [
        *(464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246),
        *(286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290),
    ],
    hello=lambda: [
        "Hello, my dog is a little bit of a mess. I'm not sure if he's going",
        "Today, I'm going to be doing a lot of research on this. I",
    ],
    effort=lambda: (
        "Every effort moves forward, but it's not enough.\n\n\"I'm not going to sit here and say, 'I'm not going to do "
        "this,'"
    ),
    hello_world=lambda: 5.331856,
    losses=lambda rows: [
        5.270007,
        4.059707,
        3.375123,
        2.800783,
        2.315382,
        1.849029,
        1.394656,
        0.999147,
        0.624080,
        0.376511,
    ],
)


def known_of(theirs: Any, tokenizer: mp.Tokenizer) -> Known:
    """What `transformers` computes for a model of its own."""

    def greedy(ids: Tensor, count: int, mask: Tensor | None = None) -> list[list[int]]:
        mask = torch.ones_like(ids) if mask is None else mask
        with torch.no_grad():
            return theirs.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False).tolist()

    def hello() -> list[str]:
        rows = [tokenizer.encode(text) for text in (HELLO, TODAY)]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        found = greedy(ids, 20 - 7, mask)
        return [tokenizer.decode(row[width - len(start) :]) for row, start in zip(found, rows, strict=True)]

    def hello_world() -> float:
        ids = torch.tensor([[tokenizer.eot, *tokenizer.encode("Hello world!")]])
        with torch.no_grad():
            return float(theirs(ids, labels=ids).loss)

    def losses(rows: Tensor) -> list[float]:
        return ten_steps(lambda: theirs(rows, labels=rows).loss, list(theirs.parameters()))

    return Known(
        dog=lambda: greedy(torch.tensor([DOG]), 18)[0],
        hello=hello,
        effort=lambda: tokenizer.decode(greedy(torch.tensor([tokenizer.encode(EFFORT)]), 30)[0]),
        hello_world=hello_world,
        losses=losses,
    )


def ten_steps(loss: Callable[[], Tensor], parameters: list[torch.nn.Parameter]) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, fused=True)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        now = loss()
        now.backward()
        optimizer.step()
        found.append(now.item())
    return found


def first_batch(tokenizer: mp.Tokenizer) -> Tensor:
    """llm.c's first batch of tinyshakespeare: every speech a document of its own, `<|endoftext|>` in front of each.

    Rows overlap by one id, the last target of one being the first input of the next.
    """
    path = Path(os.environ.get("MINIPEFT_DATA", "nowhere")) / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip("needs tinyshakespeare: set MINIPEFT_DATA")
    text = "<|endoftext|>" + path.read_text(encoding="utf-8").replace("\n\n", "\n\n<|endoftext|>")
    ids = tokenizer.encode(text[:4000], allow_special=True)
    return torch.tensor([ids[start : start + LENGTH + 1] for start in range(0, BATCH * LENGTH, LENGTH)])


def real_gpt2() -> mp.GPT2:
    named = os.environ.get("MINIPEFT_GPT2")
    found = named or PUBLIC["gpt2"].find()
    if not found:
        pytest.skip("needs the real weights: python weights_download.py gpt2, or MINIPEFT_GPT2=FOLDER")
    return mp.GPT2.from_pretrained(Path(found))


@pytest.fixture(
    scope="module", params=[pytest.param("gpt2", marks=pytest.mark.weights), pytest.param("random model of its size")]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[mp.GPT2, Known]]:
    """A model of ours, and what it is known to do."""
    if request.param == "gpt2":
        yield real_gpt2(), GPT2
        return
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
    ours, theirs = twins(tmp_path_factory.mktemp("random"), **shape, bos_token_id=50256, eos_token_id=50256)
    assert ours.num_parameters() == 124_439_808
    yield ours, known_of(theirs, ours.tokenizer)


def test_it_writes_about_a_dog(case: tuple[mp.GPT2, Known]) -> None:
    model, known = case
    assert mp.generate(model, DOG, mp.Sampling(max_new_tokens=18)) == known.dog()


def test_it_writes_the_same_in_a_padded_batch(case: tuple[mp.GPT2, Known]) -> None:
    model, known = case
    assert mp.generate(model, [HELLO, TODAY], mp.Sampling(max_new_tokens=20 - 7)) == known.hello()


def test_it_writes_after_every_effort(case: tuple[mp.GPT2, Known]) -> None:
    model, known = case
    assert mp.generate(model, EFFORT, mp.Sampling(max_new_tokens=30)) == known.effort()


def test_hello_world_costs_what_it_is_known_to_cost(case: tuple[mp.GPT2, Known]) -> None:
    model, known = case
    ids = torch.tensor([[model.tokenizer.eot, *model.tokenizer.encode("Hello world!")]])
    with torch.no_grad():
        assert float(model.loss(ids, ids)) == pytest.approx(known.hello_world(), abs=2e-4)


def test_ten_steps_on_one_batch_cost_what_they_are_known_to_cost(case: tuple[mp.GPT2, Known]) -> None:
    """The last test: training changes the model."""
    model, known = case
    rows = first_batch(model.tokenizer)
    expected = known.losses(rows)
    found = ten_steps(lambda: model.loss(rows, rows), list(model.parameters()))
    assert found == pytest.approx(expected, abs=1e-2)
    assert found[-1] < found[0] / 2


@pytest.mark.weights
@pytest.mark.parametrize("task", [name for name in ZERO_SHOT if name != "text"])
def test_zero_shot_values_are_reported(task: str, record_property: Callable[[str, object], None]) -> None:
    """Protocols differ from the published ones, so the values are reported (`pytest -rP`) and not compared."""
    model = real_gpt2()
    try:
        found = measure(
            task, Subject.of(model), settings=Settings(limit=50 if task in ("lambada", "hellaswag") else 20_000)
        )
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for name, value in found.values.items():
        print(f"{task}, {name}: {value:.4g} ({found.on}; {found.protocol})")
        record_property(f"{task}, {name}", value)
