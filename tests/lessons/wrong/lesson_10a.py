"""Wrong ways to compile a soft prompt."""

import torch

from minipeft.attention import lower_right_mask
from tests.lessons.wrong import fails_with


def cut(qkv, heads):
    return [part[0].unflatten(-1, (heads, -1)).transpose(0, 1) for part in qkv.chunk(3, dim=-1)]


def made(model, x, mask=None):
    keys, values = [], []
    for layer, block in enumerate(model.blocks):
        _, k, v = cut(block.attn.c_attn(block.ln_1(x)), model.config.n_head)
        keys.append(k)
        values.append(v)
        x = block(x, mask, None, layer)
    return torch.stack(keys), torch.stack(values)


def embedded(model, prompt, start=0):
    return (prompt + model.wpe(torch.arange(start, start + len(prompt))))[None]


@fails_with("the prompt has no positions")
def without_positions(model, prompt):
    return made(model, prompt[None])


@fails_with("positions begin at P; those are the text's")
def positions_of_the_text(model, prompt):
    return made(model, embedded(model, prompt, start=len(prompt)))


@fails_with(r"c_attn was given x itself; in a block it reads ln_1\(x\)")
def without_layer_norm(model, prompt):
    x, keys, values = embedded(model, prompt), [], []
    for layer, block in enumerate(model.blocks):
        _, k, v = cut(block.attn.c_attn(x), model.config.n_head)
        keys.append(k)
        values.append(v)
        x = block(x, None, None, layer)
    return torch.stack(keys), torch.stack(values)


@fails_with("every block made its keys of the same x")
def never_through_a_block(model, prompt):
    x = embedded(model, prompt)
    cuts = [cut(block.attn.c_attn(block.ln_1(x)), model.config.n_head) for block in model.blocks]
    return torch.stack([k for _, k, _ in cuts]), torch.stack([v for _, _, v in cuts])


@fails_with("made of what comes out of it")
def one_block_late(model, prompt):
    x, keys, values = embedded(model, prompt), [], []
    for layer, block in enumerate(model.blocks):
        x = block(x, None, None, layer)
        _, k, v = cut(block.attn.c_attn(block.ln_1(x)), model.config.n_head)
        keys.append(k)
        values.append(v)
    return torch.stack(keys), torch.stack(values)


@fails_with("a vector of the prompt sees those after it")
def unmasked(model, prompt):
    P = len(prompt)
    return made(model, embedded(model, prompt), torch.ones(1, 1, P, P, dtype=torch.bool))


@fails_with("the vectors of the prompt do not see each other")
def one_by_one(model, prompt):
    parts = [made(model, x[None, None]) for x in embedded(model, prompt)[0]]
    return torch.cat([k for k, _ in parts], dim=2), torch.cat([v for _, v in parts], dim=2)


@fails_with("the keys and values are exchanged")
def exchanged(model, prompt):
    keys, values = made(model, embedded(model, prompt))
    return values, keys


@fails_with("queries, keys and values, in this order")
def queries_for_keys(model, prompt):
    x, keys, values = embedded(model, prompt), [], []
    for layer, block in enumerate(model.blocks):
        k, v, _ = cut(block.attn.c_attn(block.ln_1(x)), model.config.n_head)
        keys.append(k)
        values.append(v)
        x = block(x, None, None, layer)
    return torch.stack(keys), torch.stack(values)


@fails_with("the shape is right and the numbers are mixed up")
def viewed_as_heads(model, prompt):
    c = model.config
    return tuple(
        part.transpose(1, 2).reshape(c.n_layer, c.n_head, len(prompt), -1)
        for part in made(model, embedded(model, prompt))
    )


@fails_with(r"\(3, 1, 2, 5, 8\); they must be \[L, H, P, Dh\], .* Leave out the dimension of the batch")
def with_the_batch(model, prompt):
    return tuple(part[:, None] for part in made(model, embedded(model, prompt)))


@fails_with("Only the prompt's places are wanted")
def with_one_token_of_text(model, prompt):
    text = model.wte(torch.tensor([[0]])) + model.wpe(torch.tensor([[len(prompt)]]))
    return made(model, torch.cat([embedded(model, prompt), text], dim=1))


@fails_with(r"from block 1 on, keys or values are not those of transformers' cache")
def right_in_the_first_block_only(model, prompt):
    P = len(prompt)
    mask = lower_right_mask(P, P)
    mask[..., -1, 0] = False
    return made(model, embedded(model, prompt), mask)


@fails_with(r"wpe.weight of the model was changed")
def positions_written_into_the_model(model, prompt):
    model.wpe.weight[: len(prompt)] += prompt
    return made(model, model.wpe.weight[: len(prompt)][None])
