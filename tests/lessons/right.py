"""Right answers that are not the lesson's own: a check must take them."""

import torch
from torch import Tensor


def gate_by_logarithms(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> tuple[Tensor, Tensor]:
    """11a: λ as Z_P / (Z_P + Z_T), all in logarithms."""
    T, Dh = q.shape[2:]
    on_text = (q @ k.mT / Dh**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
    on_prefix = q @ prefix_k.mT / Dh**0.5
    of_prefix, of_text = on_prefix.logsumexp(dim=-1), on_text.logsumexp(dim=-1)
    gate = (of_prefix - torch.logaddexp(of_prefix, of_text)).exp()[..., None]
    summed = (1 - gate) * (on_text.softmax(dim=-1) @ v) + gate * (on_prefix.softmax(dim=-1) @ prefix_v)
    return summed, gate[..., 0]


def divided_by_what_the_prefix_leaves(before: Tensor, after: Tensor) -> Tensor:
    """11b: the text's weights add up to 1 − λ."""
    P = after.shape[-1] - before.shape[-1]
    of_prefix = after[..., :P].sum(dim=-1, keepdim=True)
    return (after[..., P:] / (1 - of_prefix) - before).abs().max()


def in_numpy(before: Tensor, after: Tensor) -> float:
    """11b, as numpy counts: its number is no float of Python."""
    text = after[..., after.shape[-1] - before.shape[-1] :].numpy()
    return abs(text / text.sum(axis=-1, keepdims=True) - before.numpy()).max()  # type: ignore[no-any-return]


def by_index(images: Tensor, values: Tensor, p: int) -> Tensor:
    """14a: written into the places of a mask."""
    B, _, h, w = images.shape
    free = torch.ones(h + 2 * p, w + 2 * p, dtype=torch.bool)
    free[p : p + h, p : p + w] = False
    canvas = torch.zeros(B, 1, h + 2 * p, w + 2 * p)
    canvas[:, :, ~free] = images.flatten(2)
    canvas[:, :, free] = values
    return canvas
