"""Methods that change or join the weights, against plain references; merging, disabling, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import minipeft as mp
from minipeft.methods import Method
from minipeft.methods.bottleneck import Bottleneck
from minipeft.methods.llama_adapter import GatedAttention
from tests.models import farthest, random_model, random_tokens, shake
from tests.tuning import TINY_METHODS, train_steps

EXACT = 1e-5
ZERO_AT_FIRST = [
    "LoRA",
    "LoRA on q and v",
    "IA3",
    "adapters of Houlsby",
    "adapters of Lin",
    "LLaMA-Adapter",
    "LLaMA-Adapter of PEFT",
    "BitFit",
    "LoRA, IA3 and adapters",
]
MERGED = ["LoRA", "LoRA on q and v", "IA3", "BitFit", "full", "last block"]


def shaken(method: Method, **shape: Any) -> mp.Tuned:
    tuned = mp.attach(random_model(**shape), method).eval()
    shake(tuned.attachment, seed=4, std=0.2)
    return tuned


# -- at the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ZERO_AT_FIRST)
def test_a_new_one_changes_nothing(kind: str) -> None:
    model, tokens = random_model(), random_tokens(2, 7)
    assert torch.equal(mp.attach(model, TINY_METHODS[kind])(tokens), model(tokens))


def test_the_first_layer_of_an_adapter_is_drawn_as_by_houlsby() -> None:
    drawn = Bottleneck(200, 300, "tanh", torch.Generator().manual_seed(0)).W1.detach()
    assert float(drawn.abs().max()) <= 2e-3  # cut at two deviations of 1e-3
    assert float(drawn.std()) == pytest.approx(0.880e-3, rel=0.02)  # so many are left of one; 60,000 draws
    assert float(drawn.mean().abs()) < 2e-5


@pytest.mark.parametrize("kind", ["soft prompt", "prefix", "P-tuning by LSTM"])
def test_a_new_prompt_or_prefix_does_change_something(kind: str) -> None:
    """Its keys take a share of every softmax, whatever their numbers."""
    model, tokens = random_model(), random_tokens(2, 7)
    assert farthest(mp.attach(model, TINY_METHODS[kind])(tokens), model(tokens)) > 1e-2


# -- against plain references -----------------------------------------------------------------------------------------


def test_bottleneck_adapters_are_their_equation() -> None:
    """Number by number: h + W2 gelu(W1 h + b1) + b2, the norm before W1 where there is one."""
    for norm in (False, True):
        adapter = Bottleneck(6, 3, "tanh", torch.Generator().manual_seed(0), norm)
        shake(adapter, seed=1, std=0.5)
        h = random_vectors(1, 2, 6)
        expected = torch.stack([torch.tensor(by_hand(adapter, row.tolist())) for row in h[0]])[None]
        assert farthest(adapter(h), expected) < EXACT


def by_hand(adapter: Bottleneck, h: list[float]) -> list[float]:
    x, W1, W2, b1, b2 = h, *(p.tolist() for p in (adapter.W1, adapter.W2, adapter.b1, adapter.b2))
    if adapter.weight is not None and adapter.bias is not None:
        mean = sum(h) / len(h)
        deviation = math.sqrt(sum((number - mean) ** 2 for number in h) / len(h) + 1e-5)
        gain, shift = adapter.weight.tolist(), adapter.bias.tolist()
        x = [(n - mean) / deviation * w + b for n, w, b in zip(h, gain, shift, strict=True)]
    hidden = [sum(w * n for w, n in zip(row, x, strict=True)) + b for row, b in zip(W1, b1, strict=True)]
    bent = [0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) for z in hidden]
    out = [sum(w * n for w, n in zip(row, bent, strict=True)) + b for row, b in zip(W2, b2, strict=True)]
    return [a + b for a, b in zip(h, out, strict=True)]


@pytest.mark.parametrize("norms", [False, True])
def test_houlsby_puts_one_behind_each_half_of_a_block(norms: bool) -> None:
    tuned = shaken(mp.BottleneckAdapter(width=4, norms=norms))
    tokens, adapters = random_tokens(2, 7), dict(tuned.attachment.named_modules())
    x = embedded(tuned.base, tokens)
    for layer, block in enumerate(tuned.base.blocks):
        ln_1, ln_2 = ((adapters[f"parts.h_{layer}_{n}"] if norms else getattr(block, n)) for n in ("ln_1", "ln_2"))
        x = x + adapters[f"parts.h_{layer}_attn_c_proj"](block.attn(ln_1(x), None, None, layer))
        x = x + adapters[f"parts.h_{layer}_mlp_c_proj"](block.mlp(ln_2(x)))
    x = (adapters["parts.ln_f"] if norms else tuned.base.ln_f)(x)
    assert farthest(tuned(tokens), tuned.base.logits(x)) < EXACT


def test_lin_puts_one_behind_each_block() -> None:
    tuned = shaken(mp.BottleneckAdapter(width=4, form="lin"))
    tokens, adapters = random_tokens(2, 7), dict(tuned.attachment.named_modules())
    x = embedded(tuned.base, tokens)
    for layer, block in enumerate(tuned.base.blocks):
        x = adapters[f"parts.h_{layer}"](block(x, None, None, layer))
    assert farthest(tuned(tokens), tuned.base.logits(tuned.base.ln_f(x))) < EXACT


@torch.no_grad()
def test_llama_adapter_is_its_equation() -> None:
    """Head by head and token by token, in plain numbers: the gated softmax over the learned vectors, then c_proj."""
    block = random_model(n_embd=8, n_head=2).blocks[0]
    gated = GatedAttention(block.attn, 3, 2, after=False, generator=torch.Generator().manual_seed(0))
    shake(torch.nn.ParameterDict({"prompt": gated.prompt, "gate": gated.gate}), seed=1, std=0.7)
    x = random_vectors(2, 5, 8)
    q = block.attn.c_attn(x)[..., :8]
    k, v = block.attn.c_attn(gated.prompt)[:, 8:16], block.attn.c_attn(gated.prompt)[:, 16:]
    added = torch.zeros(2, 5, 8)
    for row in range(2):
        for t in range(5):
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                scores = [math.exp(float(q[row, t, part] @ k[p, part]) / 2) for p in range(3)]  # √Dh = 2
                mixed = sum(score / sum(scores) * v[p, part] for p, score in enumerate(scores))
                added[row, t, part] = math.tanh(float(gated.gate[head])) * mixed
    expected = block.attn(x, None, None, 0) + added @ block.attn.c_proj.weight.T  # the bias comes once
    assert farthest(gated(x, None, None, 0), expected) < EXACT


def test_bitfit_is_the_model_with_other_biases() -> None:
    tuned, tokens = shaken(mp.BitFit()), random_tokens(2, 7)
    twin = random_model()
    with torch.no_grad():
        for name, bias in tuned.attachment.adapter_tensors().items():
            twin.get_parameter(name).copy_(bias)
    assert {name for name, _ in twin.named_parameters() if name.endswith("bias")} == set(
        tuned.attachment.adapter_tensors()
    )
    assert torch.equal(tuned(tokens), twin(tokens))


def test_the_last_blocks_alone_are_trained() -> None:
    tuned = mp.attach(random_model(n_layer=3), mp.LlamaAdapter(length=2, top_layers=2))
    assert {name.split(".")[4] for name in tuned.attachment.adapter_tensors()} == {"1", "2"}


# -- merging, disabling, compiling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MERGED)
def test_merged_it_is_a_plain_model_that_does_the_same(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = mp.attach(model, TINY_METHODS[kind]).eval()
    shake(torch.nn.ParameterList(tuned.trainable_parameters().values()), seed=4)
    tokens, merged = random_tokens(2, 7), tuned.merge()
    most = EXACT if dtype == torch.float32 else 0.1  # logits of about 1, sums of numbers with 8 bits
    assert type(merged) is mp.GPT2
    assert merged.dtype == dtype
    assert farthest(merged(tokens).float(), tuned(tokens).float()) < most
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    merged.save_pretrained(tmp_path)
    assert torch.equal(mp.GPT2.from_pretrained(tmp_path, dtype=dtype)(tokens), merged(tokens))
    assert all(parameter.requires_grad for parameter in merged.parameters())


@pytest.mark.parametrize("kind", ["soft prompt", "prefix", "LLaMA-Adapter", "adapters of Houlsby"])
def test_what_is_no_change_of_weights_cannot_be_merged(kind: str) -> None:
    with pytest.raises(ValueError, match="cannot be merged: it is no change of the model's weights"):
        mp.attach(random_model(), TINY_METHODS[kind]).merge()


@pytest.mark.parametrize("kind", TINY_METHODS)
def test_disabled_it_is_the_base(kind: str) -> None:
    tuned = mp.attach(random_model(), TINY_METHODS[kind])
    train_steps(tuned)
    tuned.eval()
    tokens = random_tokens(2, 7)
    with tuned.disabled():
        assert torch.equal(tuned(tokens), tuned.base(tokens))
        assert tuned.room == tuned.base.config.n_positions
        with pytest.raises(RuntimeError, match="no matter"), tuned.disabled():
            raise RuntimeError("no matter what happens")
        assert torch.equal(tuned(tokens), tuned.base(tokens))
    assert not torch.equal(tuned(tokens), tuned.base(tokens))


@pytest.mark.parametrize("kind", ["P-tuning by LSTM", "P-tuning by MLP"])
def test_p_tuning_compiles_to_a_prefix(kind: str) -> None:
    tuned, tokens = mp.attach(random_model(), TINY_METHODS[kind]).eval(), random_tokens(2, 7)
    compiled = tuned.compile()
    assert compiled.method == mp.Prefix(length=4, reparam=None)
    assert farthest(compiled(tokens), tuned(tokens)) < EXACT


@pytest.mark.parametrize("kind", ZERO_AT_FIRST)
def test_two_on_one_base_do_not_disturb_each_other(kind: str) -> None:
    model, tokens = random_model(), random_tokens(2, 7)
    alone = mp.attach(model, TINY_METHODS[kind], seed=1).eval()
    expected = alone(tokens)
    other = mp.attach(model, TINY_METHODS[kind], seed=2)
    train_steps(other)
    assert torch.equal(alone(tokens), expected)
    other.detach()
    assert torch.equal(alone(tokens), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    alone.detach()
    assert all(parameter.requires_grad for parameter in model.parameters())


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mp.LoRA(rank=0), "rank is 0; it must be a whole number of at least 1"),
        (lambda: mp.LoRA(dropout=1.0), "dropout must be at least 0 and below 1"),
        (lambda: mp.LoRA(targets=()), "targets is empty; name some of attn.c_attn"),
        (lambda: mp.LoRA(targets=("q_proj",)), "'q_proj' is no layer of this model; the names are attn.c_attn"),
        (lambda: mp.LoRA(targets=("h.7.attn.c_attn",)), "'h.7.attn.c_attn' is no layer of this model"),
        (lambda: mp.LoRA(targets=("attn.c_attn", "attn.q")), "a target as a whole and in thirds; choose one"),
        (lambda: mp.IA3(targets=(), feedforward=()), "IA3 has nothing to scale"),
        (lambda: mp.IA3(targets=("mlp.c_proj",)), "is in targets and in feedforward; scale its output or its input"),
        (lambda: mp.BottleneckAdapter(width=0), "width is 0; it must be a whole number of at least 1"),
        (lambda: mp.BottleneckAdapter(form="parallel"), "form is 'parallel'; it can be 'houlsby' or 'lin'"),
        (lambda: mp.LlamaAdapter(length=0), "length is 0; it must be a whole number of at least 1"),
        (lambda: mp.LlamaAdapter(top_layers=3), "top_layers is 3; this model has blocks 1 to 2"),
        (lambda: mp.PTuning(encoder="gru"), "encoder is 'gru'; it can be"),
        (lambda: mp.PTuning(length=32), "length 32 leaves no room for text"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.attach(random_model(), make())


def embedded(model: mp.GPT2, tokens: Tensor) -> Tensor:
    return model.wte(tokens) + model.wpe(torch.arange(tokens.shape[1]))


def random_vectors(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def test_a_copy_that_was_frozen_later_is_saved_and_merged_all_the_same(tmp_path: Path) -> None:
    tuned, tokens = shaken(mp.FullFinetuning()), random_tokens(2, 7)
    before, wanted = tuned.num_trainable(), tuned(tokens)
    tuned.requires_grad_(False)
    tuned.save(tmp_path)
    assert tuned.num_kept() == before > 0
    assert torch.equal(mp.load(tmp_path, random_model())(tokens), wanted)
    assert torch.equal(tuned.merge()(tokens), wanted)


def test_a_ptuned_prompt_is_saved_and_compiled_without_dropout(tmp_path: Path) -> None:
    tuned, tokens = mp.attach(random_model(), mp.PTuning(4, hidden=8, dropout=0.5)), random_tokens(2, 7)
    wanted = tuned.eval()(tokens)
    tuned.train().save(tmp_path)
    assert tuned.training
    assert farthest(mp.load(tmp_path, random_model())(tokens), wanted) < EXACT
    assert farthest(tuned.compile()(tokens), wanted) < EXACT


@pytest.mark.parametrize("kind", TINY_METHODS)
def test_activations_in_bfloat16_train_every_method(kind: str) -> None:
    """As fp32 does, but for rounding of activations of about 1."""
    losses = []
    for dtype in (None, torch.bfloat16):
        tuned = mp.attach(random_model().use_activations(dtype), TINY_METHODS[kind]).train()
        losses.append(train_steps(tuned))
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


@pytest.mark.parametrize("kind", ["LoRA", "adapters of Lin", "full", "soft prompt"])
def test_what_is_attached_to_a_compiled_model_is_compiled(kind: str) -> None:
    tuned = mp.attach(random_model().use_compile(), TINY_METHODS[kind])
    for block in tuned.model.blocks:
        assert any(module._compiled_call_impl is not None for module in block.modules())  # Lin's stands around it


@pytest.mark.parametrize(
    ("special", "targets"),
    [
        ({"attn.q": (2, 4)}, ("attn.q", "attn.v")),
        ({"mlp.c_fc": (2, 4)}, ("attn.c_attn",)),
        ({"attn.c_atn": (2, 4)}, ("attn.c_attn",)),
    ],
)
def test_a_rank_for_no_layer_of_a_lora_is_refused(special: Any, targets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"special names '{next(iter(special))}', which is none of the layers "):
        mp.attach(random_model(), mp.LoRA(rank=8, targets=targets, special=special))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the frozen weights, too"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights is {'a': 1}, which changes"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is .* minipeft reads LoRA without that"),
        ({"target_modules": "c_attn{99999999999}"}, "is no regular expression"),
        ({"rank_pattern": {"c_attn{99999999999}": 3}}, "rank_pattern has what is no regular expression"),
    ],
)
def test_an_option_that_makes_another_method_of_lora_is_refused(
    option: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    mp.attach(random_model(), mp.LoRA()).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "gaussian"}))
    mp.load(tmp_path, random_model())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **option}))
    with pytest.raises(ValueError, match=sentence):
        mp.load(tmp_path, random_model())
