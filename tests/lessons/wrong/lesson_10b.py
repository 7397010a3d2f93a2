"""Wrong ways to serve rows of unlike prefixes in one batch."""

import torch

from minipeft.attention import FixedMemory, lower_right_mask
from tests.lessons.wrong import fails_with


def padded(model, prefixes, tokens):
    """The memory, and which places of it and the text are real."""
    c, (B, T) = model.config, tokens.shape
    most = max(k.shape[2] for k, _ in prefixes)
    keys, values = torch.zeros(2, c.n_layer, B, c.n_head, most, c.head_size)
    real = torch.zeros(B, most + T, dtype=torch.bool)
    for row, (k, v) in enumerate(prefixes):
        P = k.shape[2]
        keys[:, row, :, most - P :], values[:, row, :, most - P :] = k, v
        real[row, most - P :] = True
    return FixedMemory(keys, values), real


def run(model, tokens, positions, mask, memory):
    x = model.wte(tokens) + model.wpe(positions)
    for layer, block in enumerate(model.blocks):
        x = block(x, mask, memory, layer)
    return model.logits(model.ln_f(x))


def own(real, T):
    return (real.cumsum(dim=1) - 1)[:, -T:]


@fails_with("a row sees the empty slots of a shorter prefix.*Alone, no row would show it")
def one_mask_for_all(model, prefixes, tokens):
    memory, real = padded(model, prefixes, tokens)
    T, S = tokens.shape[1], real.shape[1]
    anyone = real.any(dim=0).expand(len(tokens), -1)
    return run(model, tokens, own(real, T), lower_right_mask(T, S, anyone), memory)


@fails_with("the positions of all rows begin behind the longest prefix")
def positions_of_the_longest(model, prefixes, tokens):
    memory, real = padded(model, prefixes, tokens)
    T, S = tokens.shape[1], real.shape[1]
    return run(model, tokens, torch.arange(S - T, S), lower_right_mask(T, S, real), memory)


@fails_with("two things. First: a row sees the empty slots.*Second: the positions of all rows begin behind the longest")
def as_if_all_were_long(model, prefixes, tokens):
    memory, _ = padded(model, prefixes, tokens)
    return model(tokens, memory=memory)


@fails_with("the text's positions begin at zero")
def positions_from_zero(model, prefixes, tokens):
    memory, real = padded(model, prefixes, tokens)
    T, S = tokens.shape[1], real.shape[1]
    return run(model, tokens, torch.arange(T), lower_right_mask(T, S, real), memory)


@fails_with("the text's positions begin at zero")
def neither_mask_nor_positions(model, prefixes, tokens):
    memory, real = padded(model, prefixes, tokens)
    T, S = tokens.shape[1], real.shape[1]
    return run(model, tokens, torch.arange(T), lower_right_mask(T, S), memory)


@fails_with("every row got the first row's prefix")
def one_prefix_for_all(model, prefixes, tokens):
    keys, values = prefixes[0]
    return model(tokens, memory=FixedMemory(keys[:, None], values[:, None]))


@fails_with("that is the bare model")
def no_prefix(model, prefixes, tokens):
    return model(tokens)


@fails_with("the mask starts in the upper left corner")
def upper_left(model, prefixes, tokens):
    memory, real = padded(model, prefixes, tokens)
    T, S = tokens.shape[1], real.shape[1]
    mask = torch.ones(T, S, dtype=torch.bool).tril() & real[:, None, None]
    return run(model, tokens, own(real, T), mask, memory)


@fails_with("a token sees the tokens after it")
def not_causal(model, prefixes, tokens):
    memory, real = padded(model, prefixes, tokens)
    mask = real[:, None, None].expand(-1, 1, tokens.shape[1], -1)
    return run(model, tokens, own(real, tokens.shape[1]), mask, memory)


@fails_with("put both at the same one")
def mask_at_the_other_end(model, prefixes, tokens):
    memory, real = padded(model, prefixes, tokens)
    T, S = tokens.shape[1], real.shape[1]
    turned = torch.cat([real[:, : S - T].flip(1), real[:, S - T :]], dim=1)
    return run(model, tokens, own(real, T), lower_right_mask(T, S, turned), memory)


@fails_with("the rows got each other's prefixes")
def rows_turned_round(model, prefixes, tokens):
    memory, real = padded(model, prefixes[::-1], tokens)
    T, S = tokens.shape[1], real.shape[1]
    return run(model, tokens, own(real, T), lower_right_mask(T, S, real), memory)


@fails_with(r"the logits are \(2, 9, 24\); they must be \[B, T, V\]")
def logits_for_the_memory(model, prefixes, tokens):
    memory, _ = padded(model, prefixes, tokens)
    logits = model(tokens, memory=memory)
    return torch.cat([logits.new_zeros(len(tokens), memory.length, logits.shape[-1]), logits], dim=1)


@fails_with("row 2, with a prefix of 0 beside others of other lengths, does not get what transformers gives it alone")
def a_row_without_prefix_forgotten(model, prefixes, tokens):
    memory, real = padded(model, prefixes, tokens)
    T, S = tokens.shape[1], real.shape[1]
    logits = run(model, tokens, own(real, T), lower_right_mask(T, S, real), memory)
    bare = [row for row, (k, _) in enumerate(prefixes) if k.shape[2] == 0]
    logits[bare] = 0
    return logits


@fails_with("the logits are right, and the first block was called with 1 and 1 rows: all 2 are to go through together")
def one_after_another(model, prefixes, tokens):
    rows = zip(prefixes, tokens, strict=True)
    return torch.cat([model(row[None], memory=FixedMemory(k[:, None], v[:, None])) for (k, v), row in rows])
