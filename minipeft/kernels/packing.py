"""A batch without its padding: the real tokens of all rows one behind another, behind a prompt that the rows share."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from minipeft.kernels.machine import filling_of


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a padded batch stand in one row of N: `shared`, then each row's real ones, then a filling.

    The filling, a text of zeros that no other sees, lets products of few different sizes occur (`filling_of`).
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
        filling = filling_of(shared + sum(lengths), real.device)
        return cls(texts, tuple(filter(None, (*lengths, filling))), shared, filling)

    def pack(self, x: Shaped[Tensor, "B S *D"]) -> Shaped[Tensor, "1 N *D"]:
        """The one row of all texts; the filling is zeros."""
        texts = x[:, self.shared :][self.real][None]
        return torch.cat([x[:1, : self.shared], texts, x.new_zeros(1, self.filling, *x.shape[2:])], dim=1)

    def unpack(self, x: Shaped[Tensor, "1 N D"]) -> Shaped[Tensor, "B T D"]:
        """The rows again, without what they share, and zeros where padding is."""
        texts = x.new_zeros(*self.real.shape, x.shape[-1])
        return texts.masked_scatter(self.real[..., None], x[:, self.shared :])


def places_of(asked: Bool[Tensor, "B T"]) -> Int[Tensor, "N"]:
    """Where the tokens that are asked for stand among all B·T; behind them the first place as often as `filling_of`."""
    places = asked.flatten().nonzero()[:, 0]
    return F.pad(places, (0, filling_of(len(places), places.device)))
