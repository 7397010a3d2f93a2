"""GPT-2: blocks, model, and the three doors through which a method enters it.

Door *input*: `prompt`, vectors in front of the token embeddings. Door *memory*: `memory`, keys and values in front
of each block's own. Door *weights*: every linear layer is a module that a method may replace. This file knows no
method by name.

Letters: B rows, T tokens, P prompt or prefix vectors, S keys, L layers, H heads, D width, Dh = D / H, V vocabulary.
Source: Radford et al. 2019; the parameter names are those of the public weights.
"""

import math
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minipeft.attention import (
    ATTENTION,
    FixedMemory,
    KVCache,
    Memory,
    Rows,
    attend_row_by_row,
    lower_right_mask,
    next_positions,
)
from minipeft.computing import Computing
from minipeft.config import GPT2Config
from minipeft.kernels.mixed_linear import gelu_linear
from minipeft.kernels.packed_linear import linear_gelu
from minipeft.kernels.packing import Packing, places_of
from minipeft.kernels.split_attention import can_split, split_attention
from minipeft.layers import Embedding, LayerNorm, Linear
from minipeft.tokenizer import Tokenizer

NOT_SCORED = -100


class CausalSelfAttention(nn.Module):
    """Every token reads from the memory, the tokens before it and itself."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.attend = ATTENTION["fused"]

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "#B 1 T S"] | Rows | None, memory: Memory | None, layer: int
    ) -> Float[Tensor, "B T D"]:
        qkv = self.c_attn(x)
        if isinstance(mask, Rows) and mask.split:
            prefix = memory.of(layer) if isinstance(memory, FixedMemory) else None
            joined = split_attention(qkv, self.n_head, mask.lengths, mask.shared, prefix)
        else:
            joined = self._attend(qkv, mask, memory, layer)
        return F.dropout(self.c_proj(joined), self.dropout, self.training)

    def _attend(
        self,
        qkv: Float[Tensor, "B T E"],
        mask: Bool[Tensor, "#B 1 T S"] | Rows | None,
        memory: Memory | None,
        layer: int,
    ) -> Float[Tensor, "B T D"]:
        q, k, v = (self._split_heads(part) for part in qkv.chunk(3, dim=-1))
        if memory is not None:
            k, v = memory.extend(layer, k, v)
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, Rows):
            heads = attend_row_by_row(self.attend, q, k, v, mask, dropout)
        else:
            heads = self.attend(q, k, v, mask, dropout)
        return heads.transpose(1, 2).flatten(2)  # [B, H, T, Dh] -> [B, T, D]

    def _split_heads(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T Dh"]:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Four times wider, GELU, back again. The GELU of the public weights is the tanh form."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.dropout, self.gelu = config.dropout, {"tanh": "tanh", "exact": "none"}[config.gelu]
        self.gelu_again = False
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        first, last = self.c_fc, self.c_proj
        if self.gelu_again and isinstance(last, Linear) and last.weight.requires_grad:
            x = gelu_linear(first(x), last.weight, last.bias, self.gelu)
        else:
            x = last(linear_gelu(first, x, self.gelu))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Layer norm before each half, the input added after it."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "#B 1 T S"] | Rows | None,
        memory: Memory | None,
        layer: int,
        only: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "#B _ D"]:
        """`only`: where among all B·T tokens those stand whose results are asked for, given as one row; None: all."""
        x = x + self.attn(self.ln_1(x), mask, memory, layer)
        if only is not None:
            x = x.flatten(0, 1)[only][None]  # [1, N, D]
        return x + self.mlp(self.ln_2(x))


class GPT2(Computing):
    """A GPT-2 language model: token ids in, logits of the next token out."""

    def __init__(self, config: GPT2Config, attention: str = "fused", seed: int | None = None) -> None:
        """A model with GPT-2's own random initialisation; `attention` is "fused" or "explicit"."""
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.lm_head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.use_attention(attention)
        self.use_loss("plain").use_activations(None)
        self.use_checkpointing(False).use_packing(False).use_compiled_steps(False)
        if self.wte.weight.device.type != "meta":
            self._initialise(seed)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
        *,
        prompt: Float[Tensor, "#B P D"] | None = None,
        memory: Memory | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each real token.

        `attention_mask`: 1 real, 0 padding, left or right. `prompt` and `memory` are the two doors; neither is ever
        padding, and logits are never returned for them.

        Raises ValueError, before any compute, if memory, prompt and tokens exceed `n_positions`.
        """
        hidden = self.hidden(tokens, attention_mask, prompt=prompt, memory=memory)
        return self.logits(hidden)

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
        *,
        prompt: Float[Tensor, "#B P D"] | None = None,
        memory: Memory | None = None,
        only: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "N D"]:
        """What `forward` computes, up to the head: the final hidden states of the real tokens.

        `only`: which real tokens' states are asked for; they come one behind another, [N, D].
        """
        B, T = tokens.shape
        P = 0 if prompt is None else prompt.shape[1]
        if attention_mask is not None and attention_mask.shape != tokens.shape:
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, but tokens are {(B, T)}.")
        real = tokens.new_ones(B, T, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        M = 0 if memory is None else memory.length
        if self.config.n_positions < M + P + T:  # padding takes no position
            M, T = _of_the_fullest(real, memory)
        self.check_room(M, P, T)
        if prompt is not None:
            real = torch.cat([real.new_ones(B, P), real], dim=1)
        x = self.embed(tokens, next_positions(real, memory), prompt)
        asked = None if only is None else F.pad(only, (P, 0))  # [B, P + T]

        mask: Tensor | Rows | None
        packing = self._packing(real, prompt, memory)
        if packing is not None:
            x, asked = packing.pack(x), None if asked is None else packing.pack(asked)
            dropout = self.config.dropout if self.training else 0.0
            split = self.splits_attention and can_split(x, dropout) and not (packing.shared and memory is not None)
            mask = Rows(packing.lengths, packing.shared, split)
        else:
            mask = self._mask(real, memory, padded=attention_mask is not None)
        x = self.through_blocks(x, mask, memory, None if asked is None else places_of(asked))
        if memory is not None:
            memory.advance(real)
        if only is not None:
            return self.ln_f(x)[0, : int(only.sum())]
        if packing is not None:
            x, P = packing.unpack(x), P - packing.shared
        return self.ln_f(x[:, P:])

    def embed(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "#B S"], prompt: Float[Tensor, "#B P D"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """What goes into the blocks: the prompt, then the tokens' embeddings, S = P + T, each with its position's."""
        x = self.wte(tokens)
        if prompt is not None:
            x = torch.cat([prompt.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        x = F.dropout(x + self.wpe(positions), self.config.dropout, self.training)
        return x.to(self.activations) if self.training and self.activations is not None else x

    def through_blocks(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "#B 1 T S"] | Rows | None,
        memory: Memory | None,
        only: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "#B _ D"]:
        """What the blocks make of embedded tokens, one after another; while training, by `use_checkpointing`.

        `only`: see `Block`; in the last block all that follows attention is left out for the other tokens.
        """
        # A cache must see each token once, so with one nothing is computed again.
        again = self.recompute and self.training and torch.is_grad_enabled() and not isinstance(memory, KVCache)
        for layer, block in enumerate(self.h):
            inputs = (x, mask, memory, layer, only if layer == len(self.h) - 1 else None)
            x = checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)
        return x

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """The head: the token embeddings, unless the model has a matrix of its own."""
        return self.head_product(hidden.to(self.head.dtype), self.head)

    @property
    def head(self) -> Float[Tensor, "V D"]:
        """The matrix that turns hidden states into logits."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    def loss(
        self,
        tokens: Int[Tensor, "B T"],
        labels: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
        *,
        prompt: Float[Tensor, "#B P D"] | None = None,
        memory: Memory | None = None,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy in nats of the labels, each predicted from the token before it; -100 is not scored.

        The first label of a row has no token before it, or padding, and is never scored. Logits exist only where a
        label is. Raises ValueError if no label is scored.
        """
        if attention_mask is not None:
            after_padding = F.pad(attention_mask[:, :-1] == 0, (1, 0))
            labels = labels.masked_fill(after_padding, NOT_SCORED)
        targets = labels[:, 1:]
        scored = targets != NOT_SCORED
        if not bool(scored.any()):
            raise ValueError("no label is scored: every label after the first of its row is -100.")
        hidden = self.hidden(tokens, attention_mask, prompt=prompt, memory=memory, only=F.pad(scored, (0, 1)))
        return self.label_loss(hidden, self.head, targets[scored], label_smoothing)

    @property
    def blocks(self) -> list[Block]:
        """The blocks of `h`, first to last."""
        return cast("list[Block]", list(self.h))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer this model was trained with. Raises ValueError if its vocabulary is none of GPT-2's."""
        return Tokenizer.for_vocab_size(self.config.tokens)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.wte.weight.dtype

    def num_parameters(self) -> int:
        """How many numbers the model has; the tied head counts once. GPT-2 small: 124,439,808."""
        return sum(parameter.numel() for parameter in self.parameters())

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` positions."""
        c = self.config
        return KVCache(c.n_layer, batch, c.n_head, capacity, c.head_size, like=self.wte.weight)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: object) -> "GPT2":
        """A model that ships ("nano", "pico"), or from a folder or file of weights: `minipeft.checkpoint.load_gpt2`."""
        from minipeft.checkpoint import load_gpt2

        return load_gpt2(name, **options)  # type: ignore[arg-type]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` as `transformers` does: see `minipeft.checkpoint.save_gpt2`."""
        from minipeft.checkpoint import save_gpt2

        save_gpt2(self, folder)

    def check_room(self, memory: int, prompt: int, tokens: int) -> None:
        """Raise ValueError if so many positions are more than the model has, or none is text."""
        if tokens == 0:
            raise ValueError("there are no tokens: the text is empty.")
        needed, room = memory + prompt + tokens, self.config.n_positions
        if needed > room:
            parts = [f"{n} {what}" for n, what in ((memory, "in memory"), (prompt, "of the prompt")) if n]
            parts.append(f"{tokens} token{'s' * (tokens != 1)}")
            raise ValueError(
                f"{' + '.join(parts)} = {needed} positions, but this model has {room}; shorten the text or the prompt."
            )

    def _mask(self, real: Bool[Tensor, "B T"], memory: Memory | None, padded: bool) -> Bool[Tensor, "#B 1 T S"] | None:
        """One mask for all layers, or None where plain causal attention is right."""
        B, T = real.shape
        M = 0 if memory is None else memory.length
        memory_real = None if memory is None else memory.real
        if not padded and memory_real is None:
            plain = M == 0 or T == 1 or real.is_cuda  # CUDA's kernels take the corner by name
            return None if plain else lower_right_mask(T, M + T, device=real.device)
        before = real.new_ones(B, M) if memory_real is None else memory_real
        real = torch.cat([before, real], dim=1)
        return lower_right_mask(T, real.shape[1], real, device=real.device)

    def _packing(
        self, real: Bool[Tensor, "B S"], prompt: Float[Tensor, "#B P D"] | None, memory: Memory | None
    ) -> Packing | None:
        """How to leave padding out, and all but one of a prompt's copies; None where that does not pay.

        A row's own memory cannot stand before all rows. A prefix that is not copied to every row's keys counts like
        tokens that are left out.
        """
        one_for_all = memory is None or (isinstance(memory, FixedMemory) and memory.keys.shape[1] == 1)
        if math.isinf(self.packing) or not one_for_all:
            return None
        same = prompt is not None and prompt.shape[0] == 1 and not (self.training and self.config.dropout)
        shared = prompt.shape[1] if prompt is not None and same else 0
        rows = len(real)
        left_out = (int((~real).sum()) + shared * (rows - 1)) / rows
        if memory is not None and self.splits_attention:
            left_out += memory.length
        return Packing.of(real, shared) if left_out * self.config.n_embd**2 > self.packing else None

    @torch.no_grad()
    def _initialise(self, seed: int | None) -> None:
        """N(0, 0.02), positions N(0, 0.01), projections into the residual stream scaled by 1/√(2L), biases 0."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith("c_proj.weight")
                std = 0.01 if name == "wpe.weight" else 0.02
                std /= math.sqrt(2 * self.config.n_layer) if into_residual else 1.0
                drawn = torch.empty(parameter.shape, device="cpu").normal_(0.0, std, generator=generator)
                parameter.copy_(drawn)  # drawn on the CPU, so that a seed means the same on every device
            elif name.endswith("bias"):
                parameter.zero_()


def _of_the_fullest(real: Bool[Tensor, "B T"], memory: Memory | None) -> tuple[int, int]:
    """How many real keys in memory and tokens that row has which has most of both."""
    before = real.new_zeros(len(real), 0) if memory is None else memory.real
    if before is None:
        assert memory is not None
        before = real.new_ones(len(real), memory.length)
    kept, read = before.sum(dim=1), real.sum(dim=1)
    row = int((kept + read).argmax())
    return int(kept[row]), int(read[row])
