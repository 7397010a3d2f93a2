"""The layers that a GPT-2 is made of, for weights and inputs that may differ in type."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer; how its product is computed can be chosen."""

    product = staticmethod(F.linear)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return self.product(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A vector for each number; how its gradient is added up can be chosen."""

    gradient_by_rows = False
    """On a CPU, whether the gradient is made as the rows that were read, and not as a matrix that is zero elsewhere.

    For a matrix that is the head, too, whose own gradient is there before it and takes the rows up.
    """

    def reset_parameters(self) -> None:
        """Draw starting values; where there is no memory for any, PyTorch would import its compiler to draw none."""
        if self.weight.device.type != "meta":
            super().reset_parameters()

    def forward(self, numbers: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        return F.embedding(numbers, self.weight, sparse=self.gradient_by_rows and not numbers.is_cuda)


class LayerNorm(nn.LayerNorm):
    """Layer norm in fp32 of inputs that may be half precision."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.normed(x, self.bias)

    def normed(self, x: Float[Tensor, "*B D"], bias: Float[Tensor, "D"]) -> Float[Tensor, "*B D"]:
        """The same with a bias of its own."""
        both = x.dtype == self.weight.dtype or x.device.type == "cpu"  # the CPU's kernel takes both types at once
        out = F.layer_norm(x if both else x.float(), self.normalized_shape, self.weight, bias, self.eps)
        return out if both else out.to(x.dtype)
