"""Wrong losses."""

import torch
import torch.nn.functional as F

from tests.lessons.wrong import fails_with


def losses(logits, labels):
    """[B, T - 1], zero where nothing is scored."""
    found = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
    return found, labels[:, 1:] != -100


@fails_with("every token is asked for itself")
def unshifted(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


@fails_with("you shifted the wrong way")
def backwards(logits, labels):
    return F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten(), ignore_index=-100)


@fails_with("you divide by all places")
def divided_by_everything(logits, labels):
    found, _ = losses(logits, labels)
    return found.mean()


@fails_with("you average each row first")
def row_by_row(logits, labels):
    found, scored = losses(logits, labels)
    rows = scored.any(dim=1)
    return (found.sum(dim=1)[rows] / scored.sum(dim=1)[rows]).mean()


@fails_with("the loss is NaN: does a row without labels divide by zero")
def row_by_row_with_nan(logits, labels):
    found, scored = losses(logits, labels)
    return (found.sum(dim=1) / scored.sum(dim=1)).mean()


@fails_with("that is the sum of the losses")
def summed(logits, labels):
    return losses(logits, labels)[0].sum()


@fails_with("the sign is wrong")
def negative(logits, labels):
    found, scored = losses(logits, labels)
    return -found.sum() / scored.sum()


@fails_with("it must be one number|the loss must be one number")
def not_averaged(logits, labels):
    return losses(logits, labels)[0]


@fails_with("the loss has no gradient")
def made_of_numbers(logits, labels):
    found, scored = losses(logits, labels)
    return torch.tensor((found.sum() / scored.sum()).item())


@fails_with("the loss is .*, but a loop over the labels gives")
def masked_tokens_as_token_zero(logits, labels):
    found, _ = losses(logits, labels.clamp(min=0))
    return found.mean()


@fails_with("label_loss changed the labels that it was given")
def masked_tokens_as_token_zero_in_place(logits, labels):
    labels[labels == -100] = 0
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@fails_with("cut the logits at the end, and the labels at the beginning")
def both_cut_at_the_end(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, :-1].flatten(), ignore_index=-100)


@fails_with("as torch.roll does")
def rolled(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.roll(-1, dims=1).flatten(), ignore_index=-100)


@fails_with("the loss is NaN")
def overflowing(logits, labels):
    shares = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    targets = labels[:, 1:]
    scored = targets != -100
    return -shares[:, :-1][scored].gather(1, targets[scored][:, None]).log().mean()
