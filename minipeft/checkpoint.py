"""Public GPT-2 weight files <-> `GPT2`: the one place that knows the names and layouts of checkpoints."""

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minipeft.config import GPT2Config
from minipeft.downloads import PUBLIC, download
from minipeft.files import (
    CheckpointError,
    check_keys,
    check_numbers,
    check_shape,
    json_bytes,
    tensor_pieces,
    write_together,
)
from minipeft.formats.hub import (
    CONFIG_FILE,
    PICKLE_FILE,
    SHARDS_FILE,
    WEIGHTS_FILE,
    config_json,
    read_config,
    read_hub,
    safetensors_in,
)
from minipeft.formats.openai import HPARAMS_FILE, read_openai
from minipeft.formats.pickled import read_nano_or_min_gpt
from minipeft.formats.stored import Stored, Weights
from minipeft.gpt2 import GPT2

SHIPPED = {name: Path(__file__).parent / "assets" / name for name in ("nano", "pico")}

PREFIX = "transformer."
HEAD = "lm_head.weight"
CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
"""OpenAI wrote these linear layers as 1×1 convolutions: their weights are stored [in, out], PyTorch's are [out, in]."""
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
"""Old files carry each block's causal mask; it is no weight."""
MAPPED_FILES_CAN_BE_REPLACED = sys.platform != "win32"
"""Windows refuses to replace a file that is mapped: no model could be saved to where it came from."""


def load_gpt2(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    attention: str = "fused",
    dropout: float = 0.0,
) -> GPT2:
    """A GPT2 in evaluation mode, by its name, or from a folder or file of weights in any form we read.

    The names: "nano" and "pico" ship; "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" and "distilgpt2" are brought from
    the Hugging Face hub once and then kept in its cache.

    The forms: `transformers` (safetensors, sharded or not, or pytorch_model.bin), OpenAI's TensorFlow checkpoint,
    nanoGPT's ckpt.pt, minGPT's model.pt.

    Weights that the file holds as they are wanted (on the CPU, of type `dtype`) are mapped, not copied: training writes
    to memory alone and the file may be deleted or replaced, but must not be written over in place while the model is in
    use. Others are copied part by part. Either way memory holds little beside the model.

    `dtype` None keeps fp32 (half-precision files are widened). The file's dropout rates are not taken over: a frozen
    model is not to be noisy; pass `dropout` to train with it.
    Raises FileNotFoundError if there is no such model, CheckpointError if its files are not a whole GPT-2.
    """
    weights = open_model(name)
    tensors = public_tensors(weights)
    if weights.config.n_layer > len(tensors):  # before a model of a billion layers is laid out
        raise CheckpointError(
            f"{weights.path} holds {len(tensors)} tensors, too few for the {weights.config.n_layer} layers that its "
            "settings name."
        )
    with torch.device("meta"):
        model = GPT2(dataclasses.replace(weights.config, dropout=dropout), attention)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    check_keys(weights.path, set(tensors), set(expected))
    turned = {key for key in expected if weights.conv1d and CONV1D.fullmatch(key)}
    for key, stored in tensors.items():  # every shape before the first number
        needed = expected[key][::-1] if key in turned else expected[key]
        hint = " Was it transposed already?" if stored.shape == needed[::-1] != needed else ""
        check_shape(weights.path, key, stored.shape, stored.dtype, needed, hint)
    state = {}
    for key, stored in tensors.items():
        as_stored = _in_memory(weights.path, key, stored, torch.device(device), dtype or torch.float32)
        state[key] = as_stored.T if key in turned else as_stored  # a view: turning the numbers over would take longest
    model.load_state_dict(state, assign=True)
    return model.eval()


def _in_memory(path: Path, key: str, stored: Stored, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The numbers of one tensor, checked: the file's own pages where they are what is wanted, else a copy."""
    if stored.dtype == dtype and device.type == "cpu" and MAPPED_FILES_CAN_BE_REPLACED:
        tensor = stored.read()
        check_numbers(path, key, tensor)
        return tensor
    own = torch.empty(stored.shape, dtype=dtype, device=device)
    for start, stop, rows in stored.parts():
        check_numbers(path, key, rows)
        own[start:stop].copy_(rows)
    return own


def save_gpt2(model: GPT2, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors` so that `transformers.GPT2LMHeadModel` loads them.

    `dtype` None keeps the model's. Raises OSError if the folder cannot be written; nothing is half-written.
    """
    folder = Path(folder)
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.T if CONV1D.fullmatch(name) else tensor
        tensors[name if name == HEAD else PREFIX + name] = stored.to(dtype or tensor.dtype)
    config = json_bytes(config_json(model.config, dtype or model.dtype))
    write_together({folder / CONFIG_FILE: config, folder / WEIGHTS_FILE: tensor_pieces(tensors)})


def open_model(name: str | Path) -> Weights:
    """What a model holds: one that ships, a public one (brought if it is not here yet), or a named folder or file.

    Raises FileNotFoundError if there is none, and what `open_weights` and `downloads.download` raise.
    """
    if isinstance(name, str) and name in SHIPPED:
        return open_weights(SHIPPED[name])
    if isinstance(name, str) and name in PUBLIC:  # before folders: one that is called gpt2 must not stand in
        path = download(name, say=lambda line: print(line, file=sys.stderr))
        return Weights(path, PUBLIC[name].config, safetensors_in(path), (path,))
    if Path(name).exists():
        return open_weights(Path(name))
    raise FileNotFoundError(
        f"{name} is neither a folder, a file, a model that ships ({', '.join(SHIPPED)}) nor a public one "
        f"({', '.join(PUBLIC)})."
    )


def open_weights(path: Path) -> Weights:
    """What a folder or a file of weights holds, whatever its form; no numbers are read yet.

    Raises FileNotFoundError if there are no weights, CheckpointError if they are damaged or no GPT-2's.
    """
    if path.name in (SHARDS_FILE, PICKLE_FILE) and (path.parent / CONFIG_FILE).is_file():
        return read_hub(path.parent)
    if path.suffix == ".safetensors" and path.is_file():
        return _single_safetensors(path)
    if path.is_file():
        return read_nano_or_min_gpt(path)
    if (path / HPARAMS_FILE).is_file() and not (path / CONFIG_FILE).is_file():
        return read_openai(path)
    if alone := [found.name for found in sorted(path.glob("*.pt")) if not (path / CONFIG_FILE).is_file()]:
        raise FileNotFoundError(f"there is no {CONFIG_FILE} in {path}; name the file itself: {path / alone[0]}")
    return read_hub(path)


def _single_safetensors(path: Path) -> Weights:
    """A file on its own: the config.json beside it gives its shape, or the public model that has the same shapes."""
    tensors = safetensors_in(path)
    if (path.parent / CONFIG_FILE).is_file():
        beside = path.parent / CONFIG_FILE
        return Weights(path, read_config(beside), tensors, (beside, path))
    for model in PUBLIC.values():
        if _shapes_of(model.config, tensors):
            return Weights(path, model.config, tensors, (path,))
    raise FileNotFoundError(f"{path} is none of {', '.join(PUBLIC)}, and there is no {CONFIG_FILE} beside it.")


def _shapes_of(config: GPT2Config, tensors: Mapping[str, Stored]) -> bool:
    """Whether embeddings and number of blocks are those of `config`; the whole is checked when it is loaded."""
    bare = {key.removeprefix(PREFIX): stored.shape for key, stored in tensors.items()}
    last, next_one = (f"h.{layer}.ln_1.weight" in bare for layer in (config.n_layer - 1, config.n_layer))
    embeddings = [(config.vocab_size, config.n_embd), (config.n_positions, config.n_embd)]
    return last and not next_one and [bare.get("wte.weight"), bare.get("wpe.weight")] == embeddings


def public_tensors(weights: Weights) -> dict[str, Stored]:
    """Public keys to ours: no `transformer.`, no mask buffers, no copy of a tied head.

    Raises CheckpointError if the head of a tied model is no copy of its token embeddings.
    """
    bare = {key.removeprefix(PREFIX): stored for key, stored in weights.tensors.items()}
    if len(bare) < len(weights.tensors):
        raise CheckpointError(f"{weights.path} holds keys both with and without {PREFIX!r}; which of them count?")
    if weights.config.tied and HEAD in bare:
        head, embeddings = bare.pop(HEAD), bare.get("wte.weight")
        if embeddings is not None and not (
            head.shape == embeddings.shape and torch.equal(head.read(), embeddings.read())
        ):
            raise CheckpointError(f"{weights.path}: {HEAD} differs from wte.weight, but GPT-2's head is tied to it.")
    return {key: stored for key, stored in bare.items() if not MASK_BUFFER.fullmatch(key)}
