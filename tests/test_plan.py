"""What a step needs, told without doing it: beside formulas written out."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minipeft.config import GPT2Config
from minipeft.gpt2 import GPT2
from minipeft.methods import FullFinetuning, LoRA, Method, Prefix, SoftPrompt
from minipeft.plan import SAFE, _left_in_container, bytes_of, fit, make_fit, needed_bytes, rows_at_once
from minipeft.rehearsal import Work, rehearse
from minipeft.tuned import attach

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
    B, T, L, D, V, scored = 4, 100, 3, 64, 512, 40
    products = 3 * 2 * B * (T * (12 * L - 8) * D * D + scored * (8 * D * D + V * D))  # the last MLP's are 8 D²
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
    whole, quarter = fit(work, 2 * enough[16]), fit(work, round((enough[4] + enough[1]) / 2 / SAFE))
    assert whole
    assert (whole.rows, whole.parts, whole.needed) == (16, 1, enough[16])
    assert quarter
    assert quarter.rows < 4
    assert quarter.parts * quarter.rows >= 16
    assert fit(work, enough[1] // 2) is None


@pytest.mark.parametrize("method", [Prefix(5, None), FullFinetuning(), None])
def test_a_plan_never_needs_more_than_there_is(method: Method | None) -> None:
    work = replace(WORK, method=method, batch_size=8)
    least, most = (needed_bytes(rehearse(replace(work, batch_size=n, accumulates=n == 1))) for n in (1, 8))
    rows = []
    for share in (0.1, 0.4, 0.7, 0.95):
        room = round((least + share * (most - least)) / SAFE)
        plan = fit(work, room)
        assert plan
        assert plan.needed <= SAFE * room
        rows.append(plan.rows)
    assert rows == sorted(rows)
    assert rows[-1] > rows[0]


def test_of_many_rows_a_few_tell_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    work = replace(WORK, batch_size=80)
    told = rehearse(work)
    monkeypatch.setattr("minipeft.rehearsal.MOST_ROWS", 100)
    whole = rehearse(work)
    assert (told.weights, told.trained) == (whole.weights, whole.trained)
    assert told.flops == pytest.approx(whole.flops, rel=0.02)
    assert told.peak == pytest.approx(whole.peak, rel=0.02)
    assert told.moved == pytest.approx(whole.moved, rel=0.02)


def test_what_has_to_change_is_told_in_the_words_of_the_command_line() -> None:
    work = Work(
        GPT2Config(n_layer=2, n_head=2, n_embd=128, vocab_size=512), LoRA(), batch_size=4, length=512, scored=40
    )
    needs = {
        "bfloat16": replace(work, batch_size=1, dtype=torch.bfloat16),
        "both": replace(work, batch_size=1, dtype=torch.bfloat16, checkpointing=True),
        "shorter": replace(work, batch_size=1, dtype=torch.bfloat16, checkpointing=True, length=256),
    }
    told = {}
    for name, leaner in needs.items():
        plan = make_fit(work, round(needed_bytes(rehearse(replace(leaner, accumulates=True))) / SAFE) + 1)
        assert plan
        told[name] = " ".join(plan.changed)
    assert told["bfloat16"] == "--dtype bfloat16 --micro-batch 1"
    assert told["both"] == "--dtype bfloat16 --gradient-checkpointing --micro-batch 1"
    assert told["shorter"].startswith("texts of 256 tokens --dtype bfloat16 --gradient-checkpointing --micro-batch")
    assert make_fit(work, 1_000_000) is None


@pytest.mark.parametrize(
    ("text", "size"), [("6GB", 6e9), ("6 gib", 6 * 2**30), ("800MB", 8e8), ("1.5", 1.5e9), ("2G", 2e9)]
)
def test_sizes_of_memory_are_read_as_people_write_them(text: str, size: float) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "much", "-6GB", "6TB", "nan"])
def test_what_is_no_size_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size of memory"):
        bytes_of(text)


def test_a_setting_of_rows_is_understood(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = torch.device("cpu")
    assert [rows_at_once(setting, WORK, cpu) for setting in (3, 9, "whole", "auto")] == [3, 4, 4, 4]
    monkeypatch.setattr("minipeft.plan.available_memory", lambda device: 1000)
    assert rows_at_once("auto", WORK, cpu) == 1
    assert "not even one row" in capsys.readouterr().err
    of_one = needed_bytes(rehearse(replace(WORK, batch_size=1, accumulates=True)))
    monkeypatch.setattr("minipeft.plan.available_memory", lambda device: 3 * of_one)
    assert [rows_at_once("auto", WORK, cpu, processes) for processes in (1, 2, 4)] == [4, 4, 1]
    assert "not even one row" in capsys.readouterr().err


def test_gradients_of_earlier_parts_are_counted() -> None:
    work = replace(WORK, method=FullFinetuning(), batch_size=1, length=8, scored=1)
    both = [rehearse(replace(work, accumulates=accumulates)) for accumulates in (False, True)]
    assert both[0].weights == both[1].weights == 0
    assert both[0].trained == both[1].trained
    assert both[0].peak < both[1].peak


def test_for_another_machine_no_type_of_this_processor_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is slow in bfloat16 widens what it multiplies; a GPU does not, whoever plans for it."""
    seen = []
    work = replace(WORK, dtype=torch.bfloat16, method=Prefix(5, None))
    for quick in (False, True):
        monkeypatch.setattr("minipeft.kernels.machine.QUICK_IN_BFLOAT16", quick)
        monkeypatch.setattr("minipeft.kernels.machine.HAS_AMX", quick)
        seen.append((rehearse(replace(work, on_cpu=False)), rehearse(work)))
    (gpu, slow), (same, quick_too) = seen
    assert gpu == same
    assert slow != quick_too


def test_the_rehearsal_counts_what_a_step_allocates() -> None:
    """PyTorch's profiler sees the same bytes at the highest point of a real step."""
    from torch.profiler import ProfilerActivity, profile

    config = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=128, vocab_size=512)
    for checkpointing in (False, True):
        work = Work(config, Prefix(5, None), 16, 100, 99, checkpointing=checkpointing)
        model = GPT2(config, seed=0).use_kernels().use_checkpointing(checkpointing)
        tuned = attach(model.use_packing(always=True), Prefix(5, None, init="random")).train()
        tokens = torch.randint(512, (16, 100), generator=torch.Generator().manual_seed(0))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            tuned.loss(tokens, tokens).backward()
        events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
        peak = now = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        assert rehearse(work).activations == pytest.approx(peak, rel=0.05), checkpointing


def test_a_text_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="128"):
        rehearse(replace(WORK, length=129))
    with pytest.raises(ValueError, match="scored must be at least 1"):
        replace(WORK, scored=0)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    """What it holds of files can go; where there is no such limit, nothing changes."""
    assert _left_in_container(tmp_path) == math.inf
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 400\ninactive_file 250\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _left_in_container(tmp_path) == 1000 - 700 + 250
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_in_container(tmp_path) == math.inf
