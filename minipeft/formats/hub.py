"""The form of the Hugging Face hub: `config.json` with `model.safetensors`, its shards, or `pytorch_model.bin`."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipeft.config import GPT2Config
from minipeft.files import CheckpointError, open_safetensors, read_json
from minipeft.formats.pickled import read_state_dict
from minipeft.formats.stored import Stored, Weights

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SHARDS_FILE, PICKLE_FILE = "model.safetensors.index.json", "pytorch_model.bin"

SHAPE_KEYS = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "layer_norm_epsilon")
FIXED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
"""Settings of `transformers` that change what is computed, with the values that mean what `GPT2` computes."""
GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}

SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_hub(folder: Path) -> Weights:
    """The weights in a folder of `transformers`' layout.

    Raises FileNotFoundError if a file is missing, CheckpointError if one is damaged or no plain GPT-2.
    """
    config = read_config(folder / CONFIG_FILE)
    if (path := folder / WEIGHTS_FILE).is_file():
        return Weights(path, config, safetensors_in(path), (folder / CONFIG_FILE, path))
    if (path := folder / SHARDS_FILE).is_file():
        shards = _shards(path)
        tensors = {name: stored for tensors in shards.values() for name, stored in tensors.items()}
        return Weights(path, config, tensors, (folder / CONFIG_FILE, path, *shards))
    if (path := folder / PICKLE_FILE).is_file():
        return Weights(path, config, read_state_dict(path), (folder / CONFIG_FILE, path))
    raise FileNotFoundError(
        f"there are no weights in {folder}: neither {WEIGHTS_FILE}, {SHARDS_FILE} nor {PICKLE_FILE}."
    )


def read_config(path: Path) -> GPT2Config:
    """The shape of a GPT-2 from `transformers`' config.json; missing keys mean GPT-2 small, as they do there.

    Raises CheckpointError if the file describes anything but a plain GPT-2.
    """
    found = read_json(path)
    for key, allowed in FIXED_SETTINGS.items():
        if found.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{path}: {key} is {found[key]!r}; minipeft's GPT-2 has {allowed[0]!r}.")
    activation, tied = found.get("activation_function", "gelu_new"), found.get("tie_word_embeddings", True)
    if not isinstance(activation, str) or activation not in GELU:
        raise CheckpointError(f"{path}: activation_function is {activation!r}; minipeft knows {', '.join(GELU)}.")
    if not isinstance(tied, bool):
        raise CheckpointError(f"{path}: tie_word_embeddings is {tied!r}; it must be true or false.")
    try:
        shape = {key: found[key] for key in SHAPE_KEYS if key in found}
        config = GPT2Config(**shape, gelu=GELU[activation], tied=tied)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if found.get("n_inner") not in (None, 4 * config.n_embd):
        raise CheckpointError(f"{path}: n_inner is {found['n_inner']!r}; GPT-2's is 4 × n_embd = {4 * config.n_embd}.")
    return config


def config_json(config: GPT2Config, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What `transformers` writes into config.json for this shape."""
    written: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"]}
    written |= {key: values[0] for key, values in FIXED_SETTINGS.items()}
    written |= {key: getattr(config, key) for key in SHAPE_KEYS} | {"n_ctx": config.n_positions, "n_inner": None}
    written["activation_function"] = next(name for name, gelu in GELU.items() if gelu == config.gelu)
    written["tie_word_embeddings"] = config.tied
    written |= {f"{part}_pdrop": config.dropout for part in ("attn", "embd", "resid")}
    written |= dict.fromkeys(("bos_token_id", "eos_token_id"), config.end_of_text)
    return written | {"dtype": str(dtype).removeprefix("torch.")}


def safetensors_in(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds. `read` gives views of the mapped file.

    `read_rows` maps it anew each time, so that no page stays in memory behind what is only to be copied.

    Raises FileNotFoundError, or CheckpointError on anything that is no whole safetensors file.
    """
    with open_safetensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}

    @functools.cache
    def mapped() -> dict[str, Tensor]:
        with open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in found}

    return {name: _stored(path, name, shape, kind, mapped) for name, (shape, kind) in found.items()}


def _stored(
    path: Path, name: str, shape: tuple[int, ...], kind: str, mapped: Callable[[], dict[str, Tensor]]
) -> Stored:
    if kind not in SAFETENSORS_TYPES:
        raise CheckpointError(f"{path}: key {name} is of type {kind}, which no weights are.")

    def read() -> Tensor:
        return mapped()[name]

    def read_rows(start: int, stop: int) -> Tensor:
        with open_safetensors(path) as file:
            return file.get_slice(name)[start:stop]

    return Stored(shape, SAFETENSORS_TYPES[kind], read, read_rows)


def _shards(index: Path) -> dict[Path, dict[str, Stored]]:
    """The tensors of each shard that the index names; it must hold what the index says, in the same folder."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: weight_map must say which file holds each key.")
    shards: dict[Path, dict[str, Stored]] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is no safetensors file beside it.")
        shard = safetensors_in(index.parent / name)
        expected = {key for key, place in places.items() if place == name}
        if set(shard) != expected:
            wrong = ", ".join(sorted(set(shard) ^ expected)[:5])
            raise CheckpointError(f"{index.parent / name} and {index.name} disagree about {wrong}.")
        shards[index.parent / name] = shard
    return shards
