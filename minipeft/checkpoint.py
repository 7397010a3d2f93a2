"""Public GPT-2 weight files <-> `GPT2`: the one place that knows the names and layouts of checkpoints."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipeft.files import (
    CheckpointError,
    check_keys,
    check_tensor,
    json_bytes,
    read_json,
    read_tensors,
    tensor_bytes,
    write_together,
)
from minipeft.gpt2 import GPT2, GPT2Config

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SHIPPED = {"nano": Path(__file__).parent / "assets" / "nano"}
PUBLIC = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")

PREFIX = "transformer."
HEAD = "lm_head.weight"
CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
"""OpenAI wrote these linear layers as 1×1 convolutions: their weights are stored [in, out], PyTorch's are [out, in]."""
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
"""Old files carry each block's causal mask; it is no weight."""

SHAPE_KEYS = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "layer_norm_epsilon")
FIXED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
"""Settings of `transformers` that change what is computed, with the values that mean what `GPT2` computes."""


def load_gpt2(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    attention: str = "fused",
    dropout: float = 0.0,
) -> GPT2:
    """A GPT2 in evaluation mode, from a folder in `transformers`' layout or a name that ships ("nano").

    `dtype` None keeps fp32 (half-precision files are widened). The file's dropout rates are not taken over: a frozen
    model is not to be noisy; pass `dropout` to train with it.
    Raises FileNotFoundError if there is no such model, CheckpointError if its files are not a whole GPT-2.
    """
    folder = find_model(name)
    config = dataclasses.replace(read_config(folder / CONFIG_FILE), dropout=dropout)
    path = folder / WEIGHTS_FILE
    tensors = from_public_names(read_tensors(path)[0], path)
    with torch.device("meta"):
        model = GPT2(config, attention)
    expected = model.state_dict()
    check_keys(path, set(tensors), set(expected))
    for key, tensor in tensors.items():
        needed = tuple(expected[key].shape)
        if not CONV1D.fullmatch(key):
            check_tensor(path, key, tensor, needed)
            continue
        turned = tuple(tensor.shape) == needed != needed[::-1]
        check_tensor(path, key, tensor, needed[::-1], " Was it transposed already?" if turned else "")
        tensors[key] = tensor.T.contiguous()
    model.load_state_dict({key: tensor.to(dtype or torch.float32) for key, tensor in tensors.items()}, assign=True)
    return model.to(device).eval()


def save_gpt2(model: GPT2, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors` so that `transformers.GPT2LMHeadModel` loads them.

    `dtype` None keeps the model's. Raises OSError if the folder cannot be written; nothing is half-written.
    """
    folder = Path(folder)
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.T if CONV1D.fullmatch(name) else tensor
        tensors[PREFIX + name] = stored.to(dtype or tensor.dtype)
    config = {"architectures": ["GPT2LMHeadModel"], **{key: values[0] for key, values in FIXED_SETTINGS.items()}}
    config |= {key: getattr(model.config, key) for key in SHAPE_KEYS} | {
        "n_ctx": model.config.n_positions,
        "n_inner": None,
    }
    config |= {f"{part}_pdrop": model.config.dropout for part in ("attn", "embd", "resid")}
    config |= dict.fromkeys(("bos_token_id", "eos_token_id"), model.config.vocab_size - 1)
    config["dtype"] = str(dtype or model.dtype).removeprefix("torch.")
    write_together({folder / CONFIG_FILE: json_bytes(config), folder / WEIGHTS_FILE: tensor_bytes(tensors)})


def find_model(name: str | Path) -> Path:
    """The folder of a model that ships, or the folder that was named. Raises FileNotFoundError if there is neither."""
    if isinstance(name, str) and name in SHIPPED:
        return SHIPPED[name]
    ships = ", ".join(SHIPPED)
    if isinstance(name, str) and name in PUBLIC:  # before folders: one that is called gpt2 must not stand in
        raise FileNotFoundError(
            f"the weights of {name} are not here; save them as a folder with {CONFIG_FILE} and {WEIGHTS_FILE} "
            f"and name that folder, a folder called {name} as ./{name} (models that ship: {ships})."
        )
    folder = Path(name)
    if folder.is_dir():
        return folder
    raise FileNotFoundError(f"{name} is neither a folder nor a model that ships ({ships}).")


def read_config(path: Path) -> GPT2Config:
    """The shape of a GPT-2 from `transformers`' config.json; missing keys mean GPT-2 small, as they do there.

    Raises CheckpointError if the file describes anything but a plain GPT-2.
    """
    found = read_json(path)
    for key, allowed in FIXED_SETTINGS.items():
        if found.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{path}: {key} is {found[key]!r}; minipeft's GPT-2 has {allowed[0]!r}.")
    try:
        config = GPT2Config(**{key: found[key] for key in SHAPE_KEYS if key in found})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if found.get("n_inner") not in (None, 4 * config.n_embd):
        raise CheckpointError(f"{path}: n_inner is {found['n_inner']!r}; GPT-2's is 4 × n_embd = {4 * config.n_embd}.")
    return config


def from_public_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Public keys to ours: no `transformer.`, no mask buffers, no copy of the tied head.

    Raises CheckpointError if the head is no copy of the token embeddings.
    """
    bare = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    if len(bare) < len(tensors):
        raise CheckpointError(f"{path} holds keys both with and without {PREFIX!r}; which of them count?")
    head = bare.pop(HEAD, None)
    if head is not None and "wte.weight" in bare and not torch.equal(head, bare["wte.weight"]):
        raise CheckpointError(f"{path}: {HEAD} differs from wte.weight, but GPT-2's head is tied to it.")
    return {key: tensor for key, tensor in bare.items() if not MASK_BUFFER.fullmatch(key)}
