"""What is in an adapter or a checkpoint, as tables."""

import pytest
import torch
from rich.console import Console
from rich.table import Table

from minipeft import GPT2, FullFinetuning, HardPrompt, Prefix, SoftPrompt, Tuned, attach
from minipeft.inspect import NEAREST, adapter_tables, checkpoint_table, nearest_tokens
from minipeft.methods import Method
from tests.models import random_model

ROUNDING = 1e-5
"""fp32, a sum of 32 terms that is 1."""


@torch.no_grad()
def prompt_of(ids: list[int], model: GPT2, scale: float = 1.0) -> Tuned:
    """A soft prompt that holds these tokens' embeddings."""
    tuned = attach(model, SoftPrompt(len(ids), init="random"))
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": scale * model.wte.weight[ids]})
    return tuned


def as_text(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize("scale", [1.0, 0.01, 30.0])
def test_a_prompt_of_tokens_is_nearest_to_these_tokens(scale: float) -> None:
    model = random_model(vocab_size=512)
    ids = [261, 7, 300, 511]
    found = nearest_tokens(prompt_of(ids, model, scale))
    assert [row[0][0] for row in found] == [model.tokenizer.decode([i]) for i in ids]
    assert [row[0][1] for row in found] == pytest.approx([1.0] * 4, abs=ROUNDING)


def test_the_nearest_tokens_are_those_of_the_highest_cosine() -> None:
    model = random_model(vocab_size=512)
    tuned = attach(model, SoftPrompt(3, init="random"))
    vectors, tokens = tuned.attachment.prompt_embeddings.detach().double(), model.wte.weight.detach().double()
    for vector, row in zip(vectors, nearest_tokens(tuned, count=4), strict=True):
        cosines = [float(vector @ token / vector.norm() / token.norm()) for token in tokens]
        best = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:4]
        assert [text for text, _ in row] == [model.tokenizer.decode([i]) for i in best]
        assert [cosine for _, cosine in row] == pytest.approx([cosines[i] for i in best], abs=ROUNDING)


def test_the_nearest_table_shows_a_row_for_every_vector() -> None:
    model = random_model(vocab_size=512)
    summary, nearest = adapter_tables(prompt_of([261, 7], model))
    assert summary.row_count == 1
    assert "soft_prompt (PROMPT_TUNING), 64 numbers" in as_text(summary)
    assert "prompt_embeddings" in as_text(summary)
    assert "(2, 32)" in as_text(summary)
    assert nearest.row_count == 2
    for number, token in enumerate((261, 7), start=1):
        text = model.tokenizer.decode([token])
        length = float(model.wte.weight[token].norm())
        assert any(line.split()[1:3] == [str(number), "│"] for line in as_text(nearest).splitlines())
        assert f"{length:.2f} │ {text!r} 1.00" in as_text(nearest)
    assert as_text(nearest).count("'") >= 2 * 2 * NEAREST - 2


def test_tokens_with_square_brackets_are_shown_as_they_are() -> None:
    model = random_model(vocab_size=50257, n_embd=8)
    (opening,), (closing,) = model.tokenizer.encode("[/"), model.tokenizer.encode("]")
    with torch.no_grad():
        model.wte.weight[closing] = model.wte.weight[opening] + 0.001
    shown = as_text(adapter_tables(prompt_of([opening], model))[1])
    assert "'[/' 1.00  ']' 1.00" in shown


@pytest.mark.parametrize(
    ("method", "title", "names"),
    [
        (Prefix(3, reparam=None), "prefix (PREFIX_TUNING), 384 numbers", {"prompt_embeddings": "(3, 128)"}),
        (Prefix(3, reparam=8), "prefix (PREFIX_TUNING), 384 numbers", {"prompt_embeddings": "(3, 128)"}),
        (HardPrompt("{text}"), "hard_prompt (HARD_PROMPT), 0 numbers", {}),
        (
            FullFinetuning(top_layers=1),
            "full (FULL), 12,768 numbers",
            {"ln_f.weight": "(32,)", "h.1.attn.c_attn.weight": "(96, 32)"},
        ),
    ],
)
def test_the_table_of_an_adapter_names_its_tensors(method: Method, title: str, names: dict[str, str]) -> None:
    (table,) = adapter_tables(attach(random_model(), method))
    shown = as_text(table)
    assert title in shown
    for name, shape in names.items():
        (line,) = (line for line in shown.splitlines() if f" {name} " in line)
        assert shape in line


def test_the_table_of_an_adapter_shows_mean_and_standard_deviation() -> None:
    tuned = attach(random_model(), Prefix(2, reparam=None))
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": torch.tensor([1.0, 4.0])[:, None].expand(2, 128)})
    (table,) = adapter_tables(tuned)
    assert "2.5000 │             1.5029" in as_text(table)  # 1.5 · √(256 / 255)


def test_the_parts_of_a_checkpoint_add_up() -> None:
    model = random_model()
    rows = [line.split("│")[1:3] for line in as_text(checkpoint_table(model)).splitlines() if line.startswith("│")]
    parts = {name.strip(): int(number.replace(",", "")) for name, number in rows}
    total = parts.pop("all")
    assert sum(parts.values()) == total == model.num_parameters()
    assert parts["position embeddings"] == 32 * 32
    assert parts["MLPs"] == 2 * (8 * 32 * 32 + 5 * 32)
    assert parts["layer norms"] == 5 * 2 * 32
