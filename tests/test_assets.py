"""What ships is whole, is what its cards say, and does what it is for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import minipeft as mp
import minipeft.demo
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


def test_nano_is_a_gpt2_for_transformers(nano: GPT2) -> None:
    import transformers

    theirs = transformers.GPT2LMHeadModel.from_pretrained(ASSETS / "nano", dtype=torch.float32).eval()
    tokens = torch.tensor(
        [nano.tokenizer.encode("The film is about a small village by the sea, and so was his first.")]
    )
    assert farthest(nano(tokens), theirs(tokens).logits) < 1e-4  # fp32, logits of about 10


def test_nano_keeps_to_its_size(nano: GPT2) -> None:
    assert (ASSETS / "nano" / "model.safetensors").stat().st_size <= 16e6
    assert 2e6 <= nano.num_parameters() <= 8e6
    assert nano.config.n_positions >= 256
    report = json.loads((ASSETS / "nano" / "report.json").read_text())
    assert report["parameters"] == nano.num_parameters()


def test_nano_has_learned_every_source() -> None:
    report = json.loads((ASSETS / "nano" / "report.json").read_text())
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
    texts = [verse] if name == "shakespeare" else [row.text for row in movie if row.target == name][:150]
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
