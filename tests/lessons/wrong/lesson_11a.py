"""Wrong gated sums."""

import torch
import torch.nn.functional as F

from minipeft.attention import lower_right_mask
from tests.lessons.wrong import fails_with


def scores(q, k, v, prefix_k, masked=True, scale=True):
    size = q.shape[-1] ** 0.5 if scale else 1.0
    on_text = q @ k.mT / size
    if masked:
        T = q.shape[2]
        on_text = on_text.masked_fill(~lower_right_mask(T, T)[0, 0], float("-inf"))
    return on_text, q @ prefix_k.mT / size


def share(on_text, on_prefix):
    return torch.sigmoid(on_prefix.logsumexp(dim=-1) - on_text.logsumexp(dim=-1))


def parts(q, k, v, prefix_k, prefix_v):
    """Attention to the text, attention to the prefix, and the right λ."""
    on_text, on_prefix = scores(q, k, v, prefix_k)
    return on_text.softmax(dim=-1) @ v, on_prefix.softmax(dim=-1) @ prefix_v, share(on_text, on_prefix)


def summed(text, prefix, gate):
    return (1 - gate[..., None]) * text + gate[..., None] * prefix


@fails_with("the two attentions are added, not gated")
def added(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    return text + prefix, gate


@fails_with("the prefix is gated and the text is not")
def text_not_turned_down(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    return text + gate[..., None] * prefix, gate


@fails_with("the gates are exchanged")
def exchanged(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    return summed(prefix, text, gate), gate


@fails_with("λ is one number for a whole row of the batch")
def a_gate_for_each_row(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    gate = gate.mean(dim=(1, 2), keepdim=True).expand_as(gate)
    return summed(text, prefix, gate), gate


@fails_with("λ is one number for all heads of a token")
def a_gate_for_all_heads_in_the_sum_only(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    return summed(text, prefix, gate.mean(dim=1, keepdim=True).expand_as(gate)), gate


@fails_with(r"λ is \(3,\); it must be \[B, H, T\]")
def a_gate_without_heads(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    gate = gate.mean(dim=(1, 2))
    return summed(text, prefix, gate[:, None, None]), gate


@fails_with("both parts are gated twice")
def cut_out_of_the_joint_softmax(q, k, v, prefix_k, prefix_v):
    on_text, on_prefix = scores(q, k, v, prefix_k)
    P = on_prefix.shape[-1]
    weights = torch.cat([on_prefix, on_text], dim=-1).softmax(dim=-1)
    gate = weights[..., :P].sum(dim=-1)
    return summed(weights[..., P:] @ v, weights[..., :P] @ prefix_v, gate), gate


@fails_with("the text is gated twice")
def text_not_renormalised(q, k, v, prefix_k, prefix_v):
    on_text, on_prefix = scores(q, k, v, prefix_k)
    P = on_prefix.shape[-1]
    weights = torch.cat([on_prefix, on_text], dim=-1).softmax(dim=-1)
    gate = weights[..., :P].sum(dim=-1)
    return summed(weights[..., P:] @ v, on_prefix.softmax(dim=-1) @ prefix_v, gate), gate


@fails_with("divided by the text's alone: the wrong normaliser")
def odds(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    gate = gate / (1 - gate)
    return summed(text, prefix, gate), gate


@fails_with("that is 1 − λ, the text's share")
def share_of_the_text(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    return summed(text, prefix, gate), 1 - gate


@fails_with("λ is made without the causal mask")
def gate_that_sees_ahead(q, k, v, prefix_k, prefix_v):
    text, prefix, _ = parts(q, k, v, prefix_k, prefix_v)
    gate = share(*scores(q, k, v, prefix_k, masked=False))
    return summed(text, prefix, gate), gate


@fails_with("λ is right, and the text's attention sees tokens after the query")
def text_that_sees_ahead(q, k, v, prefix_k, prefix_v):
    _, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    return summed(F.scaled_dot_product_attention(q, k, v), prefix, gate), gate


@fails_with("the causal mask lies over the prefix")
def masked_prefix(q, k, v, prefix_k, prefix_v):
    text, _, gate = parts(q, k, v, prefix_k, prefix_v)
    keys, values = (part.expand(len(q), -1, -1, -1) for part in (prefix_k, prefix_v))
    return summed(text, F.scaled_dot_product_attention(q, keys, values, is_causal=True), gate), gate


@fails_with("the scores in λ are not divided by the square root of Dh")
def unscaled_gate(q, k, v, prefix_k, prefix_v):
    text, prefix, _ = parts(q, k, v, prefix_k, prefix_v)
    gate = share(*scores(q, k, v, prefix_k, scale=False))
    return summed(text, prefix, gate), gate


@fails_with("the scores of the two attentions are not divided")
def unscaled_attentions(q, k, v, prefix_k, prefix_v):
    on_text, on_prefix = scores(q, k, v, prefix_k, scale=False)
    gate = share(*scores(q, k, v, prefix_k))
    return summed(on_text.softmax(dim=-1) @ v, on_prefix.softmax(dim=-1) @ prefix_v, gate), gate


@fails_with("the prefix's share of the keys")
def counted(q, k, v, prefix_k, prefix_v):
    text, prefix, gate = parts(q, k, v, prefix_k, prefix_v)
    P, T = prefix_k.shape[1], q.shape[2]
    gate = (P / (P + torch.arange(1, T + 1))).expand_as(gate)
    return summed(text, prefix, gate), gate


@fails_with("right, until scores are large: then exp of them is infinite")
def exponentials(q, k, v, prefix_k, prefix_v):
    text, prefix, _ = parts(q, k, v, prefix_k, prefix_v)
    on_text, on_prefix = (part.exp().sum(dim=-1) for part in scores(q, k, v, prefix_k))
    gate = on_prefix / (on_prefix + on_text)
    return summed(text, prefix, gate), gate


@fails_with("right, until scores are large: then it is not")
def cut_off(q, k, v, prefix_k, prefix_v):
    text, prefix, _ = parts(q, k, v, prefix_k, prefix_v)
    on_text, on_prefix = (part.clamp(max=60).exp().sum(dim=-1) for part in scores(q, k, v, prefix_k))
    gate = on_prefix / (on_prefix + on_text)
    return summed(text, prefix, gate), gate


@fails_with("gated_sum must return two tensors")
def output_alone(q, k, v, prefix_k, prefix_v):
    return summed(*parts(q, k, v, prefix_k, prefix_v))
