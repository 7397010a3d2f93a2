"""How far minipeft and Hugging Face `peft` are apart: outputs, gradients, and twenty steps of training, as a table.

    python -m recipes.parity

The pairs are those of tests/parity, where the same differences are held below 1e-5, 1e-5, 1e-4 and 1e-3.
"""

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.models import farthest
from tests.parity import test_peft, test_peft_weights
from tests.parity.training import STEPS, apart_after_training, shifted_loss
from tests.tuning import labelled_batch


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    shapes = len(test_peft.SHAPES)
    print(f"| method | outputs ({shapes} shapes) | gradients ({shapes} shapes) | steps | losses | tensors |")
    print("|---|---:|---:|---:|---:|---:|")
    for module, kinds in ((test_peft, test_peft.KINDS), (test_peft_weights, list(test_peft_weights.KINDS))):
        for kind in kinds:
            at_once = [differences(module, kind, shape) for shape in test_peft.SHAPES]
            outputs, gradients = (max(found) for found in zip(*at_once, strict=True))
            losses, tensors = after_training(module, kind)
            print(f"| {kind} | {outputs:.0e} | {gradients:.0e} | {STEPS} | {losses:.0e} | {tensors:.0e} |")


def differences(module: Any, kind: str, shape: dict[str, Any]) -> tuple[float, float]:
    """The largest difference of any logit, and of any gradient."""
    with tempfile.TemporaryDirectory() as folder:
        tuned, wrapped = module.pair(Path(folder), kind, shape)
    tokens, labels = labelled_batch()
    outputs = farthest(tuned(tokens), their_logits(module, wrapped, kind, tokens))
    tuned.loss(tokens, labels).backward()
    their_loss(module, wrapped, kind, tokens, labels).backward()
    pairs = module.same_parameters(tuned, wrapped)
    return outputs, max(farthest(mine.grad, other.grad.reshape(mine.shape)) for mine, other in pairs)


def after_training(module: Any, kind: str) -> tuple[float, float]:
    """The largest difference of any step's loss, and of any trained tensor after the last."""
    with tempfile.TemporaryDirectory() as folder:
        tuned, wrapped = module.pair(Path(folder), kind, {})
    theirs = partial(their_loss, module, wrapped, kind)
    return apart_after_training(tuned.loss, theirs, module.same_parameters(tuned, wrapped))


def their_logits(module: Any, wrapped: Any, kind: str, tokens: torch.Tensor) -> torch.Tensor:
    if module is test_peft:
        return test_peft.their_logits(wrapped, kind, tokens)
    return test_peft_weights.their_logits(wrapped, tokens)


def their_loss(module: Any, wrapped: Any, kind: str, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return shifted_loss(their_logits(module, wrapped, kind, tokens), labels)


if __name__ == "__main__":
    main()
