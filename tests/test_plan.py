"""What a step needs, told without doing it: beside formulas written out."""

from dataclasses import replace

import pytest
import torch

from minipeft.gpt2 import GPT2Config
from minipeft.methods import FullFinetuning, LoRA, Method, Prefix, SoftPrompt
from minipeft.plan import Work, needed_bytes, rehearse, rows_that_fit

SHAPE = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=128, vocab_size=512)
WORK = Work(SHAPE, LoRA(), batch_size=4, length=100, scored=40)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_weights_and_the_moments_are_counted(kind: torch.dtype) -> None:
    need = rehearse(replace(WORK, method=SoftPrompt(7), dtype=kind))
    assert need.weights == SHAPE.num_parameters() * kind.itemsize
    assert need.trained == 7 * 64 * 4 * 4  # fp32: itself, a gradient, two moments
    assert need.peak > need.weights + need.trained


def test_full_finetuning_costs_two_products_of_every_weight_backward_and_one_forward() -> None:
    need = rehearse(replace(WORK, method=FullFinetuning()))
    B, T, L, D, V = 4, 100, 3, 64, 512
    products = 3 * 2 * B * T * 12 * L * D * D + 3 * 2 * B * 40 * V * D
    attention = L * B * 7 * 2 * T * T * D  # 2 products forward, 5 backward, all [T, T]
    assert need.flops == pytest.approx(products + attention, rel=0.05)


@pytest.mark.parametrize("method", [SoftPrompt(5), Prefix(5, None), LoRA(), FullFinetuning()])
def test_a_larger_batch_needs_more_and_checkpointing_less(method: Method) -> None:
    work = replace(WORK, method=method, batch_size=16)
    peaks = [rehearse(each).peak for each in (replace(work, batch_size=4), work)]
    assert peaks[0] < peaks[1]
    assert rehearse(replace(work, checkpointing=True)).peak < peaks[1]


def test_as_many_rows_are_taken_as_fit() -> None:
    work = replace(WORK, batch_size=16)
    enough = {rows: needed_bytes(rehearse(replace(work, batch_size=rows))) for rows in (1, 4, 16)}
    assert rows_that_fit(work, 2 * enough[16]) == 16
    assert rows_that_fit(work, round(enough[4] / 0.9) + 1) == 4
    assert rows_that_fit(work, enough[1] // 2) is None


def test_a_text_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="128"):
        rehearse(replace(WORK, length=129))
    with pytest.raises(ValueError, match="scored must be at least 1"):
        replace(WORK, scored=0)
