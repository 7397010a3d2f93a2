"""The form of the original release: `hparams.json` and a TensorFlow checkpoint called `model.ckpt`."""

import re
from pathlib import Path

from minipeft.config import GPT2Config
from minipeft.files import CheckpointError, read_json
from minipeft.formats.stored import Stored, Weights
from minipeft.formats.tensor_bundle import read_bundle

HPARAMS_FILE, PREFIX = "hparams.json", "model.ckpt"
HPARAMS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_positions": "n_ctx",
    "vocab_size": "n_vocab",
}
"""Our name of each number of the shape, and OpenAI's."""
ENDINGS = {"w": "weight", "g": "weight", "b": "bias"}


def read_openai(folder: Path) -> Weights:
    """The weights in a folder of OpenAI's release.

    Raises FileNotFoundError if a file is missing, CheckpointError if one is damaged or no GPT-2.
    """
    path = folder / HPARAMS_FILE
    hparams = read_json(path)
    try:
        config = GPT2Config(**{ours: hparams[theirs] for ours, theirs in HPARAMS.items()})
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error.args[0]}.") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    bundle = read_bundle(folder / PREFIX)
    tensors = {_public_name(name): _without_leading_one(name, stored) for name, stored in bundle.items()}
    if len(tensors) < len(bundle):
        raise CheckpointError(f"{folder / PREFIX}.index holds two tensors that mean the same.")
    files = (path, folder / f"{PREFIX}.index", folder / f"{PREFIX}.data-00000-of-00001")
    return Weights(folder / f"{PREFIX}.index", config, tensors, files)


def _public_name(name: str) -> str:
    """`model/h0/attn/c_attn/w` is `h.0.attn.c_attn.weight`; a name of another kind stays, to be named in an error."""
    if name in ("model/wte", "model/wpe"):
        return name.removeprefix("model/") + ".weight"
    parts = name.removeprefix("model/").split("/")
    layer = re.fullmatch(r"h(\d+)", parts[0])
    if parts[-1] not in ENDINGS or not (layer or parts[0] == "ln_f"):
        return name
    inside = ["h", layer[1], *parts[1:-1]] if layer else parts[:-1]
    return ".".join([*inside, ENDINGS[parts[-1]]])


def _without_leading_one(name: str, stored: Stored) -> Stored:
    """A 1×1 convolution is stored as [1, in, out]."""
    if not name.endswith("/w") or len(stored.shape) != 3 or stored.shape[0] != 1:
        return stored
    return Stored(stored.shape[1:], stored.dtype, lambda: stored.read()[0])
