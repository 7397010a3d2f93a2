"""Lesson 08: a prompt that starts from the labels, and the tokens nearest to a trained one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minipeft.checks.exercise import Exercise, require

V, D = 30, 6


def judge_start(start_from_labels: Callable[..., Any]) -> None:
    """Against a loop over single numbers; then: is it a copy?"""
    embeddings = _embeddings()
    before = embeddings.clone()
    labels, others = [[3], [7, 9, 11]], [20, 5, 20]
    found = start_from_labels(embeddings, [list(label) for label in labels], list(others))
    require(isinstance(found, Tensor), f"start_from_labels must return a tensor, not a {type(found).__name__}.")
    require(
        tuple(found.shape) == (5, D),
        f"2 labels and 3 other tokens make a prompt of (5, {D}) numbers; yours is {tuple(found.shape)}.",
    )
    found = found.detach().float()  # one that will be trained may already ask for its gradient
    require(torch.equal(embeddings, before), "start_from_labels changed the model's table; return numbers of its own.")
    table = embeddings.tolist()
    means = [[sum(table[token][d] for token in label) / len(label) for d in range(D)] for label in labels]
    expected = torch.tensor([*means, *(table[token] for token in others)])
    if not torch.allclose(found, expected, atol=1e-6):
        last = found[1]
        require(
            not torch.allclose(last, embeddings[7], atol=1e-6),
            "a label of several tokens is the mean of all of them; yours is the first alone.",
        )
        require(
            not torch.allclose(last, embeddings[[7, 9, 11]].sum(dim=0), atol=1e-6),
            "a label of several tokens is the mean of their vectors; yours is the sum, three times as long.",
        )
        require(
            not torch.allclose(last, embeddings[9], atol=1e-6),
            "you averaged the tokens' ids; average their vectors: an id is a name, not a number to count with.",
        )
        require(
            not torch.allclose(found[-2:], expected[:2], atol=1e-6),
            "the labels come first, then the other tokens; yours are the other way round.",
        )
        require(False, "the prompt is not the labels' mean vectors, followed by those of the other tokens.")
    found.zero_()
    untouched = torch.equal(embeddings, before)
    require(untouched, "what you return is a view into the model's table: training would change it.")


def judge_nearest(nearest_tokens: Callable[..., Any]) -> None:
    """Pair by pair with torch's cosine similarity, where the lengths of the vectors differ much."""
    embeddings = _embeddings()
    prompt = torch.randn(4, D, generator=torch.Generator().manual_seed(1))
    prompt[1] = -embeddings[4]  # the token 4 is the farthest of all
    prompt[2] = 100 * embeddings[6]
    given = prompt.clone(), embeddings.clone()
    found = nearest_tokens(*given, 3)
    require(isinstance(found, Tensor), f"nearest_tokens must return a tensor, not a {type(found).__name__}.")
    require(not found.is_floating_point(), "nearest_tokens must return the tokens' ids, not their cosines.")
    require(
        tuple(found.shape) == (4, 3), f"4 vectors with 3 tokens each make (4, 3) ids; yours are {tuple(found.shape)}."
    )
    require(
        torch.equal(given[0], prompt) and torch.equal(given[1], embeddings),
        "nearest_tokens changed what it was given: with a real model that would be its embeddings.",
    )
    one = nearest_tokens(prompt.clone(), embeddings.clone(), 1)
    require(tuple(one.shape) == (4, 1), f"asked for 1 token of each vector, you give {tuple(one.shape)} ids.")
    cosines = torch.tensor([[float(_cosine(vector, row)) for row in embeddings] for vector in prompt])
    order = cosines.argsort(dim=1, descending=True)
    if torch.equal(found, order[:, :3]):
        return
    long = embeddings / embeddings.norm(dim=1, keepdim=True)
    distances = torch.cdist(prompt, embeddings)
    for mistake, wrong in (
        (
            "you compare by the plain product, so that long vectors win; divide by the lengths of both.",
            (prompt @ embeddings.T).topk(3).indices,
        ),
        (
            "you compare by distance, so that short vectors win; the cosine asks for the direction alone.",
            distances.topk(3, largest=False).indices,
        ),
        ("these are the tokens farthest away; the largest cosine is the nearest.", order.flip(1)[:, :3]),
        ("the ids are right, but the nearest must come first.", order[:, :3].flip(1)),
        (
            "you take the size of the cosine without its sign; a token in the opposite direction is not near.",
            (prompt @ long.T).abs().topk(3).indices,
        ),
    ):
        require(not torch.equal(found, wrong), mistake)
    row = next(i for i in range(4) if found[i].tolist() != order[i, :3].tolist())
    require(False, f"for vector {row} the nearest are {order[row, :3].tolist()}, but you say {found[row].tolist()}.")


def _embeddings() -> Tensor:
    """Vectors of very different lengths."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(V, D, generator=generator) * torch.linspace(0.3, 6, V)[:, None]


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=0)


START = Exercise(
    name="08a",
    function="start_from_labels",
    judge=judge_start,
    hints=(
        "embeddings[[7, 9, 11]] are three rows of the table; .mean(dim=0) of them is one vector.",
        "torch.stack makes one tensor of a list of vectors, and copies them.",
    ),
)

NEAREST = Exercise(
    name="08b",
    function="nearest_tokens",
    judge=judge_nearest,
    hints=(
        "Divide every vector by its length first (F.normalize with dim=-1); the product of two is then their cosine.",
        "A matrix [P, D] times the transpose of one [V, D] has all products at once, [P, V].",
        "scores.topk(n).indices are the places of the n largest of each row, largest first.",
    ),
)
