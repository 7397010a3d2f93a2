"""One more token by the fast ways: the same numbers. What is compiled runs in a process of its own, as in
`tests/test_torch_compile.py`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minipeft as mp
from minipeft.attention import KVCache
from minipeft.bank import PromptBank
from minipeft.generate import go_on
from minipeft.kernels.decoding import all_slots_pay, plain_step
from minipeft.sampling import Sampling
from tests.models import farthest, random_memory, random_model, random_tokens, shake


def main(backend: str) -> None:
    """Compare plain and compiled steps."""
    compiled = torch.compile
    torch.compile = lambda function, **options: compiled(function, **{**options, "mode": None}, backend=backend)  # type: ignore[assignment, call-overload]
    model = random_model(1)
    bank = PromptBank(model)
    bank.add("short", mp.attach(model, mp.Prefix(2, None), seed=1))
    bank.add("long", mp.attach(model, mp.SoftPrompt(5, "random"), seed=2))
    rows, tasks = [random_tokens(n, seed=n).tolist() for n in (9, 3, 6)], ["short", None, "long"]
    samplings = [Sampling(12), Sampling(5, temperature=1.0, seed=3), Sampling(12, repetition_penalty=1.2)]
    plain = bank.write(rows, tasks, sampling=samplings, log_probabilities=True)
    beams = bank.generate(rows[:1], tasks[:1], 8, beams=3)
    model.use_compiled_steps()
    found = bank.write(rows, tasks, sampling=samplings, log_probabilities=True)
    assert [row.new for row in found] == [row.new for row in plain]
    for one, other in zip(found, plain, strict=True):
        assert farthest(torch.tensor(one.log_probabilities), torch.tensor(other.log_probabilities)) < 1e-4
    assert bank.generate(rows[:1], tasks[:1], 8, beams=3) == beams
    model.use_compiled_steps(False)
    assert [row.new for row in bank.write(rows, tasks, sampling=samplings)] == [row.new for row in plain]
    print("equal")


def test_a_step_is_that_of_the_model_with_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not of the base that it was first made of."""
    monkeypatch.setattr("minipeft.computing.compiled_step", plain_step)
    model = random_model(seed=1)
    plain = mp.attach(model, mp.LoRA())
    shake(plain.attachment, seed=1)
    wanted = plain.generate([5, 1, 2], 12)
    assert wanted != mp.generate(model, [5, 1, 2], mp.Sampling(12))
    tuned = mp.attach(model.use_compiled_steps(), mp.LoRA())
    tuned.attachment.load_state_dict(plain.attachment.state_dict())
    assert tuned.generate([5, 1, 2], 12) == wanted
    assert mp.generate(tuned.merge(), [5, 1, 2], mp.Sampling(12)) == wanted


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=[pytest.mark.long, pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: g++")],
        ),
    ],
)
def test_a_compiled_step_writes_the_same(backend: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.test_decoding", backend]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal\n")


def read_then_go_on(model: mp.GPT2, rows: int, capacity: int, padded: bool) -> tuple[KVCache, torch.Tensor]:
    """A cache of `rows` texts behind a prefix, and the logits of four more tokens, read one by one."""
    tokens = random_tokens(rows, 10)
    real = torch.ones(rows, 6, dtype=torch.bool)
    if padded:
        real[0, :2] = False
    cache = model.new_cache(rows, capacity)
    cache.start_with(random_memory(model, 3))
    with torch.no_grad():
        model.hidden(tokens[:, :6], real if padded else None, memory=cache)
        return cache, torch.stack([go_on(model, tokens[:, [at]], cache) for at in range(6, 10)], dim=1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_step_over_all_slots_is_a_step_over_those_that_are_filled(rows: int, attention: str, padded: bool) -> None:
    model = random_model(1, attention)
    nearly_full, all_slots = read_then_go_on(model, rows, 3 + 10, padded)
    half_empty, filled = read_then_go_on(model, rows, 3 + 29, padded)
    assert all_slots_pay(nearly_full) == (rows == 5)
    assert not all_slots_pay(half_empty)
    assert farthest(all_slots, filled) < 1e-5
    if not padded:  # against no cache at all
        tokens, memory = random_tokens(rows, 10), random_memory(model, 3)
        assert farthest(all_slots, model(tokens, memory=memory)[:, 6:]) < 1e-5


def test_a_gpu_steps_over_what_is_filled() -> None:
    like = torch.empty(0, device="meta")  # stands for any device that is no CPU
    assert not all_slots_pay(KVCache(1, 8, 1, 4, 2, like=like))


if __name__ == "__main__":
    main(sys.argv[1])
