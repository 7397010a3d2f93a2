"""What a bare model answers to a person's words around a text, as it is and calibrated."""

from collections.abc import Sequence
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from minipeft.evaluate import Score, label_log_likelihoods, score_labels
from minipeft.gpt2 import GPT2
from minipeft.methods import HardPrompt
from minipeft.overview import BYTES
from minipeft.tasks import Example, Task
from minipeft.tune import encoder_for
from minipeft.tuned import attach


class Asked:
    """A model asked for the label of a text by a `template` around it; nothing is trained.

    Calibrated (Zhao et al. 2021; Zhou et al. 2023): a label's mean log-likelihood over the dev texts is taken off, so
    that no label wins by being the likelier word. The texts' own labels are not used for that.
    """

    def __init__(self, model: GPT2, task: Task, template: str) -> None:
        self.task, self.template = task, template
        self._tuned = attach(model, HardPrompt(template))
        self.encoder = encoder_for(self._tuned, task, truncate=True)

    @cached_property
    def on_dev(self) -> Float[Tensor, "N labels"]:
        """Log-likelihoods of the labels on dev."""
        return label_log_likelihoods(self._tuned, self.encoder, self.task.splits["dev"])

    def answers(self, examples: Sequence[Example], calibrated: bool = False) -> Float[Tensor, "N labels"]:
        """Log-likelihoods of the labels, less what calibration takes off."""
        on_dev = examples is self.task.splits["dev"]
        found = self.on_dev if on_dev else label_log_likelihoods(self._tuned, self.encoder, examples)
        return found - self.on_dev.mean(dim=0) if calibrated else found

    def nbytes(self, calibrated: bool = False) -> int:
        """What one more task costs: the words, and the numbers that calibration takes off."""
        return len(self.template.encode("utf-8")) + (BYTES * len(self.task.labels) if calibrated else 0)

    def score(self, examples: Sequence[Example], calibrated: bool = False) -> Score:
        """How many of them are right."""
        return score_labels(self.encoder, examples, self.answers(examples, calibrated))
