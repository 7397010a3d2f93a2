"""Wrong nearest tokens."""

import torch
import torch.nn.functional as F

from tests.lessons.wrong import fails_with


def cosines(prompt, embeddings):
    return F.normalize(prompt, dim=-1) @ F.normalize(embeddings, dim=-1).T


@fails_with("by the plain product, so that long vectors win")
def by_product(prompt, embeddings, n):
    return (prompt @ embeddings.T).topk(n).indices


@fails_with("by the plain product, so that long vectors win")
def only_the_prompt_normalised(prompt, embeddings, n):
    return (F.normalize(prompt, dim=-1) @ embeddings.T).topk(n).indices


@fails_with("by distance, so that short vectors win")
def by_distance(prompt, embeddings, n):
    return torch.cdist(prompt, embeddings).topk(n, largest=False).indices


@fails_with("these are the tokens farthest away")
def farthest(prompt, embeddings, n):
    return cosines(prompt, embeddings).topk(n, largest=False).indices


@fails_with("the nearest must come first")
def ascending(prompt, embeddings, n):
    return cosines(prompt, embeddings).argsort(dim=1)[:, -n:]


@fails_with("not their cosines")
def cosines_themselves(prompt, embeddings, n):
    return cosines(prompt, embeddings).topk(n).values


@fails_with("without its sign")
def without_sign(prompt, embeddings, n):
    return cosines(prompt, embeddings).abs().topk(n).indices


@fails_with("nearest_tokens changed what it was given")
def in_place(prompt, embeddings, n):
    embeddings /= embeddings.norm(dim=1, keepdim=True)
    return (prompt @ embeddings.T).topk(n).indices


@fails_with("asked for 1 token of each vector")
def always_three(prompt, embeddings, n):
    return cosines(prompt, embeddings).topk(3).indices
