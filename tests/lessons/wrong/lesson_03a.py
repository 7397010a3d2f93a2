"""Wrong layer norms."""

from tests.lessons.wrong import fails_with


@fails_with("you divide by n - 1")
def unbiased(x, weight, bias, epsilon):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + epsilon).sqrt() * weight + bias


@fails_with("you left out weight and bias")
def bare(x, weight, bias, epsilon):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + epsilon).sqrt()


@fails_with("you average over everything")
def over_everything(x, weight, bias, epsilon):
    return (x - x.mean()) / (x.var(unbiased=False) + epsilon).sqrt() * weight + bias


@fails_with("epsilon is added to the variance, under the root")
def epsilon_outside(x, weight, bias, epsilon):
    deviation = x.var(-1, keepdim=True, unbiased=False).sqrt() + epsilon
    return (x - x.mean(-1, keepdim=True)) / deviation * weight + bias


@fails_with("changed the tensor that it was given")
def in_place(x, weight, bias, epsilon):
    x -= x.mean(-1, keepdim=True)
    return x / (x.var(-1, keepdim=True, unbiased=False) + epsilon).sqrt() * weight + bias
