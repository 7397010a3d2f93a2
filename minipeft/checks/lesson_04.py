"""Lesson 04: a public file's names and layouts, against the logits of `transformers`."""

from collections.abc import Callable

import torch
from torch import Tensor

from minipeft.checks.exercise import Exercise, require, transformers
from minipeft.config import GPT2Config
from minipeft.gpt2 import GPT2
from minipeft.methods.weights import LINEAR

Tensors = dict[str, Tensor]

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=24)


def judge(from_public: Callable[[Tensors], Tensors]) -> None:
    """A file as it is written today, then one as it was: names, shapes, numbers, and the model's logits."""
    today, expected, tokens = _reference()
    bare = {name.removeprefix("transformer."): tensor for name, tensor in today.items() if name != "lm_head.weight"}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(CONFIG.n_layer)}
    masks |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(CONFIG.n_layer)}
    for stored in (today, {**masks, **bare}):
        found = from_public({name: tensor.clone() for name, tensor in stored.items()})
        require(isinstance(found, dict), f"from_public must return a dict, but returned a {type(found).__name__}.")
        _names(found, set(bare))
        for name, tensor in bare.items():
            _numbers(name, found[name], tensor)
        model = GPT2(CONFIG).eval()
        model.load_state_dict(found)
        with torch.no_grad():
            difference = (model(tokens) - expected).abs().max()
        require(difference < 1e-5, f"the logits are off from those of transformers by {difference:.2g}.")


def _reference() -> tuple[Tensors, Tensor, Tensor]:
    """A small model of `transformers`, with numbers large enough to matter: its tensors, and logits for some tokens."""
    library = transformers()
    config = library.GPT2Config(bos_token_id=None, eos_token_id=None)
    for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
        setattr(config, name, getattr(CONFIG, name))
    theirs = library.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        tokens = torch.randint(CONFIG.vocab_size, (2, 9), generator=generator)
        logits = theirs(tokens).logits
    return {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}, logits, tokens


def _names(found: Tensors, expected: set[str]) -> None:
    require(
        not any(name.startswith("transformer.") for name in found),
        "some names still begin with transformer.; some files write that before every name, our model does not.",
    )
    require(
        "lm_head.weight" not in found,
        "lm_head.weight is still there: the head is tied, our model has no matrix of its own for it.",
    )
    masks = [name for name in found if name.endswith((".attn.bias", ".attn.masked_bias"))]
    require(not masks, f"{masks[0] if masks else ''} is still there: that is the causal mask, no weight.")
    missing = sorted(expected - set(found))
    require(
        not any(name.endswith("c_attn.bias") for name in missing),
        "h.0.attn.c_attn.bias is missing: it is a weight, but its name also ends in attn.bias, as the mask's does.",
    )
    require(not missing, f"{missing[0] if missing else ''} is missing.")
    unknown = sorted(set(found) - expected)
    require(not unknown, f"{unknown[0] if unknown else ''} is a name that our model does not have.")


def _numbers(name: str, found: Tensor, stored: Tensor) -> None:
    layer = name.removesuffix(".weight")
    if not (name.endswith(".weight") and layer.endswith(LINEAR)):
        turned = stored.dim() == 2 and found.shape == stored.T.shape
        require(not turned, f"{name} was transposed: it is a table with a row for each entry, not a linear layer.")
        require(found.shape == stored.shape and torch.equal(found, stored), f"{name} is not what stands in the file.")
        return
    expected = tuple(stored.T.shape)
    require(
        tuple(found.shape) == expected,
        f"{name} is {tuple(found.shape)}; the file has it as [in, out], our model wants [out, in], {expected}.",
    )
    if torch.equal(found, stored.T):
        return
    require(
        not torch.equal(found, stored),
        f"{name} was not transposed: it is square, so nothing complains, but it is stored as [in, out] as well.",
    )
    require(
        not torch.equal(found.flatten(), stored.flatten()),
        f"{name} was reshaped, which keeps the numbers in their old order; it must be transposed.",
    )
    require(False, f"{name} is not the transpose of what stands in the file.")


EXERCISE = Exercise(
    name="04",
    function="from_public",
    judge=judge,
    hints=(
        "Go through the file's names one by one, and decide for each of them: leave out, rename, transpose?",
        "name.removeprefix('transformer.') does nothing where there is no such prefix. tensor.T is the transpose.",
        "'h.0.attn.c_attn.bias' ends in 'attn.bias', and in '.attn.bias' it does not. endswith takes several endings "
        "at once: name.endswith(('a', 'b')).",
        "Four names in each block are linear layers; compare with their endings, not with their shapes.",
    ),
)
