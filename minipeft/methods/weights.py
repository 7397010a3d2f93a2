"""The weights door: a model whose linear layers a method may replace, while the base stays as it is."""

import copy
import re
from collections.abc import Iterable

import torch
from torch import nn

from minipeft.gpt2 import GPT2

LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""The linear layers of a block, by their GPT-2 names."""
_ONE = re.compile(r"h\.(\d+)\.(.+)")


def shadow(model: GPT2) -> GPT2:
    """The same model with modules of its own and the very same parameters: what is replaced in it, the base keeps."""
    memo: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    frozen = model.__dict__.get("_frozen")  # who holds the base frozen is none of the shadow's business
    if frozen is not None:
        memo[id(frozen)] = ""
    twin = copy.deepcopy(model, memo)
    twin.__dict__.pop("_frozen", None)
    if model.blocks[0]._compiled_call_impl is not None:  # a copy is not compiled
        twin.use_compile()
    if twin.step is not None:  # it is the base's: a step knows the model that it was made of
        twin.use_compiled_steps()
    return twin


def copied(model: GPT2, dtype: torch.dtype | None = None) -> GPT2:
    """The same model with weights of its own, none of them frozen; `dtype` None keeps the base's."""
    twin = shadow(model)
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                # Row by row, however the base lies in memory: optimizer moments read from a file must lie likewise.
                own = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device=parameter.device)
                module._parameters[name] = nn.Parameter(own.copy_(parameter.detach()))
    return twin


def chosen(model: GPT2, targets: Iterable[str], names: Iterable[str] = LINEAR) -> list[tuple[int, str]]:
    """(layer, name) of each target: "attn.c_attn" is that of every block, "h.3.attn.c_attn" one alone.

    Raises ValueError, with the names there are, if a target is none of them.
    """
    found = []
    for target in targets:
        one = _ONE.fullmatch(target)
        name = one[2] if one else target
        layers = [int(one[1])] if one else list(range(model.config.n_layer))
        if name not in names or layers[-1] >= model.config.n_layer:
            raise ValueError(
                f"{target!r} is no layer of this model; the names are {', '.join(names)}, in all "
                f"{model.config.n_layer} blocks, or in one: h.0.{next(iter(names))}."
            )
        found += [(layer, name) for layer in layers]
    return sorted(set(found))


def peft_name(layer: int, name: str) -> str:
    """What PEFT calls a module of a block in its files."""
    return f"base_model.model.transformer.h.{layer}.{name}"


def linear(model: GPT2, layer: int, name: str) -> nn.Linear:
    """The linear layer `name` of a block."""
    found = model.blocks[layer].get_submodule(name)
    if not isinstance(found, nn.Linear):
        raise ValueError(f"h.{layer}.{name} was replaced by another method already; two cannot share one layer.")
    return found


def replace(model: GPT2, layer: int, name: str, module: nn.Module) -> None:
    """Put `module` where the linear layer `name` of a block was."""
    parent, _, child = name.rpartition(".")
    setattr(model.blocks[layer].get_submodule(parent), child, module)


def modules_named(found: object, model: GPT2) -> list[str]:
    """The linear layers that PEFT's `target_modules` means, as "h.0.attn.c_attn": a list of endings, or a pattern.

    Raises ValueError if it is neither, or means none.
    """
    everything = [f"h.{layer}.{name}" for layer in range(model.config.n_layer) for name in LINEAR]
    if found == "all-linear":
        return everything
    if isinstance(found, str):
        try:
            pattern = re.compile(found)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"target_modules {found[:100]!r} is no regular expression: {error}.") from None
        names = [name for name in everything if pattern.fullmatch(f"transformer.{name}")]
    elif isinstance(found, list) and all(isinstance(name, str) for name in found):
        names = [name for name in everything if any(_ends(f"transformer.{name}", ending) for ending in found)]
    else:
        raise ValueError(f"target_modules is {found!r}; it must be a list of names or a pattern.")
    if not names:
        raise ValueError(f"target_modules {found!r} names no linear layer of a GPT-2; there are {', '.join(LINEAR)}.")
    return names


def shortened(names: list[tuple[int, str]], model: GPT2) -> tuple[str, ...]:
    """Targets that mean these layers: a bare name where every block has it."""
    targets: list[str] = []
    for name in dict.fromkeys(name for _, name in names):
        layers = [layer for layer, other in names if other == name]
        targets += [name] if len(layers) == model.config.n_layer else [f"h.{layer}.{name}" for layer in layers]
    return tuple(targets)


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)
