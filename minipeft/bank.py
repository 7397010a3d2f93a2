"""One frozen model, many tasks: prompts of different tasks side by side in one batch.

Every prompt is held as the prefix that it is equal to: soft prompts and P-tuning are compiled, MLPs folded away. Rows
of a batch then differ only in the keys and values that stand before them, and a shorter prefix is padding in front.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipeft.attention import FixedMemory
from minipeft.files import (
    CheckpointError,
    check_keys,
    check_shape,
    check_tensor,
    json_bytes,
    open_safetensors,
    read_json,
    tensor_pieces,
    write_together,
)
from minipeft.formats.hub import safetensors_in
from minipeft.formats.stored import Stored
from minipeft.generate import Prompts, generate, stream_text, write
from minipeft.gpt2 import GPT2
from minipeft.methods.made_for import base_told, check_made_for
from minipeft.sampling import Sampling
from minipeft.tuned import Tuned, load

INDEX_FILE, PROMPTS_FILE = "bank.json", "bank.safetensors"
MOST_INDEX_BYTES = 100_000_000
"""Of a bank of a million prompts."""


@dataclass(frozen=True)
class Held:
    """One prompt of a bank: its task's name, the method that made it, positions and bytes that it takes."""

    task: str
    method: str
    length: int
    nbytes: int
    stored: Stored
    """Where its [P, 2·L·D] numbers are, in memory or in a mapped file."""


class PromptBank:
    """Many tasks' prompts for one model; a row of a batch gets what it would get alone with its own prompt."""

    def __init__(self, model: GPT2) -> None:
        """An empty bank for `model`, which is not changed, nor frozen."""
        self.model = model
        self._held: dict[str, Held] = {}

    def add(self, task: str, prompt: str | Path | Tuned) -> None:
        """Take in a tuned model, or the adapter in a folder (or one that ships, by its name), under a task's name.

        Raises ValueError if the name is taken or no name, if the prompt was tuned on another model, or its method is
        no prompt or prefix; FileNotFoundError if there is no such folder; and what `minipeft.load` raises.
        """
        self._check_free(task)
        tuned = prompt if isinstance(prompt, Tuned) else load(prompt, self.model)
        if tuned.base is not self.model:
            raise ValueError(f"the prompt for {task!r} was tuned on another model than this bank's.")
        method = tuned.method.name
        try:
            compiled = tuned.compile()
            flat = compiled.attachment.adapter_tensors()["prompt_embeddings"].detach().cpu().float().clone()
            compiled.detach()
        finally:
            if not isinstance(prompt, Tuned):
                tuned.detach()
        self._held[task] = _in_memory(task, method, flat)

    def remove(self, task: str) -> None:
        """Let a prompt go. Raises ValueError if there is none of that name."""
        del self._held[self._known(task)]

    def rename(self, task: str, to: str) -> None:
        """Give a prompt another name; its place in the list stays.

        Raises ValueError if it is not there, or the new name is taken or none.
        """
        self._known(task)
        self._check_free(to)
        self._held = {
            to if name == task else name: replace(held, task=to) if name == task else held
            for name, held in self._held.items()
        }

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, task: object) -> bool:
        return task in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def list(self) -> "Sequence[Held]":
        """What is held: name, method, positions and bytes of each, in the order in which they came."""
        return tuple(self._held.values())

    @property
    def nbytes(self) -> int:
        """Bytes that all of them take, in memory or in the file."""
        return sum(held.nbytes for held in self._held.values())

    def __call__(
        self,
        tokens: Int[Tensor, "B T"],
        tasks: Sequence[str | None],
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each real token, each row behind its task's prompt; None: behind nothing.

        Raises ValueError for a name that is not there, or if there are not as many names as rows.
        """
        return self.model(tokens, attention_mask, memory=self.memory(tasks, len(tokens)))

    def generate(
        self, prompts: Prompts, tasks: Sequence[str | None], max_new_tokens: int = 64, **sampling: Any
    ) -> Prompts:
        """Continue each prompt behind its task's; options are those of `Sampling`, or `sampling=[...]`, one a row."""
        return generate(self.model, prompts, **self._how(prompts, tasks, max_new_tokens, sampling))

    def write(self, prompts: Prompts, tasks: Sequence[str | None], max_new_tokens: int = 64, **sampling: Any) -> Any:
        """As `generate`, but the rows themselves: see `minipeft.write`; with `log_probabilities=True` theirs, too."""
        noted = sampling.pop("log_probabilities", False)
        how = self._how(prompts, tasks, max_new_tokens, sampling)
        return write(self.model, prompts, **how, log_probabilities=noted)

    def stream(self, text: str, task: str | None, max_new_tokens: int = 64, **sampling: Any) -> Iterator[str]:
        """What is written behind one text, piece by piece."""
        return stream_text(self.model, text, **self._how(text, [task], max_new_tokens, sampling))

    def memory(self, tasks: Sequence[str | None], rows: int) -> FixedMemory | None:
        """The prefixes of a batch, the shorter ones with padding in front; None if no row has one."""
        if len(tasks) != rows:
            raise ValueError(f"there are {len(tasks)} tasks for {rows} rows; give a name, or None, for each.")
        flats = {task: self._numbers(self._known(task)) for task in dict.fromkeys(tasks) if task is not None}
        if not flats:
            return None
        c, like = self.model.config, self.model.wte.weight
        most = max(map(len, flats.values()))
        alike = len(flats) == 1 and None not in tasks
        kv = like.new_zeros(1 if alike else rows, most, c.n_layer, 2, c.n_head, c.head_size)
        real = torch.zeros(rows, most, dtype=torch.bool, device=like.device)
        for row, task in enumerate(tasks[:1] if alike else tasks):
            if task is not None:
                flat = flats[task]
                kv[row, most - len(flat) :] = flat.view(len(flat), *kv.shape[2:]).to(like)
                real[row, most - len(flat) :] = True
        keys, values = kv.permute(3, 2, 0, 4, 1, 5)  # [B, P, L, 2, H, Dh] -> 2 × [L, B, H, P, Dh]
        return FixedMemory(keys, values, None if alike or bool(real.all()) else real)

    def save(self, folder: str | Path) -> None:
        """Write all prompts into one file, and an index beside it; both or neither.

        Raises OSError if the folder cannot be written.
        """
        keys = {f"{number:07d}": held for number, held in enumerate(self._held.values())}
        prompts = [
            {"task": held.task, "key": key, "method": held.method, "length": held.length} for key, held in keys.items()
        ]
        index = json_bytes({"minipeft_bank": 1, "prompts": prompts})
        pieces = tensor_pieces({key: held.stored.read() for key, held in keys.items()}, base_told(self.model))
        write_together({Path(folder) / INDEX_FILE: index, Path(folder) / PROMPTS_FILE: pieces})

    @classmethod
    def load(cls, folder: str | Path, model: GPT2) -> "PromptBank":
        """The bank in `folder`; its prompts stay in the file, mapped, until a batch asks for them.

        Raises FileNotFoundError, or CheckpointError if the files are damaged or made for another model.
        """
        path, weights = Path(folder) / INDEX_FILE, Path(folder) / PROMPTS_FILE
        told = _index(path)
        with open_safetensors(weights) as file:
            check_made_for(weights, dict(file.metadata() or {}), model)
        tensors = safetensors_in(weights)
        check_keys(weights, set(tensors), {prompt["key"] for prompt in told})
        width = 2 * model.config.n_layer * model.config.n_embd
        bank = cls(model)
        for prompt in told:
            stored = tensors[prompt["key"]]
            check_shape(weights, prompt["key"], stored.shape, stored.dtype, (prompt["length"], width))
            nbytes = prompt["length"] * width * stored.dtype.itemsize
            bank._held[prompt["task"]] = Held(prompt["task"], prompt["method"], prompt["length"], nbytes, stored)
        for stored in list(tensors.values())[:1]:  # maps the file as it is now, whoever writes another one later
            stored.read()
        bank._path = weights
        return bank

    _path: Path = Path("a prompt in memory")
    """Of the file that prompts are read from, for messages."""

    def _numbers(self, task: str) -> Float[Tensor, "P KV"]:
        held = self._held[task]
        flat = held.stored.read()
        check_tensor(self._path, task, flat, held.stored.shape)
        return flat

    def _how(
        self, prompts: Any, tasks: Sequence[str | None], max_new_tokens: int, sampling: Mapping[str, Any]
    ) -> dict[str, Any]:
        if "sampling" in sampling and (len(sampling) > 1 or max_new_tokens != Sampling.max_new_tokens):
            raise ValueError("sampling=[...] says all settings of each row; give no others beside it.")
        one = isinstance(prompts, str) or (len(prompts) > 0 and not hasattr(prompts[0], "__len__"))
        how = sampling["sampling"] if "sampling" in sampling else Sampling(max_new_tokens, **sampling)
        return {"sampling": how, "memory": self.memory(tasks, 1 if one else len(prompts))}

    def _known(self, task: str) -> str:
        if task not in self._held:
            near = ", ".join(list(self._held)[:5]) or "nothing"
            more = " …" if len(self) > 5 else ""
            raise ValueError(f"there is no prompt for {task!r} in this bank; it holds {near}{more}.")
        return task

    def _check_free(self, task: str) -> None:
        if not isinstance(task, str) or not task.strip():
            raise ValueError(f"a prompt's name must be a text that is not empty, got {task!r}.")
        if task in self._held:
            raise ValueError(f"this bank holds a prompt for {task!r} already; remove or rename it first.")


def _in_memory(task: str, method: str, flat: Float[Tensor, "P KV"]) -> Held:
    return Held(task, method, len(flat), flat.nbytes, Stored(tuple(flat.shape), flat.dtype, lambda: flat))


def _index(path: Path) -> "list[dict[str, Any]]":
    """The prompts that an index names, each with task, key, method and length."""
    told = read_json(path, MOST_INDEX_BYTES)
    try:
        if told["minipeft_bank"] != 1:
            raise CheckpointError(f"{path} is of a later kind ({told['minipeft_bank']!r}) than this minipeft reads.")
        prompts = [dict(prompt) for prompt in told["prompts"]]
        for prompt in prompts:
            kinds = {"task": str, "key": str, "method": str, "length": int}
            if not all(isinstance(prompt[name], kind) for name, kind in kinds.items()):
                raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no index of a bank, or a damaged one.") from None
    names = [prompt["task"] for prompt in prompts]
    if len({*names}) < len(names):
        raise CheckpointError(f"{path} names a task twice.")
    return prompts
