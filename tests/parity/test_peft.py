"""Soft prompts and prefixes against Hugging Face `peft`: logits, gradients, training and files, both ways."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minipeft as mp
from minipeft.methods.prefix import LearnedPrefix, PrefixMLP, PrefixTable
from minipeft.methods.soft_prompt import LearnedPrompt
from tests.models import farthest, ragged, random_tokens, twins
from tests.tuning import labelled_batch

P = 4
EXACT = 1e-5  # fp32 sums in another order, on logits of about 1
SHAPES = [
    {},
    {"n_layer": 1, "n_head": 4, "n_embd": 16, "vocab_size": 100},
    {"n_layer": 3, "n_head": 3, "n_embd": 24, "n_positions": 20},
    {"n_layer": 4, "n_head": 1, "n_embd": 8, "layer_norm_epsilon": 1e-3},
]
KINDS = ["prompt", "prefix", "prefix by MLP"]


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
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_saved_gives_its_logits_here(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = mp.load(tmp_path / "adapter", tuned.base)
    tokens = random_tokens(3, 9)
    assert farthest(loaded(tokens), their_logits(wrapped, kind, tokens)) < EXACT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_we_saved_gives_our_logits_in_peft(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    tuned.save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(wrapped.get_base_model(), tmp_path / "adapter")
    tokens = random_tokens(3, 9)
    assert farthest(tuned(tokens), their_logits(theirs.eval(), kind, tokens)) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_right_means_the_same_in_both(kind: str, tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, {})
    batch = ragged([9, 4, 6], "right")
    ours = batch.unpadded(tuned(batch.tokens, batch.mask))
    theirs = batch.unpadded(their_logits(wrapped, kind, batch.tokens, batch.mask))
    assert max(farthest(mine, other) for mine, other in zip(ours, theirs, strict=True)) < EXACT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_are_those_of_peft(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    tokens, labels = labelled_batch()
    tuned.loss(tokens, labels).backward()
    wrapped.train(False)
    logits = their_logits(wrapped, kind, tokens)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).backward()
    for mine, other in same_parameters(tuned, wrapped):
        assert mine.grad is not None
        assert float(mine.grad.abs().max()) > 0
        assert farthest(mine.grad, other.grad) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_of_training_agree(kind: str, tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, {})
    pairs = same_parameters(tuned, wrapped)
    optimizers = [torch.optim.AdamW([pair[side] for pair in pairs], lr=1e-2) for side in (0, 1)]
    for step in range(20):
        tokens, labels = labelled_batch(step)
        ours = tuned.loss(tokens, labels)
        logits = their_logits(wrapped, kind, tokens)
        theirs = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        assert abs(float(ours.detach()) - float(theirs.detach())) < 1e-4  # rounding, grown over the steps by AdamW
        for loss, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert max(farthest(mine, other) for mine, other in pairs) < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_a_compiled_soft_prompt_is_a_prefix_for_peft(shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, "prompt", shape)
    tuned.compile().save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(wrapped.get_base_model(), tmp_path / "adapter").eval()
    assert theirs.peft_config["default"].peft_type == "PREFIX_TUNING"
    tokens = random_tokens(3, 9)
    assert farthest(tuned(tokens), their_logits(theirs, "prefix", tokens)) < EXACT
