"""The layers that a GPT-2 is made of, for weights and inputs that may differ in type."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer; how its product is computed can be chosen."""

    product = staticmethod(F.linear)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return self.product(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer norm in fp32 of inputs that may be half precision."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if x.dtype == self.weight.dtype or x.device.type == "cpu":  # the CPU's kernel takes both types at once
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)
