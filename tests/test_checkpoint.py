"""Checkpoints: what is written comes back to the bit, what is wrong in a file is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minipeft.checkpoint import save_gpt2
from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2
from tests.models import TINY, farthest, random_model, random_tokens

Tensors = dict[str, Tensor]
C_ATTN = "h.1.attn.c_attn.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    random_model().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Change the tensors of a saved model, under their names without `transformer.`."""
    path = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    changed = change(tensors)
    save_file(tensors if changed is None else changed, path, {"format": "pt"})


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same(model: GPT2, other: GPT2) -> None:
    ours, others = model.state_dict(), other.state_dict()
    assert ours.keys() == others.keys()
    for name in ours:
        assert torch.equal(ours[name], others[name]), name


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = random_model(n_layer=3, n_head=4, n_positions=20, layer_norm_epsilon=1e-3)
    model.save_pretrained(tmp_path)
    found = GPT2.from_pretrained(tmp_path)
    assert found.config == model.config
    assert_same(found, model)
    assert torch.equal(found(random_tokens(2, 7)), model(random_tokens(2, 7)))
    assert not found.training
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_saving_twice_writes_the_same_files(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "one")
    GPT2.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_linear_weights_are_stored_as_gpt2_does(folder: Path) -> None:
    stored, model = load_file(folder / "model.safetensors"), random_model()
    D = TINY["n_embd"]
    shapes = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}
    for part, shape in shapes.items():
        tensor = stored[f"transformer.h.0.{part}.weight"]
        assert tuple(tensor.shape) == shape
        assert torch.equal(tensor, model.get_submodule(f"h.0.{part}").weight.T)


def test_keys_may_lack_their_prefix(folder: Path) -> None:
    rewrite(folder, lambda tensors: None)
    assert "wte.weight" in load_file(folder / "model.safetensors")
    assert_same(GPT2.from_pretrained(folder), random_model())


def test_keys_with_and_without_their_prefix_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"transformer.ln_f.bias": tensors["ln_f.bias"] + 1}))
    with pytest.raises(CheckpointError, match=r"keys both with and without 'transformer\.'"):
        GPT2.from_pretrained(folder)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_mask_buffers_are_dropped_by_name(folder: Path, prefix: str) -> None:
    def add_buffers(tensors: Tensors) -> Tensors:
        n = TINY["n_positions"]
        for layer in range(TINY["n_layer"]):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, n, n).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        return {prefix + name: tensor for name, tensor in tensors.items()}

    rewrite(folder, add_buffers)
    assert_same(GPT2.from_pretrained(folder), random_model())


def test_a_copy_of_the_tied_head_is_taken_for_what_it_is(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["wte.weight"].clone()}))
    assert_same(GPT2.from_pretrained(folder), random_model())


def test_a_head_of_its_own_is_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["wte.weight"] + 1e-3}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from wte\.weight"):
        GPT2.from_pretrained(folder)


def with_nan(tensors: Tensors) -> None:
    tensors[C_ATTN][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda t: t.__delitem__(C_ATTN), f"lacks key {C_ATTN}", id="missing"),
        pytest.param(lambda t: t.__delitem__("wte.weight"), "lacks key wte.weight", id="no embedding"),
        pytest.param(lambda t: t.update(odd=torch.ones(1)), "has unexpected key odd", id="unexpected"),
        pytest.param(
            lambda t: t.update({"h.2.ln_1.bias": torch.ones(32)}), "has unexpected key h.2.ln_1.bias", id="deeper"
        ),
        pytest.param(
            lambda t: t.update({"wpe.weight": torch.ones(16, 32)}),
            r"key wpe.weight has shape \(16, 32\), needed is \(32, 32\)\.$",
            id="mis-shaped",
        ),
        pytest.param(
            lambda t: t.update({C_ATTN: t[C_ATTN].T.contiguous()}),
            rf"key {C_ATTN} has shape \(96, 32\), needed is \(32, 96\)\. Was it transposed already\?",
            id="transposed already",
        ),
        pytest.param(
            lambda t: t.update({C_ATTN: t[C_ATTN][:, :90].contiguous()}),
            rf"key {C_ATTN} has shape \(32, 90\), needed is \(32, 96\)\.$",
            id="mis-shaped, not transposed",
        ),
        pytest.param(lambda t: t.update({C_ATTN: t[C_ATTN].to(torch.int8)}), f"key {C_ATTN} is int8", id="int8"),
        pytest.param(with_nan, f"key {C_ATTN} holds NaN", id="nan"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(folder: Path, change: Callable[[Tensors], Any], said: str) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.* {said}"):
        GPT2.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_file_is_widened_or_kept(folder: Path, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    rounded = random_model().to(dtype)
    assert_same(GPT2.from_pretrained(folder), random_model().to(dtype).float())
    kept = GPT2.from_pretrained(folder, dtype=dtype)
    assert kept.dtype == dtype
    assert_same(kept, rounded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_can_be_saved_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_model()
    save_gpt2(model, tmp_path, dtype)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert model.dtype == torch.float32
    assert_same(GPT2.from_pretrained(tmp_path), model.to(dtype).float())


def test_options_reach_the_model(folder: Path) -> None:
    tokens = random_tokens(1, 5)
    explicit = GPT2.from_pretrained(folder, attention="explicit", dropout=0.25)
    assert farthest(explicit(tokens), random_model()(tokens)) < 1e-5  # fp32, logits of order 3
    assert explicit.config.dropout == 0.25
    with pytest.raises(ValueError, match="attention is 'flash'"):
        GPT2.from_pretrained(folder, attention="flash")


def test_a_model_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gpt3 is neither a folder, a file, a model that ships \(nano, pico\)"):
        GPT2.from_pretrained("gpt3")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config\.json"):
        GPT2.from_pretrained(tmp_path)


def test_a_public_name_does_not_mean_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model().save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="gpt2 is not here"):
        GPT2.from_pretrained("gpt2")
    assert_same(GPT2.from_pretrained("./gpt2"), random_model())


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights in .*: neither model\.safetensors"):
        GPT2.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_inner": 100}, "n_inner is 100; GPT-2's is 4 × n_embd = 128"),
        (
            {"activation_function": "relu"},
            "activation_function is 'relu'; minipeft knows gelu_new, gelu_pytorch_tanh, gelu",
        ),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it must be true or false"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"n_head": 3}, "n_embd 32 cannot be shared out among n_head 3 heads"),
        ({"n_layer": 0}, "n_layer must be a whole number from 1 to"),
        ({"n_embd": None}, "n_embd"),
        ({"n_embd": 32.5}, "n_embd"),
        ({"n_positions": "32"}, "n_positions"),
        ({"layer_norm_epsilon": "tiny"}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
    ],
    ids=str,
)
def test_a_config_of_another_model_is_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    rewrite_config(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"(?s)config\.json: .*{said}"):
        GPT2.from_pretrained(folder)


def test_a_config_of_another_shape_than_the_weights_is_refused(folder: Path) -> None:
    rewrite_config(folder, n_layer=3)
    with pytest.raises(CheckpointError, match=r"lacks keys h\.2\.attn\.c_attn\.bias, .* and 7 more"):
        GPT2.from_pretrained(folder)
    rewrite_config(folder, n_layer=2, n_embd=64)
    with pytest.raises(CheckpointError, match=r"has shape \(\d+.*\), needed is"):
        GPT2.from_pretrained(folder)


@pytest.mark.parametrize("changes", [{"n_inner": 128}, {"n_inner": None}, {"activation_function": "gelu_pytorch_tanh"}])
def test_another_spelling_of_the_same_config_is_accepted(folder: Path, changes: dict[str, Any]) -> None:
    rewrite_config(folder, **changes)
    assert_same(GPT2.from_pretrained(folder), random_model())


def test_the_dropout_of_a_file_is_not_taken_over(tmp_path: Path) -> None:
    random_model(dropout=0.1).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["resid_pdrop"] == 0.1
    assert GPT2.from_pretrained(tmp_path).config.dropout == 0.0
