"""Wrong losses behind a soft prompt."""

import torch
import torch.nn.functional as F

from tests.lessons.wrong import fails_with


def loss(model, x, labels, cut=0):
    for layer, block in enumerate(model.blocks):
        x = block(x, None, None, layer)
    logits = model.logits(model.ln_f(x[:, cut:]))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def joined(model, prompt, tokens):
    return torch.cat([prompt.expand(len(tokens), -1, -1), model.wte(tokens)], dim=1)


@fails_with("the text's positions begin at zero again")
def positions_not_offset(model, prompt, tokens, labels):
    P, T = len(prompt), tokens.shape[1]
    where = torch.cat([torch.arange(P), torch.arange(T)])
    return loss(model, joined(model, prompt, tokens) + model.wpe(where), labels, cut=P)


@fails_with("the prompt has no positions; wpe is added to it as to tokens")
def prompt_without_positions(model, prompt, tokens, labels):
    P, T = len(prompt), tokens.shape[1]
    x = joined(model, prompt, tokens)
    x = torch.cat([x[:, :P], x[:, P:] + model.wpe(torch.arange(P, P + T))], dim=1)
    return loss(model, x, labels, cut=P)


@fails_with("the prompt has no positions, and those of the text begin at zero")
def text_alone_has_positions(model, prompt, tokens, labels):
    x = model.wte(tokens) + model.wpe(torch.arange(tokens.shape[1]))
    return loss(model, torch.cat([prompt.expand(len(tokens), -1, -1), x], dim=1), labels, cut=len(prompt))


@fails_with("does it stand behind the text, where no token sees it")
def behind(model, prompt, tokens, labels):
    P, T = len(prompt), tokens.shape[1]
    x = torch.cat([model.wte(tokens), prompt.expand(len(tokens), -1, -1)], dim=1) + model.wpe(torch.arange(P + T))
    return loss(model, x, torch.cat([labels, torch.full((len(tokens), P), -100)], dim=1))


@fails_with("the labels are not moved on")
def labels_not_moved(model, prompt, tokens, labels):
    P, T = len(prompt), tokens.shape[1]
    x = joined(model, prompt, tokens) + model.wpe(torch.arange(P + T))
    return loss(model, x, torch.cat([labels, torch.full((len(tokens), P), -100)], dim=1))


@fails_with("the loss has no gradient for the prompt")
def detached(model, prompt, tokens, labels):
    P, T = len(prompt), tokens.shape[1]
    return loss(model, joined(model, prompt.detach(), tokens) + model.wpe(torch.arange(P + T)), labels, cut=P)


@fails_with("that is the loss without the prompt")
def forgotten(model, prompt, tokens, labels):
    return loss(model, model.wte(tokens) + model.wpe(torch.arange(tokens.shape[1])), labels)


@fails_with("wte.weight of the model was changed")
def into_the_table(model, prompt, tokens, labels):
    P, T = len(prompt), tokens.shape[1]
    found = loss(model, joined(model, prompt, tokens) + model.wpe(torch.arange(P + T)), labels, cut=P)
    with torch.no_grad():
        model.wte.weight[:P] = prompt
    return found


@fails_with("it must be joined in front of them")
def added(model, prompt, tokens, labels):
    P, x = len(prompt), model.wte(tokens)
    x = torch.cat([x[:, :P] + prompt, x[:, P:]], dim=1) + model.wpe(torch.arange(tokens.shape[1]))
    return loss(model, x, labels)


@fails_with("every token is asked for itself")
def unshifted(model, prompt, tokens, labels):
    P, T = len(prompt), tokens.shape[1]
    x = joined(model, prompt, tokens) + model.wpe(torch.arange(P + T))
    for layer, block in enumerate(model.blocks):
        x = block(x, None, None, layer)
    logits = model.logits(model.ln_f(x[:, P:]))
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


@fails_with("the loss is .*, but transformers gives")
def row_by_row(model, prompt, tokens, labels):
    x = joined(model, prompt, tokens) + model.wpe(torch.arange(len(prompt) + tokens.shape[1]))
    return torch.stack([loss(model, x[b : b + 1], labels[b : b + 1], cut=len(prompt)) for b in range(len(x))]).mean()


@fails_with("the model was unfrozen")
def unfrozen(model, prompt, tokens, labels):
    model.wpe.weight.requires_grad_(True)
    P, T = len(prompt), tokens.shape[1]
    return loss(model, joined(model, prompt, tokens) + model.wpe(torch.arange(P + T)), labels, cut=P)
