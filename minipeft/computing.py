"""How a GPT2 computes: choices between ways that give the same numbers, up to rounding, in other time or memory.

A model is made with the plain ways, those that read like the equations, but for PyTorch's fused attention.
"""

import math
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from minipeft.attention import ATTENTION
from minipeft.kernels import LOSSES, PRODUCTS
from minipeft.kernels.decoding import compiled_step
from minipeft.kernels.machine import by_onednn, product_type
from minipeft.layers import Embedding, Linear

if TYPE_CHECKING:
    from minipeft.config import GPT2Config
    from minipeft.gpt2 import GPT2, Block

Model = TypeVar("Model", bound="Computing")

PACKING_PAYS = 1.5e6
"""From so much on (padding of a row · D²) the products saved take longer than attending row by row: two CPU cores,
`benchmarks/packing.py`."""


class Computing(nn.Module):
    """What a GPT2 may be told about its ways; each `use_…` returns the model."""

    if TYPE_CHECKING:  # what it must have
        config: GPT2Config
        wte: Embedding

        @property
        def blocks(self) -> list[Block]: ...
        @property
        def dtype(self) -> torch.dtype: ...

    def use_kernels(self: Model) -> Model:
        """Everything that makes training this model faster or smaller on its device; equal results, up to rounding."""
        widest = max((module.weight for module in self.modules() if isinstance(module, Linear)), key=Tensor.numel)
        wider = product_type(widest) != self.dtype
        gains = wider or self.activations is not None or by_onednn(widest, widest)
        self.use_products("mixed" if gains else "plain")
        for block in self.blocks:
            block.mlp.gelu_again = True
        on_cpu = self.wte.weight.device.type == "cpu"  # a GPU is quicker with padding than with rows one by one
        return self.use_loss("chunked").use_attention("split").use_packing(on_cpu, always=wider)

    def use_attention(self: Model, attention: str) -> Model:
        """Compute attention written out ("explicit") or by PyTorch's fused kernel ("fused"); equal results.

        "split" is "fused", and in batches without padding the prefix's part is computed by itself where it can be.
        """
        if attention not in (*ATTENTION, "split"):
            raise ValueError(f"attention is {attention!r}; it can be {', '.join(map(repr, ATTENTION))} or 'split'.")
        self.splits_attention = attention == "split"
        for block in self.blocks:
            block.attn.attend = ATTENTION["fused" if self.splits_attention else attention]
        return self

    def use_products(self: Model, kind: str) -> Model:
        """Multiply by weights as they are ("plain"), in the type that is fastest here ("mixed"), or without gradients
        by a second copy of them in the order that a CPU reads them in ("packed"): for writing text.
        """
        if kind not in PRODUCTS:
            raise ValueError(f"products is {kind!r}; it can be {', '.join(map(repr, PRODUCTS))}.")
        for module in self.modules():
            if isinstance(module, Linear):
                module.product = PRODUCTS[kind]()
        self.head_product = PRODUCTS["packed" if kind == "packed" else "plain"]()
        return self

    def use_loss(self: Model, kind: str) -> Model:
        """Compute losses from all labels' logits at once ("plain") or a few at a time ("chunked"); equal results.

        "chunked" adds the embeddings' gradient to a tied head's by rows, too.
        """
        if kind not in LOSSES:
            raise ValueError(f"loss is {kind!r}; it can be {' or '.join(map(repr, LOSSES))}.")
        self.label_loss = LOSSES[kind]
        self.wte.gradient_by_rows = kind == "chunked" and self.config.tied
        return self

    def use_activations(self: Model, kind: torch.dtype | None) -> Model:
        """While training, compute in this type between the weights, which keep theirs: mixed precision; None: one type.

        Source: Micikevicius et al. 2018, §3.
        """
        self.activations = kind
        return self.use_products("plain" if kind is None else "mixed")

    def use_compile(self: Model) -> Model:
        """Compile each block by `torch.compile` at its first use, once for all lengths; not undone; equal results.

        Two CPU cores without AMX gain nothing (0.97 to 1.02 of the time, after 10 to 20 s of compiling), as matrix
        products are most of a step there; on a GPU it is unmeasured. It needs a C++ compiler, and is off by default.
        """
        for block in self.blocks:
            block.compile(dynamic=True)
        return self

    def use_compiled_steps(self: Model, on: bool = True) -> Model:
        """Write text by a step that `torch.compile` made, on a GPU as a CUDA graph; equal results, up to rounding.

        It is compiled anew for every number of rows and each 64 slots of the cache, and rows that have ended stay. On a
        CPU it is slower than without, in bfloat16 four times as slow as packed weights; on a GPU it is unmeasured.
        """
        self.step = compiled_step(cast("GPT2", self)) if on else None
        return self

    def use_checkpointing(self: Model, on: bool = True) -> Model:
        """While training keep only what goes into each block, and compute the rest again for the gradient.

        Less memory for a third more computing; the same gradients. Source: Chen et al. 2016, §3.
        """
        self.recompute = on
        return self

    def use_packing(self: Model, on: bool = True, always: bool = False) -> Model:
        """Leave the padding of a batch out of all computing where that pays, or always; equal results.

        The rows then stand one behind another, behind a prompt that is computed once for all of them: it sees no text,
        so it is the same before each. Only attention takes the rows one by one.
        """
        self.packing = (0.0 if always else PACKING_PAYS) if on else math.inf
        return self
