"""Wrong causal masks."""

import torch

from tests.lessons.wrong import fails_with


@fails_with("starts in the upper left corner: the last query sees 2 of 5 keys")
def upper_left(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril()


@fails_with("the wrong way round: True must mean that a query may look")
def hidden_is_true(T, S):
    return torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)


@fails_with("a query must see its own key, too")
def not_itself(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T - 1)


@fails_with("with 3 queries and 3 keys every query sees every key")
def everything(T, S):
    return torch.ones(T, S, dtype=torch.bool)


@fails_with("with 3 queries and 3 keys every query sees every key|query 0 must not look at key 1")
def one_too_far(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril(S - T + 1)


@fails_with(r"the mask of 2 queries and 5 keys is \(2, 2\), not \(2, 5\)")
def no_memory(T, S):
    return torch.ones(T, T, dtype=torch.bool).tril()


@fails_with("is of type float32; make it one of True")
def added_to_scores(T, S):
    return torch.full((T, S), float("-inf")).triu(S - T + 1)


@fails_with("with 2 queries and 5 keys query 0 may look at key 2|upper left")
def memory_of_two(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril(min(S - T, 1))
