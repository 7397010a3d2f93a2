"""What is in an adapter or a checkpoint, as tables."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from minipeft import GPT2, FullFinetuning, HardPrompt, Prefix, SoftPrompt, Tuned, attach
from minipeft.checkpoint import open_model
from minipeft.downloads import PUBLIC
from minipeft.downloads.public import PublicModel
from minipeft.inspect import adapter_tables, checkpoint_tables, nearest_tokens, which_gpt2
from minipeft.inspect.adapter import NEAREST
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


def cells(table: Table) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in as_text(table).splitlines()
        if line.startswith("│")
    ]


def test_the_parts_of_a_checkpoint_add_up(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    parts = {name: int(number.replace(",", "")) for name, number in cells(checkpoint_tables(open_model(tmp_path))[0])}
    total = parts.pop("all")
    assert sum(parts.values()) == total == model.num_parameters()
    assert parts["position embeddings"] == 32 * 32
    assert parts["MLPs"] == 2 * (8 * 32 * 32 + 5 * 32)
    assert parts["layer norms"] == 5 * 2 * 32


@pytest.mark.parametrize("every", [False, True])
def test_the_tensors_of_a_checkpoint_are_those_of_its_file(every: bool, tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    rows = cells(checkpoint_tables(open_model(tmp_path), every)[1])
    assert sum(int(row[1].removesuffix("×")) for row in rows) == len(tensors)
    assert sum(int(row[4].replace(",", "")) for row in rows) == sum(t.numel() * 4 for t in tensors.values())
    if every:
        assert {row[0]: row[2] for row in rows} == {
            name.removeprefix("transformer."): " × ".join(map(str, tensor.shape)) for name, tensor in tensors.items()
        }
    else:
        assert ["h.*.mlp.c_fc.weight", "2 ×", "32 × 128", "float32", "32,768"] in [row[:5] for row in rows]


def test_what_a_file_has_besides_weights_is_said(tmp_path: Path) -> None:
    """Causal masks, as the public files carry them, and a copy of the tied head."""
    random_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 32, 32) for layer in range(2)}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    parts, listed = checkpoint_tables(open_model(tmp_path))
    uses = {row[0]: row[5] for row in cells(listed)}
    assert uses.pop("h.*.attn.bias") == "causal mask, left out"
    assert uses.pop("lm_head.weight") == "copy of wte, left out"
    assert set(uses.values()) == {"weight"}
    assert cells(parts)[-1][1] == f"{random_model().num_parameters():,}"


def test_zeros_that_stand_for_missing_biases_are_not_in_the_file(tmp_path: Path) -> None:
    model = random_model()
    state = {f"transformer.{name}": tensor for name, tensor in model.state_dict().items() if "bias" not in name}
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 64, "bias": False}
    torch.save({"model": state, "model_args": shape}, tmp_path / "ckpt.pt")
    parts, listed = checkpoint_tables(open_model(tmp_path / "ckpt.pt"))
    assert listed.title is not None
    assert str(listed.title).startswith(f"{len(state)} tensors")
    assert cells(parts)[-1][1] == f"{sum(tensor.numel() for tensor in state.values()):,}"
    with pytest.raises(FileNotFoundError, match=r"name the file itself: .*ckpt\.pt"):
        open_model(tmp_path)


def test_a_model_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model().save_pretrained(tmp_path)
    lines = which_gpt2(open_model(tmp_path))
    assert lines[0] == "GPT-2, 2 layers, 2 heads, 32 wide, 32 positions: no known model's shape"
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert lines[2].startswith(f"{digest}  model.safetensors  ")
    tiny = PublicModel("somebody/tiny", random_model().config)
    monkeypatch.setitem(PUBLIC, "tiny", tiny)
    assert which_gpt2(open_model(tmp_path))[0].endswith(": the shape of tiny")
    monkeypatch.setitem(PUBLIC, "tiny", replace(tiny, sha256=digest))
    assert which_gpt2(open_model(tmp_path))[0].endswith(": tiny, the published file")
    assert which_gpt2(open_model("nano"))[0].endswith(": nano, the published file")


def test_a_file_on_its_own_is_recognised_by_its_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"is none of gpt2, .*, and there is no config\.json beside it"):
        open_model(tmp_path / "model.safetensors")
    monkeypatch.setitem(PUBLIC, "tiny", PublicModel("somebody/tiny", model.config))
    alone = GPT2.from_pretrained(tmp_path / "model.safetensors")
    assert all(torch.equal(alone.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert which_gpt2(open_model(tmp_path / "model.safetensors"))[0].endswith(": the shape of tiny")
