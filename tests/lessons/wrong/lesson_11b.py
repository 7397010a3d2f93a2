"""Wrong measures of how far attention within a text moved."""

from tests.lessons.wrong import fails_with


def text_of(before, after):
    return after[..., -before.shape[-1] :]


@fails_with("the text's weights are not renormalised")
def not_renormalised(before, after):
    return (text_of(before, after) - before).abs().max()


@fails_with("you took the first T columns")
def first_columns(before, after):
    text = after[..., : before.shape[-1]]
    return (text / text.sum(dim=-1, keepdim=True) - before).abs().max()


@fails_with("that is the mean of all changes")
def mean_change(before, after):
    text = text_of(before, after)
    return (text / text.sum(dim=-1, keepdim=True) - before).abs().mean()


@fails_with("a share that falls has moved, too")
def only_what_grew(before, after):
    text = text_of(before, after)
    return (text / text.sum(dim=-1, keepdim=True) - before).max()


@fails_with("that is a second softmax")
def softmax_again(before, after):
    return (text_of(before, after).softmax(dim=-1) - before).abs().max()


@fails_with("divided by one number for a whole row of the batch or a head")
def one_normaliser_for_a_row(before, after):
    text = text_of(before, after)
    return (text / text.sum(dim=-1, keepdim=True).mean(dim=(1, 2), keepdim=True) - before).abs().max()


@fails_with("divided by one number for a whole row of the batch or a head")
def one_normaliser_for_a_head(before, after):
    text = text_of(before, after)
    return (text / text.sum(dim=-1, keepdim=True).mean(dim=2, keepdim=True) - before).abs().max()


@fails_with("the result is no finite number")
def relative_change(before, after):
    text = text_of(before, after)
    return (text / text.sum(dim=-1, keepdim=True) / before - 1).abs().max()


@fails_with("shares_moved must return one number")
def every_change(before, after):
    text = text_of(before, after)
    return (text / text.sum(dim=-1, keepdim=True) - before).abs()


@fails_with("right with a prefix; without one, as for LoRA")
def without_a_prefix_nothing_moves(before, after):
    P = after.shape[-1] - before.shape[-1]
    if P == 0:
        return 0.0
    text = after[..., P:]
    return (text / text.sum(dim=-1, keepdim=True) - before).abs().max()


@fails_with("the largest change of a share is")
def half_of_it(before, after):
    text = text_of(before, after)
    return (text / text.sum(dim=-1, keepdim=True) - before).abs().max() / 2
