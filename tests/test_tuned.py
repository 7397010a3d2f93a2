"""A model with a method attached: the base unharmed, padding without effect, files that are trusted only when whole."""

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
from tests.models import farthest, ragged, random_model, random_tokens
from tests.tuning import PROMPTS_AND_PREFIXES, TINY_METHODS, labelled_batch, train_steps

ALL = list(TINY_METHODS)


@pytest.mark.parametrize("kind", ALL)
def test_the_base_is_the_same_to_the_bit_after_training(kind: str) -> None:
    model = random_model()
    model.h[0].requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    tuned = mp.attach(model, TINY_METHODS[kind]).train()
    assert not any(p.requires_grad for p in model.parameters())
    losses = train_steps(tuned, 4)
    assert losses[0] != losses[1]
    assert all(p.grad is None for p in model.parameters())
    assert tuned.detach() is model
    assert not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]), name
        assert parameter.requires_grad == before[name][1], name


@pytest.mark.parametrize("kind", ALL)
def test_a_batch_can_be_learned_by_heart(kind: str) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    optimizer = torch.optim.AdamW(tuned.trainable_parameters().values(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = tuned.loss(*labelled_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ALL)
def test_padding_changes_nothing(kind: str, side: str) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    batch = ragged([9, 3, 6], side)
    logits = tuned(batch.tokens, batch.mask)
    assert logits.shape == (3, 9, 64)  # none for the prompt's positions
    for row, padded in zip(batch.rows, batch.unpadded(logits), strict=True):
        assert farthest(tuned(row[None])[0], padded) < 1e-4  # DESIGN's bound in fp32; sums in another order give 1e-6


@pytest.mark.parametrize("kind", [None, *ALL])
def test_a_row_writes_the_same_alone_and_in_a_batch(kind: str | None) -> None:
    model = random_model()
    tuned = mp.attach(model, mp.HardPrompt() if kind is None else TINY_METHODS[kind])
    prompts = [row.tolist() for row in ragged([9, 3, 6], "left").rows]
    run = tuned.generate if kind else lambda rows, n: mp.generate(model, rows, mp.Sampling(n))
    together = run(prompts, 8)
    assert together == [run(prompt, 8) for prompt in prompts]
    assert [row[: len(prompt)] for row, prompt in zip(together, prompts, strict=True)] == prompts


@pytest.mark.parametrize("kind", ALL)
def test_cached_generation_is_reading_everything_again(kind: str) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    row = random_tokens(5).tolist()
    written = tuned.generate(list(row), 10)
    for _ in range(len(written) - len(row)):
        row.append(int(tuned(torch.tensor([row]))[0, -1].argmax()))
    assert written == row
    assert len(row) > 5


@pytest.mark.parametrize("kind", PROMPTS_AND_PREFIXES)
def test_compiling_changes_nothing(kind: str) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    train_steps(tuned)
    compiled = tuned.compile()
    assert compiled.method.peft_type == "PREFIX_TUNING"
    assert compiled.num_kept() == 2 * 2 * 32 * 4
    batch = ragged([9, 3, 6], "left")
    assert farthest(compiled(batch.tokens, batch.mask), tuned(batch.tokens, batch.mask)) < 1e-5  # fp32, other order


def test_what_uses_neither_door_cannot_be_compiled() -> None:
    with pytest.raises(ValueError, match="cannot be a prefix"):
        mp.attach(random_model(), mp.FullFinetuning()).compile()


@pytest.mark.parametrize("kind", PROMPTS_AND_PREFIXES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trained_numbers_stay_fp32_over_a_half_precision_base(kind: str, dtype: torch.dtype) -> None:
    tuned = mp.attach(random_model().to(dtype), TINY_METHODS[kind])
    assert all(p.dtype == torch.float32 for p in tuned.trainable_parameters().values())
    losses = train_steps(tuned)
    assert all(0 < loss < 100 for loss in losses)
    assert tuned.generate([1, 2, 3], 4)[:3] == [1, 2, 3]


@pytest.mark.parametrize("kind", ALL)
def test_what_is_saved_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind], seed=1)
    train_steps(tuned)
    tuned.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    tokens = random_tokens(2, 7)
    assert torch.equal(mp.load(tmp_path, random_model())(tokens), tuned(tokens))


def test_a_hard_prompt_is_saved_too(tmp_path: Path) -> None:
    model = random_model(vocab_size=8257)
    mp.attach(model, mp.HardPrompt("Say {text} so")).save(tmp_path)
    assert mp.load(tmp_path, model).method == mp.HardPrompt("Say {text} so")


def test_generate_gives_back_what_it_got() -> None:
    model = random_model(vocab_size=8257)
    tuned = mp.attach(model, mp.Prefix(3, None))
    ids = model.tokenizer.encode("Once upon")
    texts = tuned.generate(["Once upon", "A"], 4)
    assert isinstance(texts, list)
    assert texts[0].startswith("Once upon")
    assert tuned.generate("Once upon", 4) == texts[0]
    assert tuned.generate(ids, 4)[: len(ids)] == ids
    assert tuned.generate([ids, ids], 4)[1] == tuned.generate(ids, 4)
    assert tuned.generate(torch.tensor([ids]), 4).tolist()[0] == tuned.generate(ids, 4)


def test_too_much_text_is_refused_before_any_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = mp.attach(random_model(), mp.SoftPrompt(10, "random"))
    monkeypatch.setattr(tuned.base.h[0], "forward", None)
    with pytest.raises(ValueError, match="10 of the prompt \\+ 23 tokens = 33 positions, but this model has 32"):
        tuned(random_tokens(1, 23))
    with pytest.raises(ValueError, match="10 positions of the adapter \\+ 5 of the text \\+ 64 new tokens"):
        tuned.generate(random_tokens(5).tolist())


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
