"""Wrong attention with a prefix."""

import torch
import torch.nn.functional as F

from minipeft.attention import lower_right_mask
from tests.lessons.wrong import fails_with


def joined(k, v, prefix_k, prefix_v):
    keys = torch.cat([prefix_k.expand(len(k), -1, -1, -1), k], dim=2)
    return keys, torch.cat([prefix_v.expand(len(v), -1, -1, -1), v], dim=2)


def mask(q, k):
    return lower_right_mask(q.shape[2], k.shape[2])[0, 0]


@fails_with("the mask starts in the upper left corner, as is_causal=True does")
def upper_left(q, k, v, prefix_k, prefix_v):
    return F.scaled_dot_product_attention(q, *joined(k, v, prefix_k, prefix_v), is_causal=True)


@fails_with("a token sees the tokens after it")
def no_mask(q, k, v, prefix_k, prefix_v):
    return F.scaled_dot_product_attention(q, *joined(k, v, prefix_k, prefix_v))


@fails_with("that is attention without the prefix")
def no_prefix(q, k, v, prefix_k, prefix_v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@fails_with("the prefix got a softmax of its own")
def two_softmaxes(q, k, v, prefix_k, prefix_v):
    text = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    keys, values = (part.expand(len(q), -1, -1, -1) for part in (prefix_k, prefix_v))
    return text + F.scaled_dot_product_attention(q, keys, values)


@fails_with("the prefix stands behind the text")
def behind(q, k, v, prefix_k, prefix_v):
    k = torch.cat([k, prefix_k.expand(len(k), -1, -1, -1)], dim=2)
    v = torch.cat([v, prefix_v.expand(len(v), -1, -1, -1)], dim=2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(q, k))


@fails_with("keys and values are exchanged")
def exchanged(q, k, v, prefix_k, prefix_v):
    k, v = joined(k, v, prefix_v, prefix_k)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(q, k))


@fails_with("divided by the wrong number")
def unscaled(q, k, v, prefix_k, prefix_v):
    k, v = joined(k, v, prefix_k, prefix_v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(q, k), scale=1.0)


@fails_with("a result for each token of the text, and none for the prefix")
def results_for_the_prefix(q, k, v, prefix_k, prefix_v):
    k, v = joined(k, v, prefix_k, prefix_v)
    q = torch.cat([prefix_k.expand(len(q), -1, -1, -1), q], dim=2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@fails_with("the output is not the softmax over prefix and text|divided by the wrong number")
def scaled_twice_in_place(q, k, v, prefix_k, prefix_v):
    q /= q.shape[-1] ** 0.5
    k, v = joined(k, v, prefix_k, prefix_v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(q, k))
