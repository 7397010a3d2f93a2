"""Prefix: trainable keys and values in front of the text's own, in every block (the memory door).

    head = softmax(q [P_k; K]ᵀ / √Dh) [P_v; V]

While training, an MLP makes all of them from one small embedding; afterwards only its output is kept:

    [P_k, P_v of every layer] = W₂ tanh(W₁ E + b₁) + b₂

Source: Li & Liang 2021, §4.2–4.3; without the MLP it is the deep prompt of P-tuning v2 (Liu et al. 2022).
Trainable numbers: 2·L·D·p kept; p·D + D·m + m + 2·L·D·m + 2·L·D while an MLP of width m trains.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minipeft.attention import FixedMemory
from minipeft.gpt2 import GPT2
from minipeft.methods.base import (
    MEMORY,
    Attachment,
    Doors,
    check_length,
    prompt_learning_config,
    read_prompt_length,
    seeded_by,
    starting_tokens,
)


@dataclass(frozen=True)
class Prefix:
    """`length` trainable keys and values in every block.

    reparam: the width of the MLP that makes them while training, or None to train them directly.
    init: "random" (normal, 0.02; an MLP from PyTorch's defaults), "vocab" (the keys and values that random common
    tokens have) or "text:…" (those of that text, repeated or cut to length); an MLP is fitted to give exactly these.
    """

    length: int = 10
    reparam: int | None = 512
    init: str = "random"

    name: ClassVar[str] = "prefix"
    peft_type: ClassVar[str] = "PREFIX_TUNING"

    def __post_init__(self) -> None:
        if self.reparam is not None and self.reparam < 1:
            raise ValueError(f"reparam is {self.reparam}; it is the width of the MLP, at least 1, or None for no MLP.")
        if self.init not in ("random", "vocab") and not self.init.startswith("text:"):
            raise ValueError(f'init is {self.init!r}; it can be "random", "vocab" or "text:some text".')
        if self.reparam is not None and self.init != "random" and self.length >= self.reparam:
            raise ValueError(
                f"an MLP of width {self.reparam} cannot be fitted to {self.length} positions of a text; make it wider."
            )

    def attach_to(self, model: GPT2, generator: torch.Generator | None) -> tuple[GPT2, "LearnedPrefix"]:
        """See `Method.attach_to`."""
        check_length(self.length, model)
        c = model.config
        start = None
        if self.init != "random":
            start = keys_and_values(model, starting_tokens(self.init, self.length, model, generator))
        if self.reparam is not None:
            with seeded_by(generator):
                mlp = PrefixMLP(self.length, c.n_embd, self.reparam, c.n_layer)
            return model, LearnedPrefix(c.n_layer, c.n_head, mlp if start is None else mlp.fitted_to(start))
        if start is None:
            start = torch.randn(self.length, 2 * c.n_layer * c.n_embd, generator=generator) * 0.02
        return model, LearnedPrefix(c.n_layer, c.n_head, PrefixTable(start))

    def places(self, model: GPT2) -> set[str]:
        """See `Method.places`."""
        return {MEMORY}

    def peft_config(self, model: GPT2) -> dict[str, Any]:
        """See `Method.peft_config`."""
        return {
            **prompt_learning_config(model, self.length),
            "prefix_projection": self.reparam is not None,
            "encoder_hidden_size": self.reparam or model.config.n_embd,
        }

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: GPT2, path: Path) -> "Prefix":
        """See `Method.from_peft_config`. Files hold the MLP's output, so what is loaded has none."""
        return cls(length=read_prompt_length(config, model, path), reparam=None)

    def folded(self) -> "Prefix":
        """The same prefix without the MLP."""
        return replace(self, reparam=None)


class PrefixTable(nn.Module):
    """The keys and values are the parameters: [P, 2·L·D]."""

    def __init__(self, start: Float[Tensor, "P KV"]) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(start)

    def forward(self) -> Float[Tensor, "P KV"]:
        return self.prompt_embeddings


class PrefixMLP(nn.Module):
    """Embedding(p, D) → Linear(D, m) → tanh → Linear(m, 2·L·D)."""

    def __init__(self, length: int, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(length, width)
        self.transform = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 2 * layers * width))

    def forward(self) -> Float[Tensor, "P KV"]:
        return self.transform(self.embedding.weight)

    @torch.no_grad()
    def fitted_to(self, wanted: Float[Tensor, "P KV"]) -> "PrefixMLP":
        """This MLP with the smallest change of W₂ that makes it give `wanted`: fewer positions than m have one.

        Li & Liang 2021, §7.4, start from real words, too; as the last layer is linear, fitting it takes no training.
        """
        hidden, last = self.transform[1](self.transform[0](self.embedding.weight)), self.transform[2]
        last.weight += (torch.linalg.pinv(hidden) @ (wanted - self())).T  # [m, P] [P, KV]
        return self


class LearnedPrefix(Attachment):
    """What makes the [P, 2·L·D] keys and values, and the cut into layers and heads.

    The layout is PEFT's: `.view(P, L, 2, H, Dh)`, key before value.
    """

    def __init__(self, layers: int, heads: int, encoder: PrefixTable | PrefixMLP) -> None:
        super().__init__()
        self.layers, self.heads, self.encoder = layers, heads, encoder

    def doors(self) -> Doors:
        flat = self.encoder()
        kv = flat.view(flat.shape[0], self.layers, 2, self.heads, -1)
        keys, values = kv.permute(2, 1, 3, 0, 4).unsqueeze(2)  # [P, L, 2, H, Dh] -> 2 × [L, 1, H, P, Dh]
        return Doors(memory=FixedMemory(keys, values))

    def adapter_tensors(self) -> dict[str, Tensor]:
        return {"prompt_embeddings": self.encoder()}


@torch.no_grad()
def keys_and_values(
    model: GPT2, ids: Sequence[int] = (), prompt: Float[Tensor, "1 P D"] | None = None
) -> Float[Tensor, "P KV"]:
    """The keys and values that a text, or a soft prompt, has in every block, as a prefix equal to it."""
    P = len(ids) if prompt is None else prompt.shape[1]
    cache = model.new_cache(batch=1, capacity=P + 1)
    one_more = [0]  # a text needs a token; what stands behind the prefix cannot reach into it
    was_training = model.training
    model.eval()  # no dropout
    model.hidden(torch.tensor([[*ids, *one_more]], device=model.device), prompt=prompt, memory=cache)
    model.train(was_training)
    kv = torch.stack([cache.keys[:, 0, :, :P], cache.values[:, 0, :, :P]], dim=1)  # [L, 2, H, P, Dh]
    return kv.permute(3, 0, 1, 2, 4).flatten(1).float().cpu()
