"""Which model an adapter was trained on: told in its file, and held against the model it is loaded into.

PEFT's files tell it only of prompts and prefixes, and only the shape; an adapter on another model of the same shape is
noise. So ours carry the shape and a few weights of the base in the metadata, which PEFT passes over.
"""

import json
from pathlib import Path
from typing import Any

import torch

from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2

KEY = "base_model"
SAMPLED = 16
TOLERANCE = 0.05
"""Half precision moves a weight by up to 0.4 %, some more training by a few; another model's have no relation."""


def base_told(model: GPT2) -> dict[str, str]:
    """The metadata of a file that is made for `model`."""
    return {KEY: json.dumps({**_shape(model), "weights": [float(f"{weight:.4g}") for weight in _sample(model)]})}


def check_made_for(path: Path, about: dict[str, str], model: GPT2) -> None:
    """Hold the metadata of the file `path` against `model`; files that tell nothing, as PEFT's, pass.

    Raises CheckpointError that names the file and the mismatch.
    """
    if KEY not in about:
        return
    told = _read(path, about[KEY])
    for name, needed in _shape(model).items():
        if told.get(name) != needed:
            raise CheckpointError(
                f"{path} was made for another model: its {name} is {told.get(name)!r}, this model's is {needed}."
            )
    weights, here = told["weights"], _sample(model)
    most = max(map(abs, here), default=0.0)
    near = all(abs(a - b) <= TOLERANCE * most for a, b in zip(weights, here, strict=False))
    if not near or len(weights) != len(here):
        raise CheckpointError(
            f"{path} was made for another model of the same shape: its token embeddings are not this model's."
        )


def _shape(model: GPT2) -> dict[str, int]:
    return {name: getattr(model.config, name) for name in ("n_layer", "n_head", "n_embd")}


@torch.no_grad()
def _sample(model: GPT2) -> list[float]:
    """One number each of the first tokens' embeddings: they stay where they are when a vocabulary grows."""
    return model.wte.weight[:SAMPLED].diagonal().float().tolist()


def _read(path: Path, text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
        if not all(isinstance(weight, float | int) for weight in told["weights"]):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"{path}: what its metadata say of {KEY} cannot be read; is the file damaged?") from None
    return dict(told)
