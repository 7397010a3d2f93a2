"""Text written by a compiled step: the same tokens. In a process of its own, as `tests/test_torch_compile.py`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minipeft as mp
from minipeft.bank import PromptBank
from minipeft.sampling import Sampling
from tests.models import farthest, random_model, random_tokens


def main(backend: str) -> None:
    """Compare plain and compiled steps."""
    import torch

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


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: g++")),
    ],
)
def test_a_compiled_step_writes_the_same(backend: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.test_decoding", backend]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal\n")


if __name__ == "__main__":
    main(sys.argv[1])
