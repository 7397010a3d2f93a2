"""What ships is whole, is what its cards say, and does what it is for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import minipeft as mp
import minipeft.demo
from minipeft.checkpoint import SHIPPED
from minipeft.evaluate import evaluate
from minipeft.gpt2 import GPT2
from minipeft.tasks import TASKS, Task
from minipeft.tune import TuneConfig, encoder_for
from minipeft.tuned import SHIPPED_ADAPTERS
from tests.models import farthest

ASSETS = Path(mp.__file__).parent / "assets"


@pytest.fixture(scope="module")
def nano() -> GPT2:
    return GPT2.from_pretrained("nano")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_that_ships_is_a_gpt2_for_transformers(name: str) -> None:
    import transformers

    ours = GPT2.from_pretrained(name)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(ASSETS / name, dtype=torch.float32).eval()
    tokens = torch.tensor(
        [ours.tokenizer.encode("The film is about a small village by the sea, and so was his first.")]
    )
    assert farthest(ours(tokens), theirs(tokens).logits) < 1e-4  # fp32, logits of about 10


@pytest.mark.parametrize(("name", "numbers"), [("pico", 1_883_008), ("nano", 6_918_400)])
def test_a_model_that_ships_has_its_size(name: str, numbers: int) -> None:
    model = GPT2.from_pretrained(name)
    report = json.loads((ASSETS / name / "report.json").read_text())
    assert report["parameters"] == model.num_parameters() == numbers
    assert model.config.n_positions == 256


def test_all_weights_that_ship_are_small() -> None:
    assert sum((ASSETS / name / "model.safetensors").stat().st_size for name in SHIPPED) <= 20e6


def test_the_larger_model_is_the_better_one() -> None:
    pico, nano = (
        json.loads((ASSETS / name / "report.json").read_text())["perplexity"]["overall"] for name in ("pico", "nano")
    )
    assert nano < 0.9 * pico


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_that_ships_has_learned_every_source(name: str) -> None:
    report = json.loads((ASSETS / name / "report.json").read_text())
    trained, unigram = report["perplexity"]["by_source"], report["perplexity_unigram"]["by_source"]
    assert trained.keys() == unigram.keys()
    assert len(trained) == 18  # of 19; no piece of `gum` happens to be held out
    assert all(trained[source] < unigram[source] / 5 for source in trained)


def test_nano_prefers_sense_to_nonsense(nano: GPT2) -> None:
    def cost(text: str) -> float:
        tokens = torch.tensor([nano.tokenizer.encode(text)])
        return float(nano.loss(tokens, tokens).detach())

    assert cost("The old man went to the village to see his daughter.") < cost(
        "The daughter old see man the to his village went to."
    )


@pytest.mark.parametrize("name", ["positive", "negative", "shakespeare"])
def test_a_steering_prompt_predicts_its_own_texts_best(name: str, nano: GPT2) -> None:
    """Movie reviews of one kind, or verse the base has never read (it belongs to a play that was held out)."""
    verse = (
        "This royal throne of kings, this sceptred isle,\nThis earth of majesty, this seat of Mars,\n"
        "This other Eden, demi-paradise,\nThis fortress built by Nature for herself\n"
    )
    movie = TASKS["movie"]().splits["dev"]
    texts = [verse] if name == "shakespeare" else [row.text for row in movie if row.target == name][:60]
    prompts = [path.parent.name for path in SHIPPED_ADAPTERS.glob("*/adapter_config.json")]
    assert set(prompts) == {"positive", "negative", "shakespeare"}
    costs = {}
    for prompt in prompts:
        tuned = mp.load(SHIPPED_ADAPTERS / prompt, nano)
        rows = [torch.tensor([nano.tokenizer.encode(text)]) for text in texts]
        costs[prompt] = sum(float(tuned.loss(row, row).detach()) for row in rows) / len(rows)
    assert min(costs, key=lambda prompt: costs[prompt]) == name, costs


def test_the_demo_leaves_a_table_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TASKS["movie"]()
    small: Task = replace(whole, splits={split: rows[::40] for split, rows in whole.splits.items()})
    monkeypatch.setitem(TASKS, "movie", lambda: small)
    quick = tuple((label, method, TuneConfig(steps=2)) for label, method, _ in minipeft.demo.TUNED)
    monkeypatch.setattr(minipeft.demo, "TUNED", quick)
    with open(tmp_path / "screen.txt", "w", encoding="utf-8") as file:
        rows = minipeft.demo.run(tmp_path / "demo", Console(file=file, width=100))
    table = json.loads((tmp_path / "demo" / "table.json").read_text())
    methods = [row["method"] for row in table["rows"]]
    asked = ["hard prompt", "hard prompt, calibrated"]
    assert methods == ["majority class", *asked, "soft prompt", "prefix", "full finetuning"]
    assert [row.trainable for row in rows] == [0, 0, 0, 5120, 1710080, 6918400]
    assert [row["prompt"] for row in table["steered"]] == ["no prompt", "positive", "negative", "shakespeare"]
    assert all(
        row["text"].startswith(minipeft.demo.OPENING) and len(row["text"]) > len(minipeft.demo.OPENING)
        for row in table["steered"]
    )
    assert (tmp_path / "demo" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    screen = (tmp_path / "screen.txt").read_text(encoding="utf-8")
    assert "soft prompt" in screen
    assert f"{len(small.splits['test'])} test examples" in screen
    adapter = mp.load(tmp_path / "demo" / "prefix", GPT2.from_pretrained("nano"))
    score = evaluate(adapter, encoder_for(adapter, small), small.splits["test"])
    assert score.accuracy == pytest.approx(rows[4].test)
