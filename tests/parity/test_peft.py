"""Soft prompts and prefixes against Hugging Face `peft`: logits, gradients, training and files, both ways."""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import minipeft as mp
from minipeft.methods.prefix import LearnedPrefix, PrefixMLP, PrefixTable
from minipeft.methods.soft_prompt import LearnedPrompt
from tests.models import farthest, ragged, random_model, random_tokens, shake, twins
from tests.parity.test_transformers import positions_of
from tests.parity.training import apart_after_training, shifted_loss
from tests.tuning import labelled_batch

pytestmark = [  # what peft says to transformers about itself, and that it counts a soft prompt's positions on its own
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]

P = 4
EXACT = 1e-5  # fp32 sums in another order, on logits of about 1
SHAPES = [
    {},
    {"n_layer": 1, "n_head": 4, "n_embd": 16, "vocab_size": 100},
    {"n_layer": 3, "n_head": 3, "n_embd": 24, "n_positions": 20},
    {"n_layer": 4, "n_head": 1, "n_embd": 8, "layer_norm_epsilon": 1e-3},
]
KINDS = ["prompt", "prefix", "prefix by MLP"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def peft_config(kind: str) -> peft.PeftConfig:
    if kind == "prompt":
        return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    projection = kind == "prefix by MLP"
    return peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=projection, encoder_hidden_size=6
    )


def our_method(kind: str) -> Any:
    if kind == "prompt":
        return mp.SoftPrompt(P, "random")
    return mp.Prefix(P, reparam=6 if kind == "prefix by MLP" else None)


def their_logits(model: Any, kind: str, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens) if mask is None else mask).logits
    return logits[:, P:] if kind == "prompt" else logits  # for a prompt peft returns P more than the labels


def pair(tmp_path: Path, kind: str, shape: dict[str, Any]) -> tuple[mp.Tuned, Any]:
    """One base, one adapter, ours with the trainable numbers of theirs."""
    ours, theirs = twins(tmp_path / "base", **shape)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(theirs, peft_config(kind)).eval()
    tuned = mp.attach(ours, our_method(kind))
    with torch.no_grad():
        for mine, other in same_parameters(tuned, wrapped):
            mine.copy_(other)
    return tuned, wrapped


def same_parameters(tuned: mp.Tuned, wrapped: Any) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Every trainable tensor of ours beside its twin in peft."""
    encoder = wrapped.prompt_encoder["default"]
    attachment = tuned.attachment
    if isinstance(attachment, LearnedPrompt):
        return [(attachment.prompt_embeddings, encoder.embedding.weight)]
    assert isinstance(attachment, LearnedPrefix)
    if isinstance(attachment.encoder, PrefixTable):
        return [(attachment.encoder.prompt_embeddings, encoder.embedding.weight)]
    assert isinstance(attachment.encoder, PrefixMLP)
    mine = dict(attachment.encoder.named_parameters())
    theirs = dict(encoder.named_parameters())
    assert mine.keys() == theirs.keys()
    return [(mine[name], theirs[name]) for name in mine]


@pytest.mark.parametrize("shape", SHAPES)
@each_kind
def test_what_peft_saved_gives_its_logits_here(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = mp.load(tmp_path / "adapter", tuned.base)
    tokens = random_tokens(3, 9)
    assert farthest(loaded(tokens), their_logits(wrapped, kind, tokens)) < EXACT


@pytest.mark.parametrize("shape", SHAPES)
@each_kind
def test_what_we_saved_gives_our_logits_in_peft(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    tuned.save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(wrapped.get_base_model(), tmp_path / "adapter")
    tokens = random_tokens(3, 9)
    assert farthest(tuned(tokens), their_logits(theirs.eval(), kind, tokens)) < EXACT


@each_kind
def test_padding_on_the_right_means_the_same_in_both(kind: str, tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, {})
    batch = ragged([9, 4, 6], "right")
    ours = batch.unpadded(tuned(batch.tokens, batch.mask))
    theirs = batch.unpadded(their_logits(wrapped, kind, batch.tokens, batch.mask))
    assert max(farthest(mine, other) for mine, other in zip(ours, theirs, strict=True)) < EXACT


@pytest.mark.parametrize("shape", SHAPES)
@each_kind
def test_the_gradients_are_those_of_peft(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    tokens, labels = labelled_batch()
    tuned.loss(tokens, labels).backward()
    wrapped.train(False)
    shifted_loss(their_logits(wrapped, kind, tokens), labels).backward()
    for mine, other in same_parameters(tuned, wrapped):
        assert mine.grad is not None
        assert float(mine.grad.abs().max()) > 0
        assert farthest(mine.grad, other.grad) < EXACT


@each_kind
def test_twenty_steps_of_training_agree(kind: str, tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, {})
    losses, tensors = apart_after_training(
        tuned.loss,
        lambda tokens, labels: shifted_loss(their_logits(wrapped, kind, tokens), labels),
        same_parameters(tuned, wrapped),
    )
    assert losses < 1e-4  # rounding, grown over the steps by AdamW
    assert tensors < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_a_compiled_soft_prompt_is_a_prefix_for_peft(shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, "prompt", shape)
    tuned.compile().save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(wrapped.get_base_model(), tmp_path / "adapter").eval()
    assert theirs.peft_config["default"].peft_type == "PREFIX_TUNING"
    tokens = random_tokens(3, 9)
    assert farthest(tuned(tokens), their_logits(theirs, "prefix", tokens)) < EXACT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS[1:])  # peft counts the padding left of a soft prompt's text
@torch.no_grad()
def test_padding_on_the_left_of_a_prefix_means_the_same_in_both(
    kind: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    batch = ragged([9, 4, 6], "left")
    positions = positions_of(batch.mask)  # peft adds P
    expected = wrapped(input_ids=batch.tokens, attention_mask=batch.mask, position_ids=positions).logits
    found = tuned(batch.tokens, batch.mask)
    for mine, other in zip(batch.unpadded(found), batch.unpadded(expected), strict=True):
        assert farthest(mine, other) < EXACT


@each_kind
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_of_a_padded_batch_are_those_of_peft(kind: str, side: str, tmp_path: Path) -> None:
    if kind == "prompt" and side == "left":
        pytest.skip("peft counts the padding on the left as positions: tests/parity/test_where_peft_falls_short.py")
    tuned, wrapped = pair(tmp_path, kind, {})
    batch = ragged([9, 4, 6], side)
    first = batch.mask.cumsum(1) <= 1  # peft scores a first token after a soft prompt, but not after a prefix
    labels = batch.tokens.masked_fill((batch.mask == 0) | first, -100)
    positions = {} if kind == "prompt" else {"position_ids": positions_of(batch.mask)}
    expected = wrapped(input_ids=batch.tokens, attention_mask=batch.mask, labels=labels, **positions).loss
    found = tuned.loss(batch.tokens, labels, batch.mask)
    assert farthest(found, expected) < EXACT
    found.backward()
    expected.backward()
    for mine, other in same_parameters(tuned, wrapped):
        assert float(mine.grad.abs().max()) > 10 * EXACT
        assert farthest(mine.grad, other.grad) < EXACT


@each_kind
def test_the_files_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, {})
    with torch.no_grad():
        shake(tuned.attachment, seed=5)
        for mine, other in same_parameters(tuned, wrapped):
            other.copy_(mine)
    wrapped.save_pretrained(tmp_path / "peft")
    tuned.save(tmp_path / "ours")
    found, expected = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "peft"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert farthest(tensor, expected[name]) < 1e-6  # numbers of order 1; with an MLP, a sum of 6 terms

    found, expected = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "peft"))
    skipped = {"base_model_name_or_path"}  # peft writes the folder that the base was read from
    if kind == "prefix":
        skipped.add("encoder_hidden_size")  # the pair gives peft one that nothing uses
    assert {key: expected[key] for key in found.keys() - skipped} == {
        key: value for key, value in found.items() if key not in skipped
    }


@each_kind
def test_peft_loads_what_we_save_without_a_word(kind: str, tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, {})
    tuned.save(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers, not about the files
        loaded = peft.PeftModel.from_pretrained(wrapped.get_base_model(), tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(loaded.prompt_encoder["default"].embedding.weight, stored)


@each_kind
def test_greedy_text_is_that_of_peft(kind: str, tmp_path: Path) -> None:
    random_model(seed=1).save_pretrained(tmp_path)  # its text is more than one token repeated
    from transformers import GPT2LMHeadModel

    tuned = mp.attach(
        mp.GPT2.from_pretrained(tmp_path),
        mp.SoftPrompt(P, "random") if kind == "prompt" else mp.Prefix(P, None if kind == "prefix" else 6),
    )
    shake(tuned.attachment, seed=3, std=0.3)
    tuned.save(tmp_path / "adapter")
    peer = peft.PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(tmp_path), tmp_path / "adapter").eval()
    tokens = random_tokens(3, 6)
    settings = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = peer.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **settings)[:, -14:]
    assert 63 not in expected  # where we would stop
    assert len(set(expected.flatten().tolist())) > 4
    assert torch.equal(tuned.generate(tokens, 14), torch.cat([tokens, expected], dim=1))
