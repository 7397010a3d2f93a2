"""Adapters on disk: they come back to the bit, are replaced whole, and are trusted only after every check."""

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minipeft as mp
from minipeft import files
from tests.models import farthest, random_model, random_tokens
from tests.tuning import TINY_METHODS, train_steps

ALL = list(TINY_METHODS)
COMPUTED_ANEW = ("P-tuning by LSTM", "LoRA on q and v")
"""What their file holds is the result of sums that training does in another order."""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    mp.attach(random_model(), mp.Prefix(4, None)).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(adapter: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
    if tensors is not None:
        save_file(tensors, adapter / "adapter_model.safetensors")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def whole(adapter: Path) -> torch.Tensor:
    return load_file(adapter / "adapter_model.safetensors")["prompt_embeddings"]


def refused(adapter: Path, *sentences: str, **shape: Any) -> None:
    with pytest.raises(mp.CheckpointError) as error:
        mp.load(adapter, random_model(**shape))
    for sentence in sentences:
        assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ALL)
def test_what_is_saved_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind], seed=1)
    train_steps(tuned)
    tuned.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    tokens = random_tokens(2, 7)
    loaded, expected = mp.load(tmp_path, random_model())(tokens), tuned(tokens)
    if kind in COMPUTED_ANEW:
        assert farthest(loaded, expected) < 1e-5
    else:
        assert torch.equal(loaded, expected)


def test_a_hard_prompt_is_saved_too(tmp_path: Path) -> None:
    model = random_model(vocab_size=8257)
    mp.attach(model, mp.HardPrompt("Say {text} so")).save(tmp_path)
    assert mp.load(tmp_path, model).method == mp.HardPrompt("Say {text} so")


def test_an_adapter_for_another_model_is_refused(adapter: Path) -> None:
    refused(
        adapter, "adapter_config.json was made for another model: its token_dim is 32, this model's is 16", n_embd=16
    )
    refused(adapter, "its num_layers is 2, this model's is 3", n_layer=3)
    rewrite(adapter, token_dim=None, num_layers=None)  # and where the file says nothing, by its tensors
    refused(
        adapter, "adapter_model.safetensors: key prompt_embeddings has shape (4, 128), needed is (4, 192)", n_layer=3
    )


def test_tensors_that_are_no_prefix_are_refused(adapter: Path) -> None:
    good = whole(adapter)
    rewrite(adapter, {"prompt_embedding": good})
    refused(adapter, "lacks key prompt_embeddings and has unexpected key prompt_embedding")
    rewrite(adapter, {"prompt_embeddings": good, "more": torch.zeros(1)})
    refused(adapter, "has unexpected key more")
    rewrite(adapter, {"prompt_embeddings": good.to(torch.int8)})
    refused(adapter, "prompt_embeddings is int8")
    for bad in (float("nan"), float("inf")):
        spoiled = good.clone()
        spoiled[1, 2] = bad
        rewrite(adapter, {"prompt_embeddings": spoiled})
        refused(adapter, "adapter_model.safetensors: key prompt_embeddings holds NaN or infinity")
    rewrite(adapter, {"prompt_embeddings": good}, num_virtual_tokens=5)
    refused(adapter, "has shape (4, 128), needed is (5, 128)")


@pytest.mark.parametrize("length", [0, -1, "4", True, None, 1.5])
def test_a_length_that_is_none_is_refused(adapter: Path, length: Any) -> None:
    rewrite(adapter, num_virtual_tokens=length)
    refused(adapter, "num_virtual_tokens is")


def test_an_adapter_longer_than_the_model_is_refused(adapter: Path) -> None:
    rewrite(adapter, num_virtual_tokens=400)
    refused(adapter, "adapter_config.json: length 400 leaves no room for text")


def test_damaged_files_are_refused(adapter: Path, tmp_path: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    data = weights.read_bytes()
    for junk in (b"", b"junk", data[: len(data) // 2], data[:-1], pickle.dumps({"prompt_embeddings": 1})):
        weights.write_bytes(junk)
        refused(adapter, "adapter_model.safetensors is no whole safetensors file")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*adapter_model\.safetensors"):
        mp.load(adapter, random_model())
    (adapter / "adapter_config.json").write_text("{")
    refused(adapter, "adapter_config.json is not JSON")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*adapter_config\.json"):
        mp.load(tmp_path / "nowhere", random_model())


def test_an_unknown_kind_of_adapter_is_refused(adapter: Path) -> None:
    rewrite(adapter, peft_type="OFT")
    refused(adapter, "peft_type is 'OFT'; minipeft reads", "PREFIX_TUNING", "PROMPT_TUNING")


def test_a_full_disk_leaves_the_old_adapter(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device; nothing was changed"):
            mp.attach(random_model(), mp.Prefix(7, None)).save(adapter)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_an_adapter_that_is_refused_leaves_the_model_as_it_was(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"junk")
    model = random_model()
    with pytest.raises(mp.CheckpointError):
        mp.load(adapter, model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", [[], {}, ["PREFIX_TUNING"]])
def test_a_peft_type_that_is_no_text_is_refused(kind: Any, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": kind}))
    with pytest.raises(mp.CheckpointError, match=r"adapter_config\.json: peft_type is"):
        mp.load(adapter, random_model())


@pytest.mark.parametrize("failing", [1, 2])
def test_an_adapter_is_never_half_replaced(failing: int, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    replace, calls = os.replace, []

    def refuse(old: str, new: Path) -> None:
        calls.append(new)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(old, new)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="nothing was changed"):
        mp.attach(random_model(), mp.Prefix(7, None)).save(adapter)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
