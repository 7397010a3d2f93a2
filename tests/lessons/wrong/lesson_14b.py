"""Wrong ways to train a border."""

import torch
import torch.nn.functional as F

from tests.lessons.wrong import fails_with


def train(net, border, images, labels, steps, optimizer, sign=1, forget=True):
    for _ in range(steps):
        if forget:
            optimizer.zero_grad()
        (sign * F.cross_entropy(net(images, border()), labels)).backward()
        optimizer.step()


def frozen(net):
    return net.eval().requires_grad_(False)


@fails_with("every weight is as it was, and .* changed: in training mode BatchNorm goes on counting")
def in_training_mode(net, border, images, labels, steps, lr):
    net.requires_grad_(False)
    train(net, border, images, labels, steps, torch.optim.Adam(border.parameters(), lr=lr))


@fails_with("of the base's weights changed")
def everything_in_the_optimizer(net, border, images, labels, steps, lr):
    net.eval()
    both = [*net.parameters(), *border.parameters()]
    train(net, border, images, labels, steps, torch.optim.Adam(both, lr=lr))


@fails_with("the base's weights hold gradients")
def not_frozen(net, border, images, labels, steps, lr):
    net.eval()
    train(net, border, images, labels, steps, torch.optim.Adam(border.parameters(), lr=lr))


@fails_with("the border is still blank")
def without_the_border(net, border, images, labels, steps, lr):
    frozen(net)
    for _ in range(steps):
        F.cross_entropy(net(images), labels)


@fails_with("zero_grad before each backward")
def gradients_pile_up(net, border, images, labels, steps, lr):
    optimizer = torch.optim.Adam(border.parameters(), lr=lr)
    train(frozen(net), border, images, labels, steps, optimizer, forget=False)


@fails_with("the loss rises")
def upwards(net, border, images, labels, steps, lr):
    train(frozen(net), border, images, labels, steps, torch.optim.Adam(border.parameters(), lr=lr), sign=-1)


@fails_with("plain gradient descent")
def by_sgd(net, border, images, labels, steps, lr):
    train(frozen(net), border, images, labels, steps, torch.optim.SGD(border.parameters(), lr=lr))


@fails_with("the rate is not lr")
def adams_own_rate(net, border, images, labels, steps, lr):
    train(frozen(net), border, images, labels, steps, torch.optim.Adam(border.parameters()))


@fails_with("one step fewer")
def too_few(net, border, images, labels, steps, lr):
    train(frozen(net), border, images, labels, steps - 1, torch.optim.Adam(border.parameters(), lr=lr))


@fails_with("raised RuntimeError")
def graph_of_the_first_step(net, border, images, labels, steps, lr):
    canvas, optimizer = frozen(net) and border(), torch.optim.Adam(border.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(images, canvas), labels).backward()
        optimizer.step()
