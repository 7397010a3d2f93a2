"""On a GPU everything is what it is on the CPU, up to rounding; skipped where there is none."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minipeft as mp
from minipeft.attention import explicit_attention, fused_attention, lower_right_mask
from minipeft.compare.machine import Meter
from minipeft.generate import generate
from minipeft.gpt2 import GPT2
from minipeft.methods import Method, trains_a_copy
from minipeft.tasks import collate, open_task
from minipeft.tune import TuneConfig, encoder_for, tune
from minipeft.tuned import attach

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = "cuda"
METHODS = [
    mp.SoftPrompt(length=5),
    mp.PTuning(length=5),
    mp.Prefix(length=5),
    mp.Prefix(length=5, reparam=64),
    mp.LoRA(rank=4, alpha=8),
    mp.IA3(),
    mp.BottleneckAdapter(width=8),
    mp.LlamaAdapter(length=5),
    mp.BitFit(),
    mp.FullFinetuning(),
]
CLOSE = 2e-4
"""Of the largest number; products of fp32 are added up in another order."""


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    one, other = one.detach().float().cpu(), other.detach().float().cpu()
    return float((one - other).abs().max() / other.abs().max())


def nano(device: str, dtype: torch.dtype = torch.float32) -> GPT2:
    return GPT2.from_pretrained("nano", device=device, dtype=dtype)


@pytest.mark.parametrize("attention", ["explicit", "fused", "split"])
@pytest.mark.parametrize("doors", ["text", "prompt", "memory", "padding"])
def test_logits_are_those_of_the_cpu(attention: str, doors: str) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(8000, (3, 9), generator=draw)
    mask = torch.ones(3, 9, dtype=torch.long)
    if doors == "padding":
        mask[0, :4], mask[1, 7:] = 0, 0
    found = []
    for device in (GPU, "cpu"):
        method = {"prompt": mp.SoftPrompt(length=4), "memory": mp.Prefix(length=4)}.get(doors, mp.BitFit())
        tuned = attach(nano(device).use_attention(attention), method).eval()
        given = mask.to(device) if doors == "padding" else None
        with torch.no_grad():
            found.append(tuned(tokens.to(device), given)[mask.bool().to(device)])
    assert far(*found) < CLOSE


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{getattr(method, 'reparam', None)}")
@pytest.mark.parametrize("kernels", [False, True])
def test_loss_and_gradients_are_those_of_the_cpu(method: Method, kernels: bool) -> None:
    task = open_task("movie")
    found: list[list[Tensor]] = []
    for device in (GPU, "cpu"):
        model = nano(device).use_kernels() if kernels else nano(device)
        tuned = attach(model, method).train()
        encoder = encoder_for(tuned, task, truncate=True)
        batch = collate([encoder.encode(one) for one in task.splits["train"][:6]], encoder.tokenizer.eot).to(
            model.device
        )
        loss = tuned.loss(batch.tokens, batch.labels, batch.attention_mask)
        loss.backward()
        found.append([loss.detach(), *(p.grad.to_dense() for p in tuned.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 1
    assert abs(float(found[0][0]) - float(found[1][0])) < 1e-4
    whole = [torch.cat([one.detach().float().cpu().flatten() for one in grads[1:]]) for grads in found]
    assert far(*whole) < 10 * CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", [0, 7])
def test_half_precision_attention_is_explicit_attention(memory: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    T, S = 33, 33 + memory
    q, k, v = (torch.randn(2, 4, n, 64, generator=draw).to(GPU, dtype) for n in (T, S, S))
    exact = explicit_attention(q.float(), k.float(), v.float(), lower_right_mask(T, S, device=q.device))
    assert far(fused_attention(q, k, v), exact) < 16 * torch.finfo(dtype).eps


def test_the_flash_kernel_serves_a_prefix() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (torch.randn(2, 4, n, 64, device=GPU, dtype=torch.bfloat16, requires_grad=True) for n in (32, 40, 40))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused_attention(q, k, v).sum().backward()
    assert bool(q.grad.isfinite().all())


@pytest.mark.parametrize("method", [None, mp.SoftPrompt(length=4), mp.Prefix(length=4), mp.LoRA(rank=4, alpha=8)])
def test_greedy_texts_are_those_of_the_cpu(method: Method | None) -> None:
    texts = []
    for device in (GPU, "cpu"):
        model = nano(device)
        writer = attach(model, method) if method else model
        asked = ["The film was", "Once upon a time there was", "I"]
        how = mp.Sampling(max_new_tokens=12)
        texts.append(writer.generate_with(asked, how) if method else generate(model, asked, how))
    assert texts[0] == texts[1]


def test_tuning_learns_what_it_learns_on_the_cpu(tmp_path: Path) -> None:
    curves = []
    for device in (GPU, "cpu"):
        model, config = nano(device).use_kernels(), TuneConfig(steps=12, batch_size=8, eval_every=12, truncate=True)
        rows: list[dict[str, object]] = []
        tune(model, mp.LoRA(rank=4, alpha=8), open_task("movie"), config, tmp_path / device, watch=rows.append)
        curves.append([row["loss"] for row in rows if "loss" in row])
    assert curves[0] == pytest.approx(curves[1], rel=0.01)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{getattr(method, 'reparam', None)}")
def test_bfloat16_bases_tune(method: Method, tmp_path: Path) -> None:
    model = nano(GPU, torch.float32 if trains_a_copy(method) else torch.bfloat16).use_kernels()
    if trains_a_copy(method):
        model.use_activations(torch.bfloat16)
    config = TuneConfig(steps=4, batch_size=8, eval_every=4, truncate=True)
    _, result = tune(model, method, open_task("movie"), config, tmp_path)
    assert math.isfinite(result.best_score)


def test_a_meter_tells_the_seconds_and_the_memory_of_the_gpu() -> None:
    meter = Meter(GPU)
    held = torch.zeros(1 << 20, device=GPU)
    row = meter.row()
    assert row["peak_bytes"] - row["bytes_before"] >= held.nbytes
    assert row["seconds"] >= 0
