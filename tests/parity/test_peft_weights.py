"""LoRA, IA3, P-tuning and PEFT's LLaMA-Adapter against Hugging Face `peft`: outputs, gradients, training, files."""

import json
import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

import minipeft as mp
from tests.models import farthest, random_tokens, shake, twins
from tests.parity import test_peft
from tests.parity.test_peft import EXACT, SHAPES, P
from tests.parity.training import apart_after_training, shifted_loss
from tests.tuning import labelled_batch

pytestmark = [*test_peft.pytestmark, pytest.mark.filterwarnings("ignore:for MLP, the argument:UserWarning")]

TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
LORA: dict[str, Any] = {**TASK, "fan_in_fan_out": True}
KINDS: dict[str, peft.PeftConfig] = {
    "LoRA": peft.LoraConfig(**LORA, r=3, lora_alpha=6, target_modules=["c_attn"]),
    "LoRA everywhere": peft.LoraConfig(**LORA, r=2, target_modules="all-linear"),
    "LoRA by pattern": peft.LoraConfig(**LORA, r=2, target_modules=r".*\.h\.0\.(attn|mlp)\.c_proj"),
    "LoRA of several ranks": peft.LoraConfig(
        **LORA,
        r=2,
        target_modules=["attn.c_attn", "mlp.c_fc"],
        rank_pattern={"c_fc": 5},
        alpha_pattern={r"h\.0\.attn\.c_attn": 7},
    ),
    "LoRA, rank-stabilised": peft.LoraConfig(**LORA, r=4, use_rslora=True, target_modules=["c_attn", "c_fc"]),
    "IA3": peft.IA3Config(**TASK, fan_in_fan_out=True),
    "IA3 elsewhere": peft.IA3Config(
        **TASK, fan_in_fan_out=True, target_modules=["attn.c_proj", "mlp.c_fc"], feedforward_modules=["mlp.c_fc"]
    ),
    "P-tuning by LSTM": peft.PromptEncoderConfig(
        **TASK, num_virtual_tokens=P, encoder_reparameterization_type="LSTM", encoder_hidden_size=6
    ),
    "P-tuning by MLP": peft.PromptEncoderConfig(**TASK, num_virtual_tokens=P, encoder_hidden_size=6),
    "LLaMA-Adapter of PEFT": peft.AdaptionPromptConfig(**TASK, adapter_len=3, adapter_layers=1),
}
OURS = {
    "P-tuning by LSTM": mp.PTuning(P, "lstm", hidden=6),
    "P-tuning by MLP": mp.PTuning(P, "mlp", hidden=6),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def pair(tmp_path: Path, kind: str, shape: dict[str, Any]) -> tuple[mp.Tuned, Any]:
    """One base, one adapter with random numbers, theirs and ours, each with what it trains."""
    ours, theirs = twins(tmp_path / "base", **shape)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(theirs, deepcopy(KINDS[kind])).eval()  # peft writes into the configuration
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if kind in OURS:
        tuned = mp.attach(ours, OURS[kind])
        with torch.no_grad():
            for mine, other in same_parameters(tuned, wrapped):
                mine.copy_(other)
        return tuned, wrapped
    wrapped.save_pretrained(tmp_path / "adapter")
    return mp.load(tmp_path / "adapter", ours), wrapped


def same_parameters(tuned: mp.Tuned, wrapped: Any) -> list[tuple[nn.Parameter, Tensor]]:
    """Every trainable tensor of ours beside its twin in peft, seen in our shape."""
    if tuned.method.name == "p_tuning":
        mine = tuned.trainable_parameters()
        named = dict(wrapped.prompt_encoder["default"].named_parameters())
        theirs = {name.replace("mlp_head", "head").replace("lstm_head", "lstm"): p for name, p in named.items()}
        assert mine.keys() == theirs.keys()
        return [(mine[name], theirs[name]) for name in mine]
    mine = list(tuned.trainable_parameters().values())
    theirs = [p for p in wrapped.parameters() if p.requires_grad]
    by_place = {tensor.data_ptr(): name for name, tensor in tuned.attachment.adapter_tensors().items()}
    named = {name.replace(".default", ""): p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert len(mine) == len(theirs) == len(by_place)
    return [(parameter, named[by_place[parameter.data_ptr()]]) for parameter in mine]


def their_logits(wrapped: Any, tokens: Tensor) -> Tensor:
    logits = wrapped(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return logits[:, -tokens.shape[1] :]  # after P-tuning peft returns P more than the labels


def their_loss(wrapped: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    return shifted_loss(their_logits(wrapped, tokens), labels)


@each_shape
@each_kind
def test_outputs_and_gradients_are_those_of_peft(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    tokens, labels = labelled_batch()
    assert farthest(tuned(tokens), their_logits(wrapped, tokens)) < EXACT
    with tuned.disabled():
        assert farthest(tuned(tokens), their_logits(wrapped, tokens)) > 100 * EXACT  # the adapter does something
    tuned.loss(tokens, labels).backward()
    their_loss(wrapped, tokens, labels).backward()
    for mine, other in same_parameters(tuned, wrapped):
        assert mine.grad is not None
        assert other.grad is not None
        assert farthest(mine.grad, other.grad.reshape(mine.shape)) < EXACT
    assert max(float(mine.grad.abs().max()) for mine, _ in same_parameters(tuned, wrapped)) > 10 * EXACT


@each_kind
def test_twenty_steps_of_training_agree(kind: str, tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, {})
    theirs = partial(their_loss, wrapped)
    losses, tensors = apart_after_training(tuned.loss, theirs, same_parameters(tuned, wrapped))
    assert losses < 1e-4  # rounding, grown over the steps by AdamW
    assert tensors < 1e-3


@each_shape
@each_kind
def test_what_either_saved_the_other_loads(kind: str, shape: dict[str, Any], tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, shape)
    tokens = random_tokens(3, 9)
    tuned.eval().save(tmp_path / "ours")
    wrapped.save_pretrained(tmp_path / "theirs")
    expected = their_logits(wrapped, tokens)
    assert farthest(mp.load(tmp_path / "theirs", tuned.base)(tokens), expected) < EXACT
    assert farthest(mp.load(tmp_path / "ours", tuned.base)(tokens), expected) < EXACT
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base", attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers, not about the files
        warnings.filterwarnings("ignore", "for MLP, the argument")
        again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    assert farthest(their_logits(again, tokens), expected) < EXACT


@each_kind
def test_a_file_of_an_older_peft_means_its_defaults(kind: str, tmp_path: Path) -> None:
    """Only what the smallest config holds is there; peft loads that, too, and both must mean the same."""
    kept = {"peft_type", "task_type", "num_virtual_tokens", "r", "lora_alpha", "target_modules", "fan_in_fan_out"}
    kept |= {"feedforward_modules", "adapter_len", "adapter_layers", "rank_pattern", "alpha_pattern", "use_rslora"}
    tuned, wrapped = pair(tmp_path, kind, {})
    wrapped.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "adapter_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key in kept}))
    tokens = random_tokens(3, 9)
    assert farthest(mp.load(tmp_path / "old", tuned.base)(tokens), their_logits(wrapped, tokens)) < EXACT


@pytest.mark.parametrize("targets", [("attn.q", "attn.v"), ("attn.k",), ("attn.q", "h.1.attn.v", "mlp.c_fc")])
def test_lora_on_thirds_of_c_attn_loads_in_peft(targets: tuple[str, ...], tmp_path: Path) -> None:
    ours, theirs = twins(tmp_path / "base")
    tuned = mp.attach(ours, mp.LoRA(rank=3, alpha=5, targets=targets))
    shake(tuned.attachment, seed=2)
    tuned.save(tmp_path / "ours")
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    tokens = random_tokens(3, 9)
    assert farthest(tuned(tokens), their_logits(wrapped, tokens)) < EXACT
    assert farthest(mp.load(tmp_path / "ours", ours)(tokens), tuned(tokens)) < EXACT


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("LoRA", "IA3"))])
def test_merged_weights_are_those_that_peft_merges(kind: str, tmp_path: Path) -> None:
    tuned, wrapped = pair(tmp_path, kind, {})
    tokens = random_tokens(3, 9)
    merged = tuned.merge()
    assert farthest(merged(tokens), their_logits(wrapped, tokens)) < EXACT
    theirs = wrapped.merge_and_unload()
    for layer, block in enumerate(merged.blocks):
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            mine, other = block.get_submodule(name), theirs.transformer.h[layer].get_submodule(name)
            assert farthest(mine.weight.T, other.weight) < EXACT
            assert farthest(mine.bias, other.bias) < EXACT
