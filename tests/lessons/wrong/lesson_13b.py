"""Wrong gated attention."""

import torch
import torch.nn.functional as F

from tests.lessons.wrong import fails_with


def of_text(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def of_prompt(q, prompt_k, prompt_v, **options):
    keys, values = (part.expand(len(q), -1, -1, -1) for part in (prompt_k, prompt_v))
    return F.scaled_dot_product_attention(q, keys, values, **options)


def bounded(gate):
    return torch.tanh(gate).view(-1, 1, 1)


@fails_with("the gate is used as it is")
def without_tanh(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + gate.view(-1, 1, 1) * of_prompt(q, prompt_k, prompt_v)


@fails_with("a sigmoid, which is a half at zero")
def sigmoid(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + torch.sigmoid(gate).view(-1, 1, 1) * of_prompt(q, prompt_k, prompt_v)


@fails_with("with every gate at zero the output differs from the base's")
def starts_at_one(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + bounded(1 + gate) * of_prompt(q, prompt_k, prompt_v)


@fails_with("the gate is missing")
def no_gate(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + of_prompt(q, prompt_k, prompt_v)


@fails_with("shares one softmax with the text, which is prefix tuning")
def one_softmax(q, k, v, prompt_k, prompt_v, gate):
    keys, values = (
        torch.cat([part.expand(len(q), -1, -1, -1), own], dim=2) for part, own in ((prompt_k, k), (prompt_v, v))
    )
    P, T = prompt_k.shape[1], q.shape[2]
    mask = torch.ones(T, P + T, dtype=torch.bool).tril(P)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


@fails_with("along the numbers of a head")
def gate_along_the_head(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + torch.tanh(gate) * of_prompt(q, prompt_k, prompt_v)


@fails_with("it stays whole")
def one_or_the_other(q, k, v, prompt_k, prompt_v, gate):
    return (1 - bounded(gate)) * of_text(q, k, v) + bounded(gate) * of_prompt(q, prompt_k, prompt_v)


@fails_with("the gate multiplies what comes from the text, too")
def text_behind_the_gate(q, k, v, prompt_k, prompt_v, gate):
    return bounded(gate) * (of_text(q, k, v) + of_prompt(q, prompt_k, prompt_v))


@fails_with("the prompt is masked")
def masked_prompt(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + bounded(gate) * of_prompt(q, prompt_k, prompt_v, is_causal=True)


@fails_with("the gate multiplies the scores")
def gate_before_the_softmax(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + of_prompt(bounded(gate) * q, prompt_k, prompt_v)


@fails_with("the tokens after it")
def text_not_masked(q, k, v, prompt_k, prompt_v, gate):
    return F.scaled_dot_product_attention(q, k, v) + bounded(gate) * of_prompt(q, prompt_k, prompt_v)


@fails_with("exchanged")
def exchanged(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + bounded(gate) * of_prompt(q, prompt_v, prompt_k)


@fails_with("divided by the wrong number")
def unscaled(q, k, v, prompt_k, prompt_v, gate):
    return of_text(q, k, v) + bounded(gate) * of_prompt(q, prompt_k, prompt_v, scale=1.0)
