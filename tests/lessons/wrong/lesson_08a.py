"""Wrong starts from labels."""

import torch

from tests.lessons.wrong import fails_with


@fails_with("yours is the first alone")
def first_token_of_each(embeddings, labels, others):
    return torch.stack([*(embeddings[label[0]] for label in labels), *embeddings[others]])


@fails_with("yours is the sum, three times as long")
def summed(embeddings, labels, others):
    return torch.stack([*(embeddings[label].sum(dim=0) for label in labels), *embeddings[others]])


@fails_with("you averaged the tokens' ids")
def mean_of_ids(embeddings, labels, others):
    return embeddings[[round(sum(label) / len(label)) for label in labels] + others].clone()


@fails_with("the labels come first")
def others_first(embeddings, labels, others):
    return torch.stack([*embeddings[others], *(embeddings[label].mean(dim=0) for label in labels)])


@fails_with(r"a prompt of \(5, 6\) numbers; yours is \(2, 6\)")
def labels_alone(embeddings, labels, others):
    return torch.stack([embeddings[label].mean(dim=0) for label in labels])


@fails_with("changed the model's table")
def into_the_table(embeddings, labels, others):
    means = [embeddings[label].mean(dim=0) for label in labels]
    embeddings[: len(means)] = torch.stack(means)
    embeddings[len(means) : len(means) + len(others)] = embeddings[others].clone()
    return embeddings[: len(means) + len(others)]
