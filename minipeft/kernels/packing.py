"""A batch without its padding: the real tokens of all rows one behind another, behind a prompt that the rows share."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from minipeft.kernels.machine import rounded_up


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a padded batch stand in one row of N: `shared`, then each row's real ones, then a filling.

    The filling, a text of zeros that no other sees, lets products of few different sizes occur (`rounded_up`).
    """

    real: Bool[Tensor, "B T"]
    """Of the tokens behind the shared ones, which are no padding."""
    lengths: tuple[int, ...]
    """Of each text, and last of the filling; none is 0."""
    shared: int
    filling: int

    @classmethod
    def of(cls, real: Bool[Tensor, "B S"], shared: int) -> "Packing":
        """The packing of such a batch, whose first `shared` tokens are the same in every row and never padding."""
        texts = real[:, shared:]
        lengths = texts.sum(dim=1).tolist()
        count = shared + sum(lengths)
        filling = rounded_up(count, real.device) - count
        return cls(texts, tuple(filter(None, (*lengths, filling))), shared, filling)

    def pack(self, x: Shaped[Tensor, "B S *D"]) -> Shaped[Tensor, "1 N *D"]:
        """The one row of all texts; the filling is zeros."""
        texts = x[:, self.shared :][self.real][None]
        return torch.cat([x[:1, : self.shared], texts, x.new_zeros(1, self.filling, *x.shape[2:])], dim=1)

    def unpack(self, x: Shaped[Tensor, "1 N D"]) -> Shaped[Tensor, "B T D"]:
        """The rows again, without what they share, and zeros where padding is."""
        texts = x.new_zeros(*self.real.shape, x.shape[-1])
        return texts.masked_scatter(self.real[..., None], x[:, self.shared :])
