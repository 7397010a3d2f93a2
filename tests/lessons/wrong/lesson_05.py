"""Wrong attention with a memory."""

import torch
import torch.nn.functional as F

from minipeft.attention import lower_right_mask
from tests.lessons.wrong import fails_with


def joined(k, v, past, dim=1):
    return (k, v) if past is None else (torch.cat([past[0], k], dim=dim), torch.cat([past[1], v], dim=dim))


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=lower_right_mask(q.shape[1], k.shape[1])[0, 0])


@fails_with("after 5 tokens the past holds keys for only the newest 1")
def newest_only(q, k, v, past):
    keys, values = joined(k, v, past)
    return attend(q, keys, values), (k, v)


@fails_with("when 7 tokens come at once, the first of them see the later ones")
def no_mask(q, k, v, past):
    k, v = joined(k, v, past)
    return F.scaled_dot_product_attention(q, k, v), (k, v)


@fails_with("with 4 tokens in the past, a new token does not see all of them: is the mask aligned to the upper")
def mask_of_pytorch(q, k, v, past):
    k, v = joined(k, v, past)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True), (k, v)


@fails_with("an earlier of the new ones sees a later one")
def masked_only_at_first(q, k, v, past):
    whole = past is None
    k, v = joined(k, v, past)
    return F.scaled_dot_product_attention(q, k, v, is_causal=whole), (k, v)


@fails_with("the new keys stand in front of the old ones")
def new_first(q, k, v, past):
    if past is not None:
        k, v = torch.cat([k, past[0]], dim=1), torch.cat([v, past[1]], dim=1)
    return attend(q, k, v), (k, v)


@fails_with("still attends to itself alone: the past keys and values are not used")
def remembers_in_vain(q, k, v, past):
    return attend(q, k, v), joined(k, v, past)


@fails_with("Sizes of tensors must match except in dimension 0")
def along_the_heads(q, k, v, past):
    keys, values = joined(k, v, past, dim=0)
    return attend(q, k, v), (keys, values)


@fails_with("must return two things")
def output_alone(q, k, v, past):
    return attend(q, *joined(k, v, past))


@fails_with("after 5 tokens the past still holds keys for 4: the new ones were not added")
def never_grows(q, k, v, past):
    keys, values = joined(k, v, past)
    return attend(q, keys, values), (k, v) if past is None else past
