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


def test_a_prefix_for_another_model_is_refused(adapter: Path) -> None:
    refused(
        adapter, "adapter_config.json was made for another model: its token_dim is 32, this model's is 16", n_embd=16
    )
    refused(adapter, "its num_layers is 2, this model's is 3", n_layer=3)
    rewrite(adapter, token_dim=None, num_layers=None)
    refused(adapter, "adapter_model.safetensors was made for another model: its n_layer is 2", n_layer=3)
    rewrite(adapter, {"prompt_embeddings": whole(adapter)})  # and where nothing is said, by its tensors
    refused(
        adapter, "adapter_model.safetensors: key prompt_embeddings has shape (4, 128), needed is (4, 192)", n_layer=3
    )


@pytest.mark.parametrize("kind", ALL)
def test_any_adapter_for_another_model_is_refused(kind: str, tmp_path: Path) -> None:
    mp.attach(random_model(), TINY_METHODS[kind]).save(tmp_path)
    for shape in ({"n_embd": 16}, {"n_layer": 1}, {"n_layer": 3}, {"n_head": 4}):
        refused(tmp_path, "was made for another model: its ", **shape)
    with pytest.raises(mp.CheckpointError, match="was made for another model of the same shape: its token embeddings"):
        mp.load(tmp_path, random_model(seed=1))


@pytest.mark.parametrize("kind", ALL)
def test_where_a_file_tells_of_no_model_its_tensors_do(kind: str, tmp_path: Path) -> None:
    """As in files of peft: those of another width or depth do not fit."""
    mp.attach(random_model(), TINY_METHODS[kind]).save(tmp_path)
    rewrite(tmp_path, load_file(tmp_path / "adapter_model.safetensors"))
    mp.load(tmp_path, random_model())
    for shape in ({"n_embd": 16}, {"n_layer": 1}, {"n_layer": 3}):
        refused(tmp_path, f"{tmp_path}/adapter_", **shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_model_in_half_precision_or_with_more_words_is_no_other(dtype: torch.dtype, tmp_path: Path) -> None:
    mp.attach(random_model(), mp.LoRA()).save(tmp_path)
    mp.load(tmp_path, random_model().to(dtype))
    grown = random_model(vocab_size=70)
    with torch.no_grad():
        grown.wte.weight[:64] = random_model().wte.weight
    mp.load(tmp_path, grown)


@pytest.mark.parametrize("told", ["", "[]", "{", '{"n_layer": 2}', '{"weights": 3}', '{"weights": ["a"]}', "[" * 10**5])
def test_a_file_that_tells_nonsense_of_its_model_is_refused(told: str, adapter: Path) -> None:
    save_file({"prompt_embeddings": whole(adapter)}, adapter / "adapter_model.safetensors", {"base_model": told})
    refused(adapter, "adapter_model.safetensors: what its metadata say of base_model cannot be read")


@pytest.mark.parametrize("kind", ALL)
def test_damaged_tensors_of_any_adapter_are_refused(kind: str, tmp_path: Path) -> None:
    mp.attach(random_model(), TINY_METHODS[kind]).save(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    good, data = load_file(weights), weights.read_bytes()
    for name, tensor in good.items():
        for spoil in (float("nan"), float("inf"), float("-inf")):
            spoiled = tensor.clone()
            spoiled.view(-1)[-1] = spoil
            rewrite(tmp_path, {**good, name: spoiled})
            refused(tmp_path, f"adapter_model.safetensors: key {name} holds NaN or infinity")
        rewrite(tmp_path, {**good, name: tensor.to(torch.int8)})
        refused(tmp_path, f"adapter_model.safetensors: key {name} is int8; weights are float32")
        rewrite(tmp_path, {**good, name: torch.cat([tensor, tensor])})
        refused(tmp_path, f"adapter_model.safetensors: key {name} has shape ", "needed is")
        rewrite(tmp_path, {other: good[other] for other in good if other != name} | {"none.of.these": tensor})
        refused(tmp_path, f"adapter_model.safetensors lacks key {name} and has unexpected key none.of.these")
    for junk in (b"", data[: len(data) // 2], data[:-1], pickle.dumps(good), b"\xff\xff\xff\x7f" + data[4:]):
        weights.write_bytes(junk)  # the last says that its table of contents has 2 GB
        refused(tmp_path, "adapter_model.safetensors is no whole safetensors file")


def test_a_pickle_of_an_older_peft_is_not_opened(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(adapter, "adapter_model.bin is a pickle, which could run code; let PEFT save it again as safetensors.")


def test_a_text_of_two_gigabytes_is_not_read(adapter: Path) -> None:
    with open(adapter / "adapter_config.json", "r+b") as file:
        file.write(b'{"peft_type": "')
        file.truncate(2 * 10**9)  # a hole, which takes no room on the disk
    refused(adapter, "adapter_config.json has 2,000,000,000 bytes, far more than a settings file needs.")


NONSENSE = (None, [], {}, "", "x", "(", -1, 0, 10**9, 10**30, 1.5, float("nan"), True, [1], ["x"], {"x": "y"}, {"(": 1})


@pytest.mark.parametrize("kind", ALL)
def test_no_setting_can_hold_anything_that_is_not_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    """Each in turn is left out, or holds nonsense: the adapter is then refused, or means what it did before."""
    base, tokens = random_model(), random_tokens(2, 7)
    tuned = mp.attach(base, TINY_METHODS[kind]).eval()
    tuned.save(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    expected, refusals = tuned(tokens), []
    tuned.detach()
    for key in config:
        without = {other: value for other, value in config.items() if other != key}
        for changed in (without, *({**config, key: value} for value in NONSENSE)):
            path.write_text(json.dumps(changed))
            try:
                found = mp.load(tmp_path, base)
            except mp.CheckpointError as error:
                refusals.append(str(error))
            else:
                assert farthest(found(tokens), expected) < 1e-5, (key, changed.get(key))
                found.detach()
    assert all(sentence.startswith(f"{tmp_path}/adapter_") and "\n" not in sentence for sentence in refusals)
    assert len(refusals) > len(NONSENSE)  # at least what makes no peft_type


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
    with pytest.raises(FileNotFoundError, match="nowhere is neither a folder nor an adapter that ships"):
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
