"""Lesson 10: a soft prompt's keys and values, and rows of unlike prefixes in one batch, against `transformers`."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minipeft.attention import FixedMemory
from minipeft.checks.exercise import Exercise, require, transformers
from minipeft.config import GPT2Config
from minipeft.gpt2 import GPT2

L, H, D, P, T, V = 3, 2, 16, 5, 4, 24
Dh = D // H
LENGTHS = (2, 5, 0, 3)
"""Of the prefixes of a batch; the third row has none, the longest does not come first."""
Prefixes = Sequence[tuple[Tensor, Tensor]]


def judge_compile(compile_prompt: Callable[..., Any]) -> None:
    """The cache that `transformers` has after reading the prompt alone."""
    model, generator = _model()
    prompt = torch.randn(P, D, generator=generator)
    found = _called(compile_prompt, model, (prompt.clone(),))
    if isinstance(found, Tensor) and found.shape[:1] == (2,):
        found = tuple(found)  # one tensor of two unpacks as a pair does
    require(
        isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, Tensor) for part in found),
        "compile_prompt must return two tensors: the keys and the values.",
    )
    for name, part in zip(("keys", "values"), found, strict=True):
        require(
            tuple(part.shape) == (L, H, P, Dh),
            f"the {name} are {tuple(part.shape)}; they must be [L, H, P, Dh], {(L, H, P, Dh)}.{_shaped(part)}",
        )
    keys, values = (part.detach().float() for part in found)
    expected = _read_by_transformers(model, prompt)
    if _close(keys, expected[0]) and _close(values, expected[1]):
        return
    _name_the_mistake((keys, values), expected, model, prompt)


def _name_the_mistake(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], model: GPT2, x: Tensor) -> None:
    where = model.wpe(torch.arange(P))
    require(not (_close(found[0], expected[1]) and _close(found[1], expected[0])), "the keys and values are exchanged.")
    for mistake, wrong in (
        (
            "the prompt has no positions: wpe(0 … P - 1) is added to it as to tokens. Without it everything runs, and "
            "the text stands behind another prompt than the one that was trained.",
            _made(model, x),
        ),
        (
            "the prompt's positions begin at P; those are the text's. The prompt has 0 … P - 1.",
            _made(model, x + model.wpe(torch.arange(P, 2 * P))),
        ),
        ("c_attn was given x itself; in a block it reads ln_1(x).", _made(model, x + where, norm=False)),
        (
            "every block made its keys of the same x: what goes into a block is what came out of the one before.",
            _made(model, x + where, onwards=False),
        ),
        (
            "each block's keys are made of what comes out of it; take them before x goes through the block.",
            _made(model, x + where, after=True),
        ),
        (
            "a vector of the prompt sees those after it: the prompt is read causally, as text is.",
            _made(model, x + where, mask=torch.ones(1, 1, P, P, dtype=torch.bool)),
        ),
        (
            "the vectors of the prompt do not see each other: read them as one row, [1, P, D].",
            _made(model, x + where, mask=torch.eye(P, dtype=torch.bool)[None, None]),
        ),
        (
            "c_attn gives queries, keys and values, in this order; you took its first two parts.",
            _made(model, x + where, parts=(0, 1)),
        ),
    ):
        require(not (_close(found[0], wrong[0]) and _close(found[1], wrong[1])), mistake)
    mixed = [part.transpose(1, 2).reshape(L, H, P, Dh) for part in expected]
    require(
        not (_close(found[0], mixed[0]) and _close(found[1], mixed[1])),
        "the shape is right and the numbers are mixed up: cut the D numbers of a vector into heads first, "
        "unflatten(-1, (H, -1)), and then exchange the dimensions of places and heads.",
    )
    block = next(b for b in range(L) if not all(_close(f[b], e[b]) for f, e in zip(found, expected, strict=True)))
    require(
        False, f"from block {block} on, keys or values are not those of transformers' cache (the first block is 0)."
    )


def _made(
    model: GPT2,
    x: Tensor,
    mask: Tensor | None = None,
    norm: bool = True,
    onwards: bool = True,
    after: bool = False,
    parts: tuple[int, int] = (1, 2),
) -> tuple[Tensor, Tensor]:
    """What a mistake makes of embedded vectors [P, D]."""
    x, made = x[None], []
    for layer, block in enumerate(model.blocks):
        through = block(x, mask, None, layer)
        own = through if after else x
        qkv = block.attn.c_attn(block.ln_1(own) if norm else own)[0].chunk(3, dim=-1)
        made.append([qkv[part].unflatten(-1, (H, Dh)).transpose(0, 1) for part in parts])
        x = through if onwards else x
    keys, values = zip(*made, strict=True)
    return torch.stack(keys), torch.stack(values)


def _shaped(part: Tensor) -> str:
    """What may have led to this shape."""
    shape = tuple(part.shape)
    if shape == (L, 1, H, P, Dh):
        return " Leave out the dimension of the batch."
    if shape == (L, P, H, Dh):
        return " Exchange the dimensions of places and heads."
    if shape[-2:] == (P, D):
        return " Cut the D numbers of a vector into H heads."
    if shape in ((L, H, P + 1, Dh), (L, H, P + T, Dh)):
        return " Only the prompt's places are wanted."
    if shape == (H, P, Dh):
        return " Every block has its own."
    return ""


def judge_serve(serve: Callable[..., Any]) -> None:
    """Each row as `transformers` has it alone behind its own prefix; first a batch without padding, then one with."""
    model, generator = _model()
    drawn = torch.randn(2, L, len(LENGTHS), H, max(LENGTHS), Dh, generator=generator)
    for lengths in ((max(LENGTHS),) * 2, LENGTHS):
        prefixes = [
            (drawn[0, :, row, :, :length].clone(), drawn[1, :, row, :, :length].clone())
            for row, length in enumerate(lengths)
        ]
        tokens = torch.randint(V, (len(lengths), T), generator=generator)
        copies = [(keys.clone(), values.clone()) for keys, values in prefixes]
        with _batches_in(model) as batches:
            found = _called(serve, model, (copies, tokens.clone()))
        require(isinstance(found, Tensor), f"serve must return a tensor, not a {type(found).__name__}.")
        shape = (len(lengths), T, V)
        require(
            tuple(found.shape) == shape,
            f"the logits are {tuple(found.shape)}; they must be [B, T, V], {shape}: one for each token of the text.",
        )
        found = found.detach().float()
        expected = _alone_by_transformers(model, prefixes, tokens)
        if not _close(found, expected):
            _name_what_a_row_saw(found, expected, model, prefixes, tokens)
        require(
            batches == [len(lengths)],
            f"the logits are right, and the first block was called with {' and '.join(map(str, batches))} rows: all "
            f"{len(lengths)} are to go through together, once.",
        )


@contextmanager
def _batches_in(model: GPT2) -> Iterator[list[int]]:
    """With how many rows the first block is called."""
    seen: list[int] = []
    handle = model.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


def _name_what_a_row_saw(found: Tensor, expected: Tensor, model: GPT2, prefixes: Prefixes, tokens: Tensor) -> None:
    lengths = [keys.shape[2] for keys, _ in prefixes]
    wrong = [row for row in range(len(tokens)) if not _close(found[row], expected[row])]
    unlike = len(set(lengths)) > 1
    slots_seen = (
        "a row sees the empty slots of a shorter prefix: keys of zeros still take their share of the softmax. Which "
        "slots are real differs from row to row, so the mask must be [B, 1, T, S]. Alone, no row would show it."
    )
    widest = (
        "the positions of all rows begin behind the longest prefix; padding takes no position, and a row's text begins "
        "behind its own prefix."
    )
    first = [prefixes[0]] * len(prefixes)
    without = [(keys[:, :, :0], values[:, :, :0]) for keys, values in prefixes]
    for mistake, made in (
        (slots_seen, _served(model, prefixes, tokens, hide=False)),
        (widest, _served(model, prefixes, tokens, start="widest")),
        (f"two things. First: {slots_seen} Second: {widest}", _served(model, prefixes, tokens, "widest", hide=False)),
        (
            "the text's positions begin at zero; its first token has as many before it as its prefix is long.",
            _served(model, prefixes, tokens, start="zero"),
        ),
        ("every row got the first row's prefix.", _served(model, first, tokens)),
        (
            "the rows got each other's prefixes: the last row's went to the first.",
            _served(model, prefixes[::-1], tokens),
        ),
        (
            "that is the bare model in every row: were the prefixes left out, or all cut to the shortest?",
            _served(model, without, tokens),
        ),
        ("a token sees the tokens after it.", _served(model, prefixes, tokens, corner="none")),
        (
            "the mask starts in the upper left corner: the first token sees one slot of memory, and not itself.",
            _served(model, prefixes, tokens, corner="upper left"),
        ),
        (
            "the prefixes stand at one end of the slots, and the mask hides that end: put both at the same one.",
            _served(model, prefixes, tokens, other_end=True),
        ),
        ("the keys and values are exchanged.", _served(model, [(v, k) for k, v in prefixes], tokens)),
    ):
        require(not _close(found, made), mistake)
    row = wrong[0]
    company = "others of other lengths" if unlike else "another as long"
    require(
        False,
        f"row {row}, with a prefix of {lengths[row]} beside {company}, does not get what transformers gives it alone.",
    )


def _served(
    model: GPT2,
    prefixes: Prefixes,
    tokens: Tensor,
    start: str = "own",
    hide: bool = True,
    corner: str = "lower right",
    other_end: bool = False,
) -> Tensor:
    """What a mistake makes of a batch."""
    B, most = len(tokens), max(keys.shape[2] for keys, _ in prefixes)
    keys, values = torch.zeros(2, L, B, H, most, Dh)
    real = torch.ones(B, most + T, dtype=torch.bool)
    for row, (k, v) in enumerate(prefixes):
        empty = most - k.shape[2]
        keys[:, row, :, empty:], values[:, row, :, empty:] = k, v
        real[row, :empty] = False
        if other_end:
            real[row, :most] = real[row, :most].flip(0)
    before = {"own": real.sum(dim=1, keepdim=True) - T, "widest": torch.tensor(most), "zero": torch.tensor(0)}[start]
    query, key = torch.arange(T)[:, None], torch.arange(most + T)[None, :]
    last = {"lower right": query + most, "upper left": query, "none": torch.tensor(most + T)}[corner]
    mask = (key <= last)[None, None].expand(B, 1, T, -1)
    if hide:
        mask = mask & real[:, None, None]
    memory, x = FixedMemory(keys, values), model.wte(tokens) + model.wpe(before + torch.arange(T))
    for layer, block in enumerate(model.blocks):
        x = block(x, mask, memory, layer)
    return model.logits(model.ln_f(x))


def _model() -> tuple[GPT2, torch.Generator]:
    """A frozen small model with numbers large enough to matter; and what draws the rest."""
    generator = torch.Generator().manual_seed(0)
    model = GPT2(GPT2Config(n_layer=L, n_head=H, n_embd=D, n_positions=16, vocab_size=V)).eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model, generator


def _called(answer: Callable[..., Any], model: GPT2, given: tuple[Any, ...]) -> Any:
    """What an answer gives. Raises Mistake if it changes the model."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = answer(model, *given)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    require(not changed, f"{changed[0] if changed else ''} of the model was changed; the model must stay as it is.")
    return found


def _theirs(model: GPT2) -> Any:
    """Their model with our weights, through files."""
    library = transformers()
    library.utils.logging.disable_progress_bar()  # a model of a few kilobytes needs none
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return library.GPT2LMHeadModel.from_pretrained(folder).eval()


@torch.no_grad()
def _read_by_transformers(model: GPT2, prompt: Tensor) -> tuple[Tensor, Tensor]:
    cache = _theirs(model)(inputs_embeds=prompt[None], use_cache=True).past_key_values
    return torch.cat([layer.keys for layer in cache.layers]), torch.cat([layer.values for layer in cache.layers])


@torch.no_grad()
def _alone_by_transformers(model: GPT2, prefixes: Prefixes, tokens: Tensor) -> Tensor:
    theirs, rows = _theirs(model), []
    for (keys, values), row in zip(prefixes, tokens, strict=True):
        cache = transformers().DynamicCache()
        for layer in range(L if keys.shape[2] else 0):
            cache.update(keys[layer][None], values[layer][None], layer)
        rows.append(theirs(row[None], past_key_values=cache).logits)
    return torch.cat(rows)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


COMPILE = Exercise(
    name="10a",
    function="compile_prompt",
    judge=judge_compile,
    hints=(
        "The prompt goes through the model like a text: add model.wpe(torch.arange(P)), make it [1, P, D], and send it "
        "through model.blocks one after another.",
        "Before x goes through a block, block.attn.c_attn(block.ln_1(x)) is [1, P, 3 D]: queries, keys and values side "
        "by side. chunk(3, dim=-1) takes them apart.",
        "k[0].unflatten(-1, (H, -1)) is [P, H, Dh]; transpose(0, 1) makes it [H, P, Dh]. Stack those of all blocks.",
    ),
)

SERVE = Exercise(
    name="10b",
    function="serve",
    judge=judge_serve,
    hints=(
        "Make keys and values of zeros, [L, B, H, most, Dh], and real of False, [B, most + T]. Row by row, write the "
        "prefix into the last slots, keys[:, row, :, most - P :], and mark these and the text's in real.",
        "A token's position is the number of real places before it: (real.cumsum(dim=1) - 1)[:, most:], [B, T].",
        "lower_right_mask(T, most + T, real) is the mask, FixedMemory(keys, values) the memory; each block takes "
        "block(x, mask, memory, layer). Then model.logits(model.ln_f(x)).",
    ),
)
