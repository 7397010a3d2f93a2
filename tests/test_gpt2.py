"""The model: its shape, its three doors, its loss, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import minipeft.gpt2
from minipeft.attention import ATTENTION, FixedMemory
from minipeft.config import GPT2Config
from minipeft.gpt2 import GPT2, NOT_SCORED
from tests.models import TINY, farthest, ragged, random_memory, random_model, random_tokens, twins

FP32 = 1e-5
"""Logits here are of order 3; fp32 keeps 7 digits, and two layers lose about one of them."""

KINDS = ("weight", "bias")

each_attention = pytest.mark.parametrize("attention", ATTENTION)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"n_layer": 0}, "n_layer must be a whole number from 1 to 10,000,000, got 0"),
        ({"n_head": -2}, "n_head must be a whole number"),
        ({"vocab_size": True}, "vocab_size must be a whole number from 1 to 10,000,000, got True"),
        ({"n_embd": 100, "n_head": 12}, "n_embd 100 cannot be shared out among n_head 12 heads"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1"),
    ],
)
def test_numbers_that_make_no_model_are_refused(shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GPT2Config(**shape)


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "published"),
    [
        pytest.param(12, 12, 768, 124_439_808, id="small"),
        pytest.param(24, 16, 1024, 354_823_168, id="medium"),
        pytest.param(36, 20, 1280, 774_030_080, id="large"),
        pytest.param(48, 25, 1600, 1_557_611_200, id="xl"),
        pytest.param(6, 12, 768, 81_912_576, id="distilgpt2"),
    ],
)
def test_parameter_counts_are_the_published_ones(n_layer: int, n_head: int, n_embd: int, published: int) -> None:
    with torch.device("meta"):
        model = GPT2(GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    assert model.num_parameters() == published


def test_the_head_is_the_token_embedding() -> None:
    model = random_model()
    assert not any("head" in name for name, _ in model.named_parameters())
    hidden = torch.eye(TINY["n_embd"])
    assert torch.equal(model.logits(hidden), model.wte.weight.T)
    with torch.no_grad():
        model.wte.weight[5] = 0
    assert not model.logits(hidden)[:, 5].any()


def test_parameters_carry_the_public_names() -> None:
    linear = {f"{part}.{kind}" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj") for kind in KINDS}
    norms = {f"{part}.{kind}" for part in ("ln_1", "ln_2") for kind in KINDS}
    blocks = {f"h.{layer}.{name}" for layer in range(2) for name in linear | norms}
    assert set(random_model().state_dict()) == {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"} | blocks


def test_the_initialisation_is_gpt2s() -> None:
    config = GPT2Config(n_layer=8, n_head=4, n_embd=128, n_positions=512, vocab_size=1000)
    for name, parameter in GPT2(config, seed=0).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif ".ln_" in name or name.startswith("ln_f"):
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            std = 0.01 if name == "wpe.weight" else 0.02 / math.sqrt(2 * 8) if "c_proj" in name else 0.02
            # The standard deviation of n draws is off by 1/√(2n), here below 0.6 %: 3 % is five of these.
            assert float(parameter.detach().std()) == pytest.approx(std, rel=0.03), name


def test_a_seed_gives_the_same_model_to_the_bit_whatever_was_drawn_before() -> None:
    first = GPT2(GPT2Config(**TINY), seed=3).state_dict()
    torch.manual_seed(99)
    again = GPT2(GPT2Config(**TINY), seed=3).state_dict()
    other = GPT2(GPT2Config(**TINY), seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["wte.weight"], other["wte.weight"])


def test_the_gelu_is_the_tanh_form(tmp_path) -> None:
    ours, tanh = twins(tmp_path / "tanh", activation_function="gelu_new")
    exact = type(tanh)(type(tanh.config)(**{**tanh.config.to_dict(), "activation_function": "gelu"})).eval()
    exact.load_state_dict(tanh.state_dict())
    tokens = random_tokens(2, 9)
    assert farthest(ours(tokens), tanh(tokens).logits) < FP32
    assert farthest(ours(tokens), exact(tokens).logits) > 5 * FP32


@each_attention
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("doors", ["", "prompt", "memory", "prompt and memory"])
@torch.no_grad()
def test_padding_changes_nothing(attention: str, side: str, doors: str) -> None:
    model = random_model(attention=attention)
    batch = ragged([9, 4, 1, 7], side)
    prompt = torch.randn(1, 3, TINY["n_embd"]) if "prompt" in doors else None
    memory = random_memory(model, 2) if "memory" in doors else None
    together = model(batch.tokens, batch.mask, prompt=prompt, memory=memory)
    for row, alone in zip(batch.unpadded(together), batch.rows, strict=True):
        assert farthest(row, model(alone[None], prompt=prompt, memory=memory)[0]) < FP32


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_no_loss(side: str) -> None:
    model = random_model()
    batch = ragged([9, 4, 7], side)
    labels = batch.tokens.masked_fill(batch.mask == 0, NOT_SCORED)
    if side == "left":  # a row's first token has none before it
        labels[batch.mask.cumsum(1) == 1] = NOT_SCORED
    alone = [float(model.loss(row[None], row[None])) * (len(row) - 1) for row in batch.rows]
    expected = sum(alone) / sum(len(row) - 1 for row in batch.rows)
    assert float(model.loss(batch.tokens, labels, batch.mask)) == pytest.approx(expected, abs=FP32)


@each_attention
def test_a_mask_of_ones_is_no_mask(attention: str) -> None:
    model = random_model(attention=attention)
    tokens = random_tokens(2, 6)
    for mask in (torch.ones_like(tokens), torch.ones_like(tokens).bool()):
        assert farthest(model(tokens, mask), model(tokens)) < FP32


@pytest.mark.parametrize("doors", ["prompt", "memory", "cache"])
def test_beyond_the_last_position_is_refused_before_any_compute(doors: str) -> None:
    model = random_model()
    prompt = torch.zeros(1, 5, TINY["n_embd"]) if doors == "prompt" else None
    memory = random_memory(model, 5) if doors == "memory" else None
    if doors == "cache":
        memory = model.new_cache(1, capacity=40)
        model.hidden(random_tokens(1, 5), memory=memory)
    room = TINY["n_positions"] - 5

    computed: list[str] = []
    model.wte.register_forward_hook(lambda *_: computed.append("wte"))
    with pytest.raises(ValueError, match=rf"5 .* \+ {room + 1} tokens = 33 positions, but this model has 32"):
        model(random_tokens(1, room + 1), prompt=prompt, memory=memory)
    assert not computed
    assert model(random_tokens(1, room), prompt=prompt, memory=memory).shape == (1, room, TINY["vocab_size"])
    assert computed


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        random_model()(torch.zeros(1, 0, dtype=torch.long))


def test_logits_come_back_for_the_real_tokens_only() -> None:
    model = random_model()
    prompt, memory = torch.zeros(1, 4, TINY["n_embd"]), random_memory(model, 3)
    assert model(random_tokens(2, 6), prompt=prompt, memory=memory).shape == (2, 6, TINY["vocab_size"])


@torch.no_grad()
def test_the_loss_is_the_mean_log_probability_of_the_labels() -> None:
    model = random_model()
    tokens, labels = random_tokens(3, 8), random_tokens(3, 8, seed=5)
    labels[0, :5] = labels[1, 2:] = labels[2, 4] = NOT_SCORED
    logits = model(tokens).double()
    costs = []
    for row in range(3):
        for place in range(1, 8):
            label = int(labels[row, place])
            if label != NOT_SCORED:
                scores = logits[row, place - 1].tolist()
                costs.append(math.log(sum(math.exp(score) for score in scores)) - scores[label])
    assert len(costs) == 3 + 1 + 6
    assert float(model.loss(tokens, labels)) == pytest.approx(sum(costs) / len(costs), abs=1e-6)  # one fp32 mean


def test_logits_are_computed_only_where_a_label_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    loss, shapes = model.label_loss, []

    def watched(hidden: Tensor, *more: Any) -> Tensor:
        shapes.append(tuple(hidden.shape))
        return loss(hidden, *more)

    monkeypatch.setattr(model, "label_loss", watched)
    monkeypatch.setattr(model, "logits", None)
    tokens = random_tokens(2, 8)
    labels = tokens.clone()
    labels[0, :6] = labels[1, 3:] = NOT_SCORED
    model.loss(tokens, labels, prompt=torch.zeros(1, 3, TINY["n_embd"]))
    assert shapes == [(2 + 2, TINY["n_embd"])]


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_label_is_scored_from_padding(side: str) -> None:
    model, batch = random_model(), ragged([8, 3, 5], side)
    labels = batch.tokens.masked_fill(batch.mask == 0, NOT_SCORED)
    alone = [(len(row) - 1, model.loss(row[None], row[None])) for row in batch.rows]
    mean = sum(count * loss for count, loss in alone) / sum(count for count, _ in alone)
    assert farthest(model.loss(batch.tokens, labels, batch.mask), mean) < 1e-5  # fp32 sums in another order


def test_a_loss_without_a_label_is_refused() -> None:
    labels = torch.full((1, 4), NOT_SCORED)
    labels[0, 0] = 3  # the first label has no token before it
    with pytest.raises(ValueError, match="no label is scored"):
        random_model().loss(random_tokens(1, 4), labels)


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="attention is 'flash'; it can be 'explicit', 'fused' or 'split'"):
        random_model().use_attention("flash")
    with pytest.raises(ValueError, match="attention is 'flash'"):
        GPT2(GPT2Config(**TINY), attention="flash")


def test_dropout_acts_in_training_only() -> None:
    model = random_model(dropout=0.3)
    tokens = random_tokens(1, 6)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_dropout_reaches_the_attention_weights_in_training_only() -> None:
    model = random_model(dropout=0.3)
    attend, passed = ATTENTION["fused"], []
    for block in model.h:
        block.attn.attend = lambda *inputs: (passed.append(inputs[4]), attend(*inputs))[1]
    model(random_tokens(1, 4))
    model.train()(random_tokens(1, 4))
    assert passed == [0.0, 0.0, 0.3, 0.3]


@each_attention
def test_a_bfloat16_base_takes_fp32_prompts_and_memories(attention: str) -> None:
    full = random_model(attention=attention)
    half = random_model(attention=attention).to(torch.bfloat16)
    tokens, prompt, memory = random_tokens(2, 6), torch.randn(1, 3, TINY["n_embd"]), random_memory(full, 2)
    found = half(tokens, prompt=prompt, memory=memory)
    assert found.dtype == torch.bfloat16
    # bfloat16 rounds at 0.4 %; logits are of order 3, and their errors add up over two layers.
    assert farthest(found.float(), full(tokens, prompt=prompt, memory=memory)) < 0.15


@each_attention
@torch.no_grad()
def test_a_prompt_of_real_tokens_embeddings_is_typing_these_tokens(attention: str) -> None:
    model = random_model(attention=attention)
    typed, tokens = random_tokens(1, 4, seed=7), random_tokens(2, 6)
    as_prompt = model(tokens, prompt=model.wte(typed))
    as_text = model(torch.cat([typed.expand(2, -1), tokens], dim=1))[:, 4:]
    assert farthest(as_prompt, as_text) < 1e-6  # the same sums; only the head's matrix has another height


@torch.no_grad()
def harvested(model: GPT2, typed: Tensor) -> FixedMemory:
    """The keys and values that typing these tokens leaves behind."""
    cache = model.new_cache(1, typed.shape[1])
    model.hidden(typed, memory=cache)
    return FixedMemory(cache.keys, cache.values)


def memory_against_text(model: GPT2) -> float:
    """How far logits after a memory harvested from real tokens are from those after the tokens themselves."""
    typed, tokens = random_tokens(1, 4, seed=7), random_tokens(2, 6)
    as_text = model(torch.cat([typed.expand(2, -1), tokens], dim=1))[:, 4:]
    return farthest(model(tokens, memory=harvested(model, typed)), as_text)


@each_attention
def test_a_memory_of_real_tokens_is_typing_these_tokens(attention: str) -> None:
    assert memory_against_text(random_model(attention=attention)) < FP32


def test_the_same_memory_without_an_offset_of_positions_is_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    right = minipeft.gpt2.next_positions
    model = random_model()
    memory = harvested(model, random_tokens(1, 4, seed=7))
    offset = model(random_tokens(2, 6), memory=memory)
    monkeypatch.setattr(minipeft.gpt2, "next_positions", lambda real, memory: right(real, None))
    assert farthest(model(random_tokens(2, 6), memory=memory), offset) > 1e-2


def test_the_same_memory_with_a_mask_from_the_upper_left_is_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def upper_left(T: int, S: int, real: Tensor | None = None, device: torch.device | None = None) -> Tensor:
        return torch.ones(1, 1, T, S, dtype=torch.bool).tril()

    monkeypatch.setattr(minipeft.gpt2, "lower_right_mask", upper_left)
    assert memory_against_text(random_model()) > 1e-2


def test_a_zero_memory_is_no_no_op() -> None:
    model = random_model()
    tokens = random_tokens(2, 6)
    memory = random_memory(model, 4)
    zeros = FixedMemory(torch.zeros_like(memory.keys), torch.zeros_like(memory.values))
    shifted = model(torch.cat([tokens[:, :1].expand(-1, 4), tokens], 1), torch.tensor([[0] * 4 + [1] * 6] * 2))[:, 4:]
    assert farthest(shifted, model(tokens)) < FP32
    assert farthest(model(tokens, memory=zeros), model(tokens)) > 1e-2
