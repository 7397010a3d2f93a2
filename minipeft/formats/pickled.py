"""Files of `torch.save`: a state dict of `transformers`, of nanoGPT or of minGPT. Only tensors are ever unpickled."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipeft.config import GPT2Config
from minipeft.files import CheckpointError, read_json
from minipeft.formats.stored import Stored, Weights

BEGINNINGS = (b"PK", b"\x80")
"""Of a zip archive, which `torch.save` writes, and of a pickle, which it wrote before PyTorch 1.6."""
COMPILED = "_orig_mod."
"""What `torch.compile` puts in front of every name."""
MINGPT_HEADS = {
    "openai-gpt": 12,
    "gpt2": 12,
    "gpt2-medium": 16,
    "gpt2-large": 20,
    "gpt2-xl": 25,
    "gopher-44m": 16,
    "gpt-mini": 6,
    "gpt-micro": 4,
    "gpt-nano": 3,
}
"""minGPT names a shape instead of writing it; the heads are the one number that no tensor shows."""


def read_state_dict(path: Path) -> dict[str, Stored]:
    """The tensors of a plain state dict. Raises what `_unpickle` raises, CheckpointError if it is anything else."""
    return _tensors(_unpickle(path), path)


def read_nano_or_min_gpt(path: Path) -> Weights:
    """A checkpoint of nanoGPT (`ckpt.pt`), or a state dict of minGPT (`model.pt`, its `config.json` beside it).

    nanoGPT computes the exact GELU, and leaves out biases if told to: zeros then stand for them. minGPT's head is not
    tied to the embeddings. Raises FileNotFoundError, or CheckpointError if the file is neither.
    """
    found = _unpickle(path)
    if "model_args" in found:
        return _nano(found, path)
    return _min(found, path)


def _nano(found: Mapping[str, Any], path: Path) -> Weights:
    shape = found["model_args"]
    if not isinstance(shape, Mapping) or not isinstance(found.get("model"), Mapping):
        raise CheckpointError(f"{path} is no checkpoint of nanoGPT: its model or model_args are missing.")
    tensors = _tensors(found["model"], path)
    try:
        names = ("n_layer", "n_head", "n_embd", "vocab_size")
        config = GPT2Config(**{name: shape[name] for name in names}, n_positions=shape["block_size"], gelu="exact")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: model_args are no GPT-2's ({error}).") from None
    return Weights(path, config, _with_zero_biases(tensors), (path,), conv1d=False)


def _with_zero_biases(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """A weight without its bias gets one of zeros, as wide as what comes out of the layer."""
    filled = dict(tensors)
    for name, weight in tensors.items():
        bias = name.removesuffix("weight") + "bias"
        if re.search(r"\.(ln_\d|ln_f|c_attn|c_proj|c_fc)\.weight$", "." + name) and bias not in tensors:
            filled[bias] = _zeros(weight.shape[:1])
    return filled


def _zeros(shape: tuple[int, ...]) -> Stored:
    return Stored(shape, torch.float32, lambda: torch.zeros(shape), in_file=False)


def _min(found: Mapping[str, Any], path: Path) -> Weights:
    tensors = _tensors(found, path)
    try:
        vocab, width = tensors["transformer.wte.weight"].shape
        positions = tensors["transformer.wpe.weight"].shape[0]
    except (KeyError, ValueError, IndexError):
        raise CheckpointError(f"{path} is neither a checkpoint of nanoGPT nor a state dict of minGPT.") from None
    layers = {int(match[1]) for name in tensors if (match := re.match(r"transformer\.h\.(\d{1,4})\.", name))}
    try:
        config = GPT2Config(
            n_layer=len(layers),
            n_head=_min_heads(path.with_name("config.json")),
            n_embd=width,
            n_positions=positions,
            vocab_size=vocab,
            tied=False,
        )
    except ValueError as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {error}") from None
    return Weights(path, config, tensors, (path.with_name("config.json"), path), conv1d=False)


def _min_heads(path: Path) -> int:
    model = read_json(path).get("model")
    settings = model if isinstance(model, Mapping) else {}
    heads = settings.get("n_head") or MINGPT_HEADS.get(str(settings.get("model_type")))
    if not isinstance(heads, int):
        raise CheckpointError(f"{path} does not say how many heads the model has: model.n_head is missing.")
    return heads


def _unpickle(path: Path) -> Mapping[str, Any]:
    """What `torch.save` wrote, as long as it is made of tensors and plain values.

    Raises FileNotFoundError, or CheckpointError if the file is damaged or holds anything that could run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    with open(path, "rb") as file:
        if not file.read(2).startswith(BEGINNINGS):
            raise CheckpointError(f"{path} is no whole file of torch.save; is it damaged, or another file?")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            if any(member.compress_type != zipfile.ZIP_STORED for member in packed.infolist()):
                raise CheckpointError(f"{path} is compressed, which torch.save does not do; it was not opened.")
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before PyTorch 1.6 cannot be mapped
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if culprit := re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds something besides tensors ({culprit[1] or culprit[2]}) that could run code; it was "
                "refused and not loaded."
            ) from None
        raise CheckpointError(f"{path} is no whole file of torch.save; is it damaged, or another file?") from None
    except Exception as error:  # what is damaged in a pickle shows as almost any kind of error
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is no whole file of torch.save ({reason}); is it damaged?") from None
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} must hold a state dict, but holds a {type(found).__name__}.")
    return found


def _tensors(found: Mapping[str, Any], path: Path) -> dict[str, Stored]:
    odd = [name for name, value in found.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(f"{path} must map names to tensors, but {odd[0]!r} is something else.")
    held = {name.removeprefix(COMPILED): _held(name, tensor, path) for name, tensor in found.items()}
    if len(held) < len(found):
        raise CheckpointError(f"{path} holds keys both with and without {COMPILED!r}; which of them count?")
    return held


def _held(name: str, tensor: Tensor, path: Path) -> Stored:
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        raise CheckpointError(f"{path}: key {name} is a tensor of a kind that no weights are ({tensor.layout}).")
    return Stored(tuple(tensor.shape), tensor.dtype, tensor.contiguous)
