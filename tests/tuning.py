"""Every method at tiny size, and what is done with each of them."""

import torch
from torch import Tensor

import minipeft as mp
from minipeft.methods import Method
from tests.models import random_tokens

TINY_METHODS: dict[str, Method] = {
    "soft prompt": mp.SoftPrompt(length=4, init="random"),
    "prefix": mp.Prefix(length=4, reparam=None),
    "prefix by MLP": mp.Prefix(length=4, reparam=6),
    "P-tuning by LSTM": mp.PTuning(length=4),
    "P-tuning by MLP": mp.PTuning(length=4, encoder="mlp"),
    "LoRA": mp.LoRA(rank=2, targets=("attn.c_attn", "mlp.c_proj")),
    "LoRA on q and v": mp.LoRA(rank=2, targets=("attn.q", "attn.v")),
    "IA3": mp.IA3(),
    "adapters of Houlsby": mp.BottleneckAdapter(width=4),
    "adapters of Lin": mp.BottleneckAdapter(width=4, form="lin", norms=True),
    "LLaMA-Adapter": mp.LlamaAdapter(length=3),
    "LLaMA-Adapter of PEFT": mp.LlamaAdapter(length=3, top_layers=1, form="peft"),
    "BitFit": mp.BitFit(),
    "full": mp.FullFinetuning(),
    "last block": mp.FullFinetuning(top_layers=1),
    "soft prompt on a LoRA": mp.Stack(
        (mp.LoRA(rank=2, targets=("mlp.c_proj",)), mp.SoftPrompt(length=4, init="random"))
    ),
    "LoRA, IA3 and adapters": mp.Stack(
        (mp.LoRA(rank=2), mp.IA3(targets=(), feedforward=("mlp.c_proj",)), mp.BottleneckAdapter(width=4, form="lin"))
    ),
}
PROMPTS_AND_PREFIXES = ["soft prompt", "prefix", "prefix by MLP"]


def labelled_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three rows of nine tokens, the last four of each scored."""
    tokens = random_tokens(3, 9, seed=seed)
    labels = tokens.clone()
    labels[:, :5] = -100
    return tokens, labels


def train_steps(tuned: mp.Tuned, steps: int = 3, lr: float = 0.01) -> list[float]:
    """A few steps of AdamW; the losses."""
    optimizer = torch.optim.AdamW(tuned.trainable_parameters().values(), lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        loss = tuned.loss(*labelled_batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses
