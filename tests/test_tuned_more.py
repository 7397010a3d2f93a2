"""More about a model with a method attached: what loading, compiling and detaching must leave as it was."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minipeft as mp
from minipeft import files
from tests.models import farthest, ragged, random_model, random_tokens, shake
from tests.tuning import PROMPTS_AND_PREFIXES, TINY_METHODS, train_steps

LIVELY = 1
"""The seed of a tiny model whose greedy text is more than one token repeated."""


def lively(kind: str) -> mp.Tuned:
    tuned = mp.attach(random_model(LIVELY), TINY_METHODS[kind])
    shake(tuned.attachment, seed=3, std=0.1)
    return tuned.eval()


# -- bugs, each failing now -----------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    mp.attach(random_model(), mp.Prefix(4, None)).save(tmp_path / "adapter")
    return tmp_path / "adapter"


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


def test_compiling_is_exact_in_training_mode_too() -> None:
    tuned = mp.attach(random_model(dropout=0.3), mp.SoftPrompt(3, "random")).train()
    compiled = tuned.compile()
    tuned.eval()
    tokens = random_tokens(2, 6)
    assert farthest(compiled(tokens), tuned(tokens)) < 1e-5  # fp32, keys computed in another batch


def test_dropout_does_not_disturb_where_a_prefix_starts() -> None:
    model = random_model(dropout=0.3, vocab_size=512)
    method = mp.Prefix(3, None, "vocab")
    still = mp.attach(model, method).attachment.state_dict()
    noisy = mp.attach(model.train(), method).attachment.state_dict()
    assert all(torch.equal(still[name], noisy[name]) for name in still)


def test_the_base_of_a_compiled_adapter_comes_back_trainable() -> None:
    model = random_model()
    mp.attach(model, mp.SoftPrompt(3, "random")).compile().detach()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_still_attached_keeps_the_base_frozen() -> None:
    model, tokens = random_model(), random_tokens(2, 6)
    first, second = (mp.attach(model, mp.SoftPrompt(3, "random")) for _ in range(2))
    first.detach()
    second.loss(tokens, tokens).backward()
    assert all(parameter.grad is None for parameter in model.parameters())


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


# -- coverage, passing now ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROMPTS_AND_PREFIXES)
def test_cached_generation_of_lively_text_is_reading_everything_again(kind: str) -> None:
    tuned = lively(kind)
    row = [5, 1]
    written = tuned.generate(list(row), 20)
    for _ in range(len(written) - 2):
        row.append(int(tuned(torch.tensor([row]))[0, -1].argmax()))
    assert written == row
    assert len(set(row[2:])) > 2


@pytest.mark.parametrize("kind", PROMPTS_AND_PREFIXES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_lively_text_do_not_depend_on_their_neighbours(kind: str, temperature: float) -> None:
    tuned = lively(kind)
    rows = [row.tolist() for row in ragged([9, 3, 6], "left").rows]
    together = tuned.generate(rows, 15, temperature=temperature)
    alone = [tuned.generate([row] * 3, 15, temperature=temperature)[place] for place, row in enumerate(rows)]
    assert together == alone
    assert len({tuple(new[len(row) :]) for row, new in zip(rows, together, strict=True)}) == 3


def test_a_gradient_from_before_is_forgotten() -> None:
    model, tokens = random_model(), random_tokens(2, 6)
    model.loss(tokens, tokens).backward()
    tuned = mp.attach(model, mp.SoftPrompt(3, "random"))
    assert all(parameter.grad is None for parameter in model.parameters())
    train_steps(tuned)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back(training: bool) -> None:
    model = random_model().train(training)
    tuned = mp.attach(model, mp.SoftPrompt(3, "random"))
    tuned.train(not training)
    assert model.training is not training
    assert tuned.detach().training is training


@pytest.mark.parametrize("kind", TINY_METHODS)
def test_steps_smaller_than_bfloat16_can_hold_are_kept(kind: str) -> None:
    tuned = mp.attach(random_model().to(torch.bfloat16), TINY_METHODS[kind])
    before = {name: p.detach().clone() for name, p in tuned.trainable_parameters().items()}
    train_steps(tuned, steps=1, lr=1e-6)
    assert tuned.base.dtype == torch.bfloat16
    for name, parameter in tuned.trainable_parameters().items():
        moved = parameter.detach() != before[name]
        lost_in_half = parameter.detach().bfloat16() == before[name].bfloat16()
        assert (moved & lost_in_half).any(), name


@torch.no_grad()
def test_a_zero_prefix_takes_its_share_of_the_softmax_and_gives_nothing_for_it() -> None:
    """Its keys score 0, so that what the text is given shrinks by λ = P / (P + Σ exp(score)): He et al. 2022."""
    P, tokens = 3, random_tokens(1, 6)
    model = random_model(n_layer=1)
    model.wpe.weight.zero_()  # positions are P further on, which is not the point
    tuned = mp.attach(model, mp.Prefix(P, None))
    tuned.attachment.load_adapter_tensors({"prompt_embeddings": torch.zeros(P, 2 * 32)})
    attention, joined = model.blocks[0].attn, []
    attention.c_proj.register_forward_hook(lambda _, inputs, __: joined.append(inputs[0][0]))  # [T, D]
    assert farthest(tuned(tokens), model(tokens)) > 0.01

    x = model.blocks[0].ln_1(model.wte(tokens[0]))
    q, k, _ = attention.c_attn(x).double().chunk(3, dim=-1)
    Dh = model.config.head_size
    for head in range(model.config.n_head):
        own = slice(head * Dh, (head + 1) * Dh)
        for t in range(6):
            text = sum(math.exp(float(q[t, own] @ k[s, own]) / math.sqrt(Dh)) for s in range(t + 1))
            share = P / (P + text)
            assert farthest(joined[0][t, own], (1 - share) * joined[1][t, own]) < 1e-6  # numbers below 1 in fp32


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "prompt", "prefix"),
    [
        pytest.param(12, 12, 768, 15_360, 92_160, id="small"),
        pytest.param(24, 16, 1024, 20_480, 245_760, id="medium"),
        pytest.param(36, 20, 1280, 25_600, 460_800, id="large"),
        pytest.param(48, 25, 1600, 32_000, 768_000, id="xl"),
    ],
)
def test_the_counts_are_the_published_ones_for_every_size(
    n_layer: int, n_head: int, n_embd: int, prompt: int, prefix: int
) -> None:
    with torch.device("meta"):
        model = mp.GPT2(mp.GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    assert mp.attach(model, mp.SoftPrompt(20, "random")).num_trainable() == prompt
    assert mp.attach(model, mp.Prefix(5, None)).num_trainable() == prefix
    m = 7
    by_mlp = mp.attach(model, mp.Prefix(5, m))
    p, L, D = 5, n_layer, n_embd
    assert by_mlp.num_trainable() == p * D + D * m + m + 2 * L * D * m + 2 * L * D  # FACTS.md §2
    assert by_mlp.num_kept() == prefix


@pytest.mark.parametrize("length", [2, 4, 7])
def test_a_prefix_from_text_is_typing_that_text(length: int) -> None:
    model = random_model(vocab_size=512)
    ids = model.tokenizer.encode("A film")
    typed = torch.tensor([[ids[place % len(ids)] for place in range(length)]])
    tokens = random_tokens(2, 6)
    tuned = mp.attach(model, mp.Prefix(length, None, "text:A film"))
    as_text = model(torch.cat([typed.expand(2, -1), tokens], dim=1))[:, length:]
    assert farthest(tuned(tokens), as_text) < 1e-5  # fp32, keys computed in another batch


@torch.no_grad()
def test_a_prefix_from_the_vocabulary_is_typing_common_tokens() -> None:
    P = 6
    model = random_model(n_embd=16, vocab_size=6000, n_positions=64)
    tuned = mp.attach(model, mp.Prefix(P, None, "vocab"), seed=4)
    keys = tuned.attachment.doors().memory.keys[0, 0].transpose(0, 1).flatten(1)  # [H, P, Dh] -> [P, D]
    block, ids = model.blocks[0], []
    for place in range(P):  # the only token whose key in the first block this is
        every: Tensor = block.attn.c_attn(block.ln_1(model.wte.weight + model.wpe.weight[place])).chunk(3, dim=-1)[1]
        ids.append(int((every - keys[place]).norm(dim=-1).argmin()))
    assert max(ids) < 5000
    tokens = random_tokens(1, 6)
    as_text = model(torch.cat([torch.tensor([ids]), tokens], dim=1))[:, P:]
    assert farthest(tuned(tokens), as_text) < 1e-5  # fp32, keys computed in another batch


def test_a_start_draws_nothing_from_the_global_random_numbers() -> None:
    model = random_model(vocab_size=512)
    for method in (mp.SoftPrompt(3), mp.SoftPrompt(3, "random"), mp.Prefix(3, None), mp.Prefix(3, 8)):
        state = torch.get_rng_state()
        mp.attach(model, method)
        assert torch.equal(torch.get_rng_state(), state), method


def test_top_layers_train_only_these_blocks_and_the_last_norm() -> None:
    tuned = mp.attach(random_model(n_layer=3), mp.FullFinetuning(top_layers=1))
    before = {name: tensor.clone() for name, tensor in tuned.model.state_dict().items()}
    train_steps(tuned)
    moved = {name for name, tensor in tuned.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith(("h.2.", "ln_f."))}
