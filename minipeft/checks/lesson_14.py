"""Lesson 14: a border around an image pixel by pixel, and training it against Adam written out, the base untouched."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.checks.exercise import Exercise, require
from minipeft.vision import Border, ResNet

B, h, w, p = 3, 4, 5, 2  # not square, so that rows and columns cannot be exchanged unseen
STEPS, LR = 6, 0.3


def judge_border(with_border: Callable[..., Any]) -> None:
    """Every pixel by its place; then what a gradient of ones leaves in the values."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(B, 1, h, w, generator=generator)
    values = (2 + torch.rand((h + 2 * p) * (w + 2 * p) - h * w, generator=generator)).requires_grad_()
    given = images.clone()
    found = with_border(given, values, p)
    require(isinstance(found, Tensor), f"with_border must return a tensor, not a {type(found).__name__}.")
    shape = (B, 1, h + 2 * p, w + 2 * p)
    require(
        tuple(found.shape) != images.shape,
        "the images have kept their size: the border goes around them, and is not drawn over their outer pixels.",
    )
    require(
        tuple(found.shape) == shape,
        f"images of {(B, 1, h, w)} with {p} pixels on every side are {shape}; yours are {tuple(found.shape)}.",
    )
    require(torch.equal(given, images), "with_border changed the images that it was given; make new ones.")
    require(torch.isfinite(found).all(), "some pixels were never written: begin with torch.zeros, not torch.empty.")
    _right_pixels(found.detach(), images, values.detach())
    require(
        found.requires_grad,
        "no gradient reaches the values: put the tensor itself into the canvas, not a copy of its numbers.",
    )
    (gradient,) = torch.autograd.grad(found.sum(), values)
    require(
        torch.equal(gradient, torch.full_like(gradient, B)),
        f"every value is one pixel of {B} images, so a sum over all pixels gives each the gradient {B}; yours is "
        f"{gradient.min():g} to {gradient.max():g}.",
    )
    images[:, :, ::2, 1:] = 0  # paper
    try:
        again = with_border(images.clone(), values.detach().clone(), p)
    except (RuntimeError, IndexError, ValueError):  # the mask is too large for the values: told below
        again = None
    require(
        isinstance(again, Tensor) and torch.allclose(again, _by_place(images, values.tolist(), _rest()), atol=1e-6),
        "right, until images have blank pixels of their own: a pixel belongs to the border by its place, not by being "
        "0.",
    )


def _rest() -> list[tuple[int, int]]:
    """The places around an image, row by row."""
    return [(y, x) for y in range(h + 2 * p) for x in range(w + 2 * p) if not (p <= y < p + h and p <= x < p + w)]


def _by_place(images: Tensor, values: list[float], places: list[tuple[int, int]]) -> Tensor:
    """Every image in the middle of a canvas, and the values at these places."""
    canvas = torch.zeros(B, 1, h + 2 * p, w + 2 * p)
    for b in range(B):
        for y in range(h):
            for x in range(w):
                canvas[b, 0, p + y, p + x] = images[b, 0, y, x]
        for (y, x), value in zip(places, values, strict=True):
            canvas[b, 0, y, x] = value
    return canvas


def _right_pixels(found: Tensor, images: Tensor, values: Tensor) -> None:
    rest = _rest()
    expected = _by_place(images, values.tolist(), rest)
    by_columns = _by_place(images, values.tolist(), sorted(rest, key=lambda place: place[::-1]))
    if torch.allclose(found, expected, atol=1e-6):
        return
    middle, theirs = (canvas[:, :, p : p + h, p : p + w] for canvas in (expected, found))
    require(
        not torch.allclose(found[:, :, :h, :w], images, atol=1e-6),
        "the image is in the upper left corner; its place is the middle.",
    )
    require(
        torch.allclose(theirs, middle, atol=1e-6),
        "the middle is not the image any more: no value of the border may be written or added there.",
    )
    require(
        not torch.allclose(found[0], expected[0], atol=1e-6),
        "the first image has its border and the others do not: all images share one.",
    )
    require(
        not torch.allclose(found, F.pad(images, (p, p, p, p)), atol=1e-6), "the border is blank: where are the values?"
    )
    require(
        not torch.allclose(found, by_columns, atol=1e-6),
        "the values run down the columns; they must run along the rows, as the numbers of a tensor lie.",
    )
    require(False, "the image is in its place, and the values around it are not in the order of the rows.")


def judge_training(train_border: Callable[..., Any]) -> None:
    """Nothing of the base may change, and the border must be where Adam, written out here, brings it."""
    net, images, labels = _base()
    net.train()  # as it comes from its own training
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    border = Border(net.pad)
    train_border(net, border, images.clone(), labels.clone(), STEPS, LR)
    moved = [name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])]
    weights = [name for name in moved if name in dict(net.named_parameters())]
    require(
        not weights,
        f"{len(weights)} of the base's weights changed, {next(iter(weights), '')} first: give the optimizer "
        "border.parameters() and nothing else.",
    )
    require(
        not moved,
        f"every weight is as it was, and {next(iter(moved), '')} changed: in training mode BatchNorm goes on counting, "
        "however frozen the weights. The base must be in evaluation mode.",
    )
    require(
        all(parameter.grad is None for parameter in net.parameters()),
        "the base's weights hold gradients, which cost as much memory as they do: freeze them with requires_grad_.",
    )
    found = border.values.detach()
    require(bool(found.abs().sum() > 0), "the border is still blank: nothing was trained.")
    if torch.allclose(found, _by_hand(), atol=1e-3):
        return
    for mistake, wrong in (
        ("the loss rises: you went up the gradient.", _by_hand(sign=-1)),
        ("the gradients of earlier steps are still there: zero_grad before each backward.", _by_hand(forget=False)),
        ("that is plain gradient descent; take torch.optim.Adam.", _by_hand(plain=True)),
        ("you took one step fewer than asked.", _by_hand(steps=STEPS - 1)),
        ("you took one step more than asked.", _by_hand(steps=STEPS + 1)),
        ("you took one step, whatever was asked.", _by_hand(steps=1)),
        ("the rate is not lr: that is Adam's own, 0.001.", _by_hand(lr=0.001)),
    ):
        require(not torch.allclose(found, wrong, atol=1e-3 * min(1.0, float(wrong.abs().max()))), mistake)
    require(False, "the border is not where that many steps of Adam, each on all the images, bring it.")


def _base() -> tuple[ResNet, Tensor, Tensor]:
    """A small ResNet whose BatchNorm has counted something, and what it is to be adapted to."""
    net, generator = ResNet(classes=3, widths=(4, 6), pad=2, seed=3), torch.Generator().manual_seed(1)
    images = torch.rand(8, 1, 8, 8, generator=generator)
    net.train()(torch.rand(16, 1, 8, 8, generator=generator))
    return net, images, torch.tensor([0, 1, 2, 2, 2, 0, 2, 2])


def _by_hand(steps: int = STEPS, lr: float = LR, sign: int = 1, plain: bool = False, forget: bool = True) -> Tensor:
    """Adam (Kingma & Ba 2015, algorithm 1) on the values of a border, number by number alike."""
    net, images, labels = _base()
    net.eval()
    border = Border(net.pad)
    first, second, kept = (torch.zeros_like(border.values) for _ in range(3))
    for step in range(1, steps + 1):
        loss = F.cross_entropy(net(images, border()), labels)
        (gradient,) = torch.autograd.grad(sign * loss, border.values)
        kept = gradient if forget else kept + gradient
        first, second = 0.9 * first + 0.1 * kept, 0.999 * second + 0.001 * kept**2
        way = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        with torch.no_grad():
            border.values.sub_(lr * (kept if plain else way))
    return border.values.detach()


BORDER = Exercise(
    name="14a",
    function="with_border",
    judge=judge_border,
    hints=(
        "F.pad(images, (p, p, p, p)) puts p zeros on every side; F.pad(..., value=True) of a mask of False is True in "
        "the border alone.",
        "torch.zeros(mask.shape).masked_scatter(mask, values) fills the places where mask is True, along the rows, and "
        "hands gradients on.",
        "The padded images [B, 1, H, W] and a canvas [1, 1, H, W] with zeros in the middle can be added.",
    ),
)

TRAINING = Exercise(
    name="14b",
    function="train_border",
    judge=judge_training,
    hints=(
        "Three things keep the base as it is: net.eval(), net.requires_grad_(False), and an optimizer that knows only "
        "border.parameters().",
        "The forward pass is net(images, border()): call border() again at each step, for its values have moved.",
        "At each step: zero_grad, the cross-entropy of all images, backward, step.",
    ),
)
