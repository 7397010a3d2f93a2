"""A model with a method attached: forward, loss, generate, save and load, and the base back unharmed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipeft.files import (
    CheckpointError,
    check_keys,
    check_tensor,
    json_bytes,
    read_json,
    read_tensors,
    tensor_pieces,
    write_together,
)
from minipeft.generate import Prompts, at_rest, generate
from minipeft.gpt2 import GPT2
from minipeft.methods import Attachment, HardPrompt, Method, Prefix, Stack, method_of
from minipeft.methods.base import Doors, shared_peft_config, without_weights
from minipeft.methods.made_for import base_told, check_made_for
from minipeft.methods.prefix import keys_and_values
from minipeft.methods.weights import copied
from minipeft.sampling import Sampling

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
SHIPPED_ADAPTERS = Path(__file__).parent / "assets" / "prompts"


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter that ships, or the folder that was named. Raises FileNotFoundError if neither is."""
    shipped = SHIPPED_ADAPTERS / name
    if Path(name).is_dir():
        return Path(name)
    if name and shipped.is_dir() and shipped.parent == SHIPPED_ADAPTERS:
        return shipped
    ships = ", ".join(sorted(path.parent.name for path in SHIPPED_ADAPTERS.glob("*/adapter_config.json")))
    raise FileNotFoundError(f"{name} is neither a folder nor an adapter that ships ({ships}).")


def attach(model: "GPT2 | Tuned", method: Method, seed: int = 0) -> "Tuned":
    """Freeze `model` and attach `method` to it; `seed` draws the method's starting values.

    Raises ValueError if the method's settings do not fit the model, or something is attached to it already.
    """
    if isinstance(model, Tuned):
        raise ValueError(
            f"{model.method.name} is attached to this model already; to attach several methods, write "
            "mp.attach(model, mp.Stack((one, other))), or merge() the first and attach to what comes of it."
        )
    runs, attachment = method.attach_to(model, torch.Generator().manual_seed(seed))
    return Tuned(model, method, runs, attachment.to(model.device))


def load(folder: str | Path, model: GPT2) -> "Tuned":
    """The adapter in `folder`, ours or PEFT's, or one that ships (`find_adapter`), attached to `model`.

    Raises FileNotFoundError if a file is missing, CheckpointError if the files are damaged or made for another model.
    """
    folder = find_adapter(folder)
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config = read_json(config_path)
    method = method_of(config, model, config_path)
    if not weights_path.exists() and (pickled := folder / "adapter_model.bin").exists():
        raise CheckpointError(f"{pickled} is a pickle, which could run code; let PEFT save it again as safetensors.")
    tensors, about = read_tensors(weights_path)
    check_made_for(weights_path, about, model)
    try:  # whatever numbers the settings hold, they cost no memory until they are checked
        shapes = without_weights(method, model.config).adapter_shapes()
    except ValueError as error:
        raise CheckpointError(f"{config_path}: {error}") from None
    check_keys(weights_path, set(tensors), set(shapes))
    for name, shape in shapes.items():
        check_tensor(weights_path, name, tensors[name], shape)
    runs, attachment = method.attach_to(model, None)
    attachment.load_adapter_tensors(tensors)
    return Tuned(model, method, runs, attachment.to(model.device)).eval()


class Tuned(nn.Module):
    """A base model and a method's trainable part; made by `attach` and `load`."""

    def __init__(self, base: GPT2, method: Method, runs: GPT2, attachment: Attachment) -> None:
        super().__init__()
        self.method, self.attachment = method, attachment
        _freeze(base, self)
        # Not registered as submodules: the state of a tuned model is its attachment.
        self._models = (base, runs)
        self._disabled = False

    @property
    def base(self) -> GPT2:
        """The frozen model."""
        return self._models[0]

    @property
    def model(self) -> GPT2:
        """The model that runs: the base itself, unless the method changes weights; while disabled always the base."""
        return self._models[0 if self._disabled else 1]

    @contextmanager
    def disabled(self) -> Iterator["Tuned"]:
        """Within `with tuned.disabled():` everything is as if nothing were attached."""
        before, self._disabled = self._disabled, True
        try:
            yield self
        finally:
            self._disabled = before

    def doors(self) -> Doors:
        """What goes into the model's doors now: nothing while disabled."""
        return Doors() if self._disabled else self.attachment.doors()

    @property
    def room(self) -> int:
        """How many tokens fit: the model's positions without those that a prompt or prefix takes."""
        with torch.no_grad():
            doors = self.doors()
        prompt = 0 if doors.prompt is None else doors.prompt.shape[1]
        memory = 0 if doors.memory is None else doors.memory.length
        return self.base.config.n_positions - prompt - memory

    def forward(
        self, tokens: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each real token; none for prompt or prefix positions."""
        doors = self.doors()
        return self.model(tokens, attention_mask, prompt=doors.prompt, memory=doors.memory)

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
        *,
        only: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "N D"]:
        """The final hidden states of the real tokens: see `GPT2.hidden`."""
        doors = self.doors()
        return self.model.hidden(tokens, attention_mask, prompt=doors.prompt, memory=doors.memory, only=only)

    def loss(
        self,
        tokens: Int[Tensor, "B T"],
        labels: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the labels that are not -100: see `GPT2.loss`."""
        doors = self.doors()
        return self.model.loss(
            tokens, labels, attention_mask, prompt=doors.prompt, memory=doors.memory, label_smoothing=label_smoothing
        )

    def generate(self, prompts: Prompts, max_new_tokens: int = 64, **sampling: Any) -> Prompts:
        """Continue `prompts`; options are those of `Sampling`: temperature, top_k, top_p, seed. See `generate`."""
        return self.generate_with(prompts, Sampling(max_new_tokens=max_new_tokens, **sampling))

    def generate_with(self, prompts: Prompts, settings: Sampling | Sequence[Sampling]) -> Prompts:
        """Continue `prompts` as `settings` say: for all rows, or for each."""
        with torch.no_grad(), at_rest(self):
            doors = self.doors()
        if isinstance(self.method, HardPrompt) and not self._disabled:
            return _generate_around(self.model, self.method.around, prompts, settings)
        return generate(self.model, prompts, settings, prompt=doors.prompt, memory=doors.memory)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name."""
        return {name: p for name, p in self.attachment.named_parameters() if p.requires_grad}

    def num_trainable(self) -> int:
        """How many numbers training changes."""
        return sum(p.numel() for p in self.trainable_parameters().values())

    def num_kept(self) -> int:
        """How many numbers a saved adapter has; fewer than are trained where an MLP is folded away."""
        return sum(tensor.numel() for tensor in self.attachment.adapter_tensors().values())

    def save(self, folder: str | Path) -> None:
        """Write the adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`, both or neither.

        Raises OSError if the folder cannot be written.
        """
        config = {**shared_peft_config(self.method), **self.method.peft_config(self.base)}
        with torch.no_grad(), at_rest(self.attachment):
            weights = tensor_pieces(self.attachment.adapter_tensors(), base_told(self.base))
        write_together({Path(folder) / CONFIG_FILE: json_bytes(config), Path(folder) / WEIGHTS_FILE: weights})

    def detach(self) -> GPT2:
        """The base model back, bit-identical; once nothing is attached to it, as trainable as it was before."""
        _unfreeze(self.base, self)
        return self.base

    def train(self, mode: bool = True) -> "Tuned":
        """Training or evaluation mode, for the attachment and the model alike: dropout is on or off in both."""
        self._models[1].train(mode)
        return super().train(mode)

    def merge(self) -> GPT2:
        """A plain GPT2 that does the same: what LoRA or IA3 learned is put into a copy of the weights.

        Raises ValueError for methods that are no change of weights.
        """
        if reason := self.attachment.unmergeable():
            raise ValueError(f"{self.method.name} cannot be merged: {reason}.")
        merged = copied(self.base).eval()
        self.attachment.merge_into(merged)
        return merged

    @torch.no_grad()
    def compile(self) -> "Tuned":  # type: ignore[override]
        """The same function as a plain prefix: an MLP is folded away; a soft prompt becomes the keys and values it has.

        Exact, since in a causal model neither depends on the text behind it. Raises ValueError for other methods.
        """
        if isinstance(self.method, Stack):
            raise ValueError(
                "a stack cannot be one prefix; compile the prompt of a model that the rest was merged into."
            )
        with at_rest(self.attachment):
            doors, tensors = self.attachment.doors(), self.attachment.adapter_tensors()
        if doors.memory is not None:
            flat = tensors["prompt_embeddings"]
        elif doors.prompt is not None:
            flat = keys_and_values(self.model, prompt=doors.prompt)
        else:
            raise ValueError(
                f"{self.method.name} uses neither the input nor the memory door, so it cannot be a prefix."
            )
        compiled = attach(self.base, Prefix(length=flat.shape[0], reparam=None))
        compiled.attachment.load_adapter_tensors({"prompt_embeddings": flat})
        with at_rest(self.model):  # they share the base, which may be in training
            return compiled.eval()


@dataclass
class _Frozen:
    """What a base was before it was frozen, and who still needs it so."""

    requires_grad: dict[str, bool]
    training: bool
    holders: "WeakSet[Tuned]" = field(default_factory=WeakSet)


def _freeze(base: GPT2, holder: Tuned) -> None:
    if "_frozen" not in base.__dict__:
        base.__dict__["_frozen"] = _Frozen(
            {name: p.requires_grad for name, p in base.named_parameters()}, base.training
        )
    base.__dict__["_frozen"].holders.add(holder)
    base.requires_grad_(False)
    for parameter in base.parameters():
        parameter.grad = None


def _unfreeze(base: GPT2, holder: Tuned) -> None:
    frozen: _Frozen | None = base.__dict__.get("_frozen")
    if frozen is None:
        return
    frozen.holders.discard(holder)
    if not frozen.holders:
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(frozen.requires_grad[name])
        base.train(frozen.training)
        del base.__dict__["_frozen"]


def _generate_around(
    model: GPT2, around: Callable[[str], str], prompts: Prompts, settings: Sampling | Sequence[Sampling]
) -> Prompts:
    """Generation behind a hard prompt: the model reads the words, the reader gets the text and its continuation."""
    if isinstance(prompts, str):
        return prompts + generate(model, around(prompts), settings).removeprefix(around(prompts))
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], str):
        framed = [around(str(text)) for text in prompts]
        written = generate(model, framed, settings)
        return [str(t) + w.removeprefix(f) for t, f, w in zip(prompts, framed, written, strict=True)]
    raise ValueError("a hard prompt is put around text, so give it a text or a list of texts, not token ids.")
