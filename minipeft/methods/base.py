"""What every method is: a configuration that a person writes, and the trainable part it attaches to one model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minipeft.attention import FixedMemory
from minipeft.config import LARGEST, GPT2Config
from minipeft.files import CheckpointError
from minipeft.gpt2 import GPT2

COMMON_TOKENS = 5000
"""GPT-2's merges stand in order of frequency, so its lowest ids are its most common tokens."""


INPUT, MEMORY = "the input door", "the memory door"


@dataclass(frozen=True)
class Doors:
    """What a method sends through the input door and the memory door of a forward pass."""

    prompt: Float[Tensor, "1 P D"] | None = None
    memory: FixedMemory | None = None


class Attachment(nn.Module):
    """The part of a method that is trained: its parameters are what training changes, and nothing else is."""

    def doors(self) -> Doors:
        """What goes into the model's doors now; called once per forward pass."""
        return Doors()

    def adapter_tensors(self) -> dict[str, Tensor]:
        """What is kept after training, under the names of PEFT's `adapter_model.safetensors`."""
        raise NotImplementedError

    def adapter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes that `load_adapter_tensors` needs."""
        return {name: tuple(tensor.shape) for name, tensor in self.adapter_tensors().items()}

    @torch.no_grad()
    def load_adapter_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors that `adapter_shapes` has checked: into the parameters that `adapter_tensors` gives."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.parameters()}
        for name, tensor in self.adapter_tensors().items():
            assert tensor.untyped_storage().data_ptr() in own, f"{name} is computed, so nothing can be loaded into it"
            tensor.copy_(tensors[name])

    def merge_into(self, model: GPT2) -> None:
        """Change the weights of `model`, a copy of the base, to what the method makes of them; see `unmergeable`."""
        raise NotImplementedError

    def unmergeable(self) -> str | None:
        """Why it cannot be merged into weights; None if it can."""
        only_here = type(self).merge_into is Attachment.merge_into
        return "it is no change of the model's weights" if only_here else None


@runtime_checkable
class Method(Protocol):
    """One way to adapt a frozen GPT-2; each is a frozen dataclass of its settings."""

    name: ClassVar[str]
    """What the command line calls it."""
    peft_type: ClassVar[str]
    """What `adapter_config.json` calls it."""
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, Attachment]:
        """The model to run (the same one, unless the method changes its weights) and the trainable part.

        `generator` draws the starting values; None where they are to be replaced at once.
        Raises ValueError if the settings do not fit the model.
        """
        ...

    def places(self, model: GPT2) -> set[str]:
        """What it changes: the doors it uses (`INPUT`, `MEMORY`) and modules by name, such as "h.0.attn.c_attn"."""
        ...

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """The settings as PEFT writes them, without what all methods share."""
        ...

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "Method":
        """The method that wrote such settings. Raises CheckpointError if they do not fit the model."""
        ...


def without_weights(method: Method, config: GPT2Config) -> Attachment:
    """The trainable part that a GPT-2 of this shape would get: its names and shapes, and no memory for either.

    Raises ValueError if the settings do not fit the shape.
    """
    with torch.device("meta"):
        return method.attach_to(GPT2(config), None)[1]


def shared_peft_config(method: Method) -> dict[str, Any]:
    """The settings that PEFT writes for every kind of adapter."""
    return {
        "peft_type": method.peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "revision": None,
        "auto_mapping": None,
    }


def prompt_learning_config(model: GPT2, length: int) -> dict[str, Any]:
    """What PEFT writes about the base for prompts and prefixes."""
    return {
        "num_virtual_tokens": length,
        "token_dim": model.config.n_embd,
        "num_layers": model.config.n_layer,
        "num_attention_heads": model.config.n_head,
        "num_transformer_submodules": 1,
    }


def read_prompt_length(config: dict[str, Any], model: GPT2, path: Path) -> int:
    """`num_virtual_tokens`, with everything that the file says about its base held against `model`.

    Raises CheckpointError that names the file and the mismatch.
    """
    length = read_count(config, "num_virtual_tokens", path)
    for key, needed in prompt_learning_config(model, length).items():
        found = config.get(key)
        if found is not None and found != needed:
            raise CheckpointError(
                f"{path} was made for another model: its {key} is {found!r}, this model's is {needed}."
            )
    return length


def read_count(config: dict[str, Any], key: str, path: Path) -> int:
    """A whole number of at least 1 from a file. Raises CheckpointError that names the file."""
    try:
        return check_count(key, config.get(key))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def check_count(name: str, value: object) -> int:
    """`value`, if it is a whole number of at least 1, and no absurd one. Raises ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    if value > LARGEST:
        raise ValueError(f"{name} is {value}; more than {LARGEST:,} make no sense.")
    return value


def check_dropout(dropout: float) -> None:
    """Raise ValueError unless it is a share that can be dropped."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}.")


@contextmanager
def seeded_by(generator: torch.Generator | None) -> Iterator[None]:
    """PyTorch's layers start from its global seed: one drawn from `generator`, and afterwards as it was before."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        yield


def check_length(length: int, model: GPT2) -> None:
    """Raise ValueError unless `length` positions leave room for text."""
    check_count("length", length)
    if length >= model.config.n_positions:
        raise ValueError(
            f"length {length} leaves no room for text: this model has {model.config.n_positions} positions in all."
        )


def starting_tokens(init: str, length: int, model: GPT2, generator: torch.Generator | None) -> list[int]:
    """The tokens that "vocab" (random common ones) or "text:…" (a text, repeated or cut) start from: `length` ids.

    Source: Lester et al. 2021, §2.1.
    """
    if init == "vocab":
        common = min(COMMON_TOKENS, model.config.vocab_size)
        return torch.randint(common, (length,), generator=generator).tolist()
    ids = model.tokenizer.encode(init.removeprefix("text:"))
    if not ids:
        raise ValueError('init is "text:" without a text; write for example init="text:This movie review is".')
    return (ids * (length // len(ids) + 1))[:length]
