"""What is in an adapter or a checkpoint, as tables."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from minipeft import GPT2
from minipeft.checkpoint import open_model
from minipeft.downloads import PUBLIC
from minipeft.downloads.public import PublicModel
from minipeft.inspect import checkpoint_tables, which_gpt2
from tests.models import random_model

ROUNDING = 1e-5
"""fp32, a sum of 32 terms that is 1."""


def as_text(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


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
