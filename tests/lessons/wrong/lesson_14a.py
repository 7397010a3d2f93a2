"""Wrong borders."""

import torch
import torch.nn.functional as F

from tests.lessons.wrong import fails_with


def around(images, p):
    return F.pad(torch.zeros_like(images[:1], dtype=torch.bool), (p, p, p, p), value=True)


def canvas(images, values, p):
    mask = around(images, p)
    return torch.zeros(mask.shape).masked_scatter(mask, values)


@fails_with("no gradient reaches the values")
def a_copy_of_the_numbers(images, values, p):
    return F.pad(images, (p, p, p, p)) + canvas(images, torch.tensor(values.tolist()), p)


@fails_with("the images have kept their size")
def drawn_over_the_image(images, values, p):
    drawn = images.clone()
    drawn[:, :, 0, :] = values[: images.shape[3]]
    return drawn


@fails_with("the values run down the columns")
def by_columns(images, values, p):
    return F.pad(images, (p, p, p, p)) + canvas(images.mT, values, p).mT


@fails_with("the first image has its border and the others do not")
def one_image_only(images, values, p):
    bordered = F.pad(images, (p, p, p, p))
    bordered[:1] += canvas(images, values, p)
    return bordered


@fails_with("the image is in the upper left corner")
def not_in_the_middle(images, values, p):
    rest = F.pad(torch.zeros_like(images[:1], dtype=torch.bool), (0, 2 * p, 0, 2 * p), value=True)
    return F.pad(images, (0, 2 * p, 0, 2 * p)) + torch.zeros(rest.shape).masked_scatter(rest, values)


@fails_with("the border is blank")
def blank(images, values, p):
    return F.pad(images, (p, p, p, p))


@fails_with("the middle is not the image any more")
def spilled_over(images, values, p):
    return F.pad(images, (p, p, p, p)) + values.mean()


@fails_with(r"yours are \(3, 1, 6, 7\)")
def half_as_wide(images, values, p):
    return F.pad(images, (1, 1, 1, 1))


@fails_with("the values around it are not in the order of the rows")
def backwards(images, values, p):
    return F.pad(images, (p, p, p, p)) + canvas(images, values.flip(0), p)


@fails_with("every value is one pixel of 3 images")
def gradient_of_one_image(images, values, p):
    first = canvas(images, values, p)
    return F.pad(images, (p, p, p, p)) + torch.cat([first, *[first.detach()] * (len(images) - 1)])


@fails_with("changed the images that it was given")
def in_place(images, values, p):
    bordered = F.pad(images, (p, p, p, p)) + canvas(images, values, p)
    images.zero_()
    return bordered


@fails_with("right, until images have blank pixels of their own")
def what_is_zero(images, values, p):
    padded = F.pad(images, (p, p, p, p))
    free = padded[:1] == 0
    return padded + torch.zeros(free.shape).masked_scatter(free, values)
