"""The same numbers as `transformers`, from the same files."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minipeft.attention import ATTENTION, FixedMemory
from minipeft.gpt2 import GPT2, NOT_SCORED
from tests.models import farthest, ragged, random_memory, random_model, random_tokens, shake, twins

LOGITS = 1e-5
"""Logits of order 3 in fp32, which keeps 7 digits; up to four layers lose about one of them."""
GRADIENTS = 1e-4
"""Gradients of order 0.1 to 1, each a sum over every token of the batch."""
GREEDY = 20

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "one head": {"n_head": 1, "n_layer": 1},
    "deep": {"n_layer": 4, "n_head": 4},
    "wide": {"n_embd": 96, "n_head": 3},
    "many positions": {"n_positions": 200},
    "many words": {"vocab_size": 1031, "n_embd": 40, "n_head": 5},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "narrow heads": {"n_embd": 24, "n_head": 12, "n_layer": 3, "n_positions": 40, "layer_norm_epsilon": 1e-3},
}
each_attention = pytest.mark.parametrize("attention", ATTENTION)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@torch.no_grad()
def greedy(model: GPT2, tokens: Tensor, steps: int) -> list[list[int]]:
    """The likeliest continuation, one token at a time behind a cache."""
    cache = model.new_cache(len(tokens), tokens.shape[1] + steps)
    found, read = tokens, tokens
    for _ in range(steps):
        read = model(read, memory=cache)[:, -1:].argmax(dim=-1)
        found = torch.cat([found, read], dim=1)
    return found.tolist()


def positions_of(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


@each_attention
@each_shape
@torch.no_grad()
def test_logits_are_those_of_transformers(shape: dict[str, Any], attention: str, tmp_path: Path) -> None:
    ours, theirs = twins(tmp_path, attention=attention, **shape)
    tokens = random_tokens(2, ours.config.n_positions)
    expected = theirs(tokens).logits
    assert expected.std() > 0.3  # the logits are worth comparing
    assert farthest(ours(tokens), expected) < LOGITS


@each_attention
@each_shape
def test_greedy_ids_are_those_of_transformers(shape: dict[str, Any], attention: str, tmp_path: Path) -> None:
    ours, theirs = twins(tmp_path, attention=attention, **shape)
    tokens = random_tokens(2, 6)
    expected = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=GREEDY, do_sample=False
    ).tolist()
    assert [len(row) for row in expected] == [6 + GREEDY] * 2
    assert greedy(ours, tokens, GREEDY) == expected


@each_attention
@each_shape
def test_gradients_are_those_of_transformers(shape: dict[str, Any], attention: str, tmp_path: Path) -> None:
    from transformers.pytorch_utils import Conv1D

    ours, theirs = twins(tmp_path, attention=attention, **shape)
    tokens = random_tokens(3, 12)
    labels = tokens.clone()
    labels[0, :7] = labels[2, 4:] = NOT_SCORED
    loss, expected = ours.loss(tokens, labels), theirs(tokens, labels=labels).loss
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=LOGITS)
    loss.backward()
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.transformer.named_parameters()}
    for name, module in theirs.transformer.named_modules():
        if isinstance(module, Conv1D):
            gradients[f"{name}.weight"] = module.weight.grad.T
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        gradient = gradients[name]
        assert gradient.abs().max() > 10 * GRADIENTS, name
        assert farthest(parameter.grad, gradient) < GRADIENTS, name


@each_attention
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_gives_what_transformers_gives_with_explicit_positions(
    side: str, attention: str, tmp_path: Path
) -> None:
    ours, theirs = twins(tmp_path, attention=attention)
    batch = ragged([11, 5, 1, 8], side)
    expected = theirs(batch.tokens, attention_mask=batch.mask, position_ids=positions_of(batch.mask)).logits
    found = ours(batch.tokens, batch.mask)
    for row, peer in zip(batch.unpadded(found), batch.unpadded(expected), strict=True):
        assert farthest(row, peer) < LOGITS


@each_attention
@torch.no_grad()
def test_a_memory_is_what_transformers_calls_past_key_values(attention: str, tmp_path: Path) -> None:
    from transformers import DynamicCache

    P = 3
    ours, theirs = twins(tmp_path, attention=attention)
    memory = random_memory(ours, P)
    batch = ragged([9, 4], "left")
    past = DynamicCache([(k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1)) for k, v in pairs(memory)])
    mask = torch.cat([torch.ones(2, P, dtype=torch.long), batch.mask], dim=1)
    expected = theirs(
        batch.tokens, attention_mask=mask, position_ids=positions_of(mask)[:, P:], past_key_values=past
    ).logits
    found = ours(batch.tokens, batch.mask, memory=memory)
    for row, peer in zip(batch.unpadded(found), batch.unpadded(expected), strict=True):
        assert farthest(row, peer) < LOGITS


def pairs(memory: FixedMemory) -> list[tuple[Tensor, Tensor]]:
    """(key, value) of each layer."""
    return list(zip(memory.keys, memory.values, strict=True))


@each_attention
@torch.no_grad()
def test_a_prompt_is_what_transformers_calls_inputs_embeds(attention: str, tmp_path: Path) -> None:
    P = 3
    ours, theirs = twins(tmp_path, attention=attention)
    prompt = torch.randn(1, P, ours.config.n_embd)
    batch = ragged([9, 4], "left")
    embedded = torch.cat([prompt.expand(2, -1, -1), theirs.transformer.wte(batch.tokens)], dim=1)
    mask = torch.cat([torch.ones(2, P, dtype=torch.long), batch.mask], dim=1)
    expected = theirs(inputs_embeds=embedded, attention_mask=mask, position_ids=positions_of(mask)).logits[:, P:]
    found = ours(batch.tokens, batch.mask, prompt=prompt)
    for row, peer in zip(batch.unpadded(found), batch.unpadded(expected), strict=True):
        assert farthest(row, peer) < LOGITS


@each_shape
@torch.no_grad()
def test_transformers_loads_what_we_save(shape: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    ours = random_model(**shape)
    ours.save_pretrained(tmp_path)
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.num_parameters() == ours.num_parameters()
    tokens = random_tokens(2, 12)
    assert farthest(ours(tokens), theirs.eval()(tokens).logits) < LOGITS


@torch.no_grad()
def test_a_model_of_the_size_of_gpt2_agrees_with_transformers() -> None:
    import transformers

    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    shake(theirs, seed=0, std=0.02)
    with tempfile.TemporaryDirectory() as folder:  # half a gigabyte, which pytest's own folder would keep
        theirs.save_pretrained(folder)
        ours = GPT2.from_pretrained(folder)
    assert ours.num_parameters() == 124_439_808
    tokens = torch.randint(50257, (1, 32))
    # Logits of order 1; the widest sums have 3,072 terms and there are twelve layers of them.
    assert farthest(ours(tokens), theirs(tokens).logits) < 1e-4
    expected = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert greedy(ours, tokens, 5) == expected.tolist()
