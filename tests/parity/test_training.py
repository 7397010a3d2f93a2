"""Full finetuning learns what `transformers` with PyTorch's AdamW learns: the same losses, step by step.

The protocol is that of the public losses of GPT-2 small (llm.c's `train_gpt2.py`): ten steps on one batch of 4 × 64
tokens (at GPT-2 small's size three on 1 × 64), AdamW at 1e-4 with (0.9, 0.999) and decay 0.01. The start is random, as
the public weights are not at hand; decay is on matrices alone on both sides, as GPT-2 was trained.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minipeft.gpt2 import GPT2
from minipeft.metrics import read_metrics
from minipeft.train import train
from minipeft.train_config import TrainConfig

LENGTH = 64
CONSTANT = {"warmup": 0.0, "schedule": "wsd", "decay": 0.0, "clip": 0.0}
SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "tiny": ({"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 128, "vocab_size": 600}, 4, 10),
    "GPT-2 small": ({}, 1, 3),
}
"""Settings, rows of a batch, and steps."""


def batch_of_text(rows: int, vocab_size: int) -> Tensor:
    """Rows of 65 neighbouring tokens, of which 64 are learned; a made-up text that repeats itself here and there."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(min(vocab_size, 500), (rows * LENGTH + 1,), generator=draw)
    return torch.stack([text[start : start + LENGTH + 1] for start in range(0, rows * LENGTH, LENGTH)])


@pytest.mark.parametrize(("shape", "rows", "steps"), SHAPES.values(), ids=SHAPES.keys())
def test_steps_have_the_losses_of_transformers(shape: dict[str, Any], rows: int, steps: int, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    dropouts = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **dropouts)).train()
    theirs.save_pretrained(tmp_path / "start")
    tokens = batch_of_text(rows, theirs.config.vocab_size)
    groups = [
        {"params": [p for p in theirs.parameters() if (p.dim() >= 2) is matrices], "weight_decay": decay}
        for matrices, decay in ((True, 0.01), (False, 0.0))
    ]
    optimizer, wanted = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999), eps=1e-8), []
    for _ in range(steps):
        loss = theirs(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wanted.append(float(loss.detach()))
    del theirs, optimizer, groups

    ours = GPT2.from_pretrained(tmp_path / "start").use_kernels().train()
    config = TrainConfig(steps, 1e-4, rows, weight_decay=0.01, save_seconds=1e9, **CONSTANT)
    train(dict(ours.named_parameters()), lambda _: ours.loss(tokens, tokens), config, tmp_path / "run")
    losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
    assert losses == pytest.approx(wanted, abs=1e-4)
    assert wanted[-1] < wanted[0] - 0.01  # something was learned, so equal losses say something
    for large in (tmp_path / "run").glob("*.safetensors"):  # gigabytes, which pytest's own folder would keep
        large.unlink()
