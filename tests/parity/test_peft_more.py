"""More parity with peft: prefixes behind left padding, peft's own loss, its own generate, files to the letter."""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import minipeft as mp
from tests.models import farthest, ragged, random_model, random_tokens, shake
from tests.parity.test_peft import EXACT, KINDS, SHAPES, P, pair, same_parameters
from tests.parity.test_transformers import positions_of

pytestmark = [  # what peft says to transformers about itself, and that it counts a soft prompt's positions on its own
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS[1:])  # peft counts the padding left of a soft prompt's text: FACTS.md §4.1
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
        pytest.skip("peft counts the padding on the left as positions: FACTS.md §4.1")
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
