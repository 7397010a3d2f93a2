"""Runs that are really killed and resumed in new processes end bit-identical to a run that nobody disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from minipeft.config import GPT2Config
from minipeft.corpus import HELD_OUT_PERCENT, is_held_out
from minipeft.gpt2 import GPT2
from minipeft.methods import Prefix, SoftPrompt
from minipeft.pretrain import PretrainConfig, pretrain
from minipeft.tasks import task_from_file
from minipeft.train_config import TrainConfig
from minipeft.training_state import METRICS_FILE, STATE_FILE, saved_step
from minipeft.tune import REPORT_FILE, TuneConfig, tune
from tests.models import random_model
from tests.test_train import assert_identical, assert_same_run, rows_of

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 120
STEPS = 60

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGKILL nor SIGINT for a process")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a table of reviews, and texts of which some are held out."""
    folder = tmp_path_factory.mktemp("inputs")
    random_model(vocab_size=512, n_positions=64).save_pretrained(folder / "model")
    draw = random.Random(0)
    rows = []
    for number in range(40):
        label = draw.choice(["good", "bad"])
        rows.append(f"{number} the {'best' if label == 'good' else 'worst'} of {draw.randint(0, 99)}\t{label}\n")
    (folder / "reviews.tsv").write_text("text\tlabel\n" + "".join(rows))
    documents = [f"Document {n} tells of {draw.randint(0, 10**6)} ships that sail by night." for n in range(600)]
    assert sum(is_held_out(document, HELD_OUT_PERCENT) for document in documents) >= 2
    (folder / "texts.txt").write_text("\n<|endoftext|>\n".join(documents))
    return folder


def run_tune(inputs: Path, out: Path, resume: bool) -> None:
    task = task_from_file(inputs / "reviews.tsv", "text", "label")
    config = TuneConfig(steps=STEPS, batch_size=4, eval_every=7, weight_decay=0.01, save_seconds=0.0, seed=1)
    tune(GPT2.from_pretrained(inputs / "model"), Prefix(length=4, reparam=8), task, config, out, resume=resume)


def run_pretrain(inputs: Path, out: Path, resume: bool) -> None:
    shape = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, vocab_size=512, dropout=0.1)
    settings = TrainConfig(
        *(STEPS, 0.01, 4),
        schedule="cosine",
        weight_decay=0.1,
        eval_every=7,
        save_seconds=0.0,
        seed=1,
        keep=3,
        spike=2.0,
    )
    pretrain([inputs / "texts.txt"], PretrainConfig(shape, sample="The"), settings, out, resume=resume)


def start(*arguments: object) -> subprocess.Popen[str]:
    """A Python process with one thread, as this one."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def driver(run: Callable[[Path, Path, bool], None], inputs: Path, out: Path) -> subprocess.Popen[str]:
    """`run` in a process of its own."""
    program = f"from pathlib import Path; from tests.test_resume import {run.__name__} as run; "
    return start("-c", program + f"run(Path({str(inputs)!r}), Path({str(out)!r}), True)")


def steps_logged(out: Path) -> int:
    path = out / METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def signal_after(process: subprocess.Popen[str], out: Path, step: int, what: signal.Signals, delay: float) -> str:
    """Send `what` once `step` is logged; returns what the process wrote to stderr."""
    started = time.monotonic()
    while steps_logged(out) < step and process.poll() is None:
        assert time.monotonic() - started < PATIENCE_SECONDS, "the run makes no progress"
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(what)
    return process.communicate(timeout=PATIENCE_SECONDS)[1]


def kill_points(kills: int, seed: int) -> Iterator[tuple[int, float]]:
    """Steps after which to kill, each beyond the one before, and some milliseconds to wait then."""
    draw, apart = random.Random(seed), STEPS // (kills + 1)
    for kill in range(kills):
        yield apart * kill + draw.randint(1, apart), draw.uniform(0, 0.01)


def without_seconds(report: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(report.read_text()).items() if key != "seconds"}


@pytest.mark.parametrize(
    ("run", "weights", "kills"),
    [
        (run_tune, "adapter_model.safetensors", 2),
        pytest.param(run_pretrain, "model.safetensors", 20, marks=pytest.mark.long),
    ],
)
def test_a_run_killed_again_and_again_ends_bit_identical(
    run: Callable[[Path, Path, bool], None], weights: str, kills: int, inputs: Path, tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for step, delay in kill_points(kills, seed=0):
        process = driver(run, inputs, killed)
        stderr = signal_after(process, killed, step, signal.SIGKILL, delay)
        assert process.returncode == -signal.SIGKILL, stderr
        assert step <= steps_logged(killed) < STEPS, "a run of so many steps is over before it can be killed"
        assert not (killed / weights).exists()
    last = driver(run, inputs, killed)
    _, stderr = last.communicate(timeout=PATIENCE_SECONDS)
    assert last.returncode == 0, stderr

    run(inputs, whole, False)
    assert [row["step"] for row in rows_of(killed)] == list(range(1, STEPS + 1))
    assert_same_run(killed, whole)
    assert_identical(load_file(killed / weights), load_file(whole / weights))
    assert without_seconds(killed / REPORT_FILE) == without_seconds(whole / REPORT_FILE)
    assert any(name.startswith("best/") for name in load_file(killed / STATE_FILE))
    unfinished = {path.name for path in killed.iterdir() if path.name.startswith(".")}
    assert not unfinished  # what a kill in the middle of a save leaves is taken away by the next start


KILLED_IN = """
import os, signal
from pathlib import Path
from tests.test_resume import run_pretrain
whole, left = {function}, [{calls}]

def killed(*given, **more):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return whole(*given, **more)

{function} = killed
run_pretrain(Path({inputs!r}), Path({out!r}), True)
"""


def test_a_run_killed_in_the_middle_of_a_save_ends_bit_identical(inputs: Path, tmp_path: Path) -> None:
    """After the bytes are written, before they have their name, and while the earlier state gets a second one."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for calls, function in ((9, "os.fsync"), (7, "os.replace"), (5, "os.link")):
        program = KILLED_IN.format(function=function, calls=calls, inputs=str(inputs), out=str(killed))
        process = start("-c", program)
        _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == -signal.SIGKILL, stderr
    run_pretrain(inputs, killed, True)
    run_pretrain(inputs, whole, False)
    assert_same_run(killed, whole)
    assert_identical(*(load_file(out / "model.safetensors") for out in (killed, whole)))
    assert len(list(killed.glob("training_state-*.safetensors"))) == 2  # and the last one itself makes three


def test_ctrl_c_on_the_command_line_loses_nothing(inputs: Path, tmp_path: Path) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = ["-m", "minipeft.cli", "tune", "soft_prompt", "--model", inputs / "model", "--device", "cpu"]
    command += ["--data", inputs / "reviews.tsv", "--input", "text", "--target", "label"]
    command += ["--length", 4, "--steps", 300, "--batch-size", 2, "--out", stopped]

    process = start(*command)
    stderr = signal_after(process, stopped, 120, signal.SIGINT, delay=0.002)
    assert process.returncode == 130, stderr
    assert 120 <= steps_logged(stopped) < 300
    assert stderr.startswith("minipeft: stopped. The same command with --resume goes on from step ")
    assert saved_step(stopped) == steps_logged(stopped)
    assert "Traceback" not in stderr
    last = start(*command, "--resume")
    _, stderr = last.communicate(timeout=PATIENCE_SECONDS)
    assert last.returncode == 0, stderr

    task = task_from_file(inputs / "reviews.tsv", "text", "label")
    model = GPT2.from_pretrained(inputs / "model").use_kernels()
    tune(model, SoftPrompt(length=4), task, TuneConfig(steps=300, batch_size=2), whole)
    assert_same_run(stopped, whole)
    assert_identical(*(load_file(out / "adapter_model.safetensors") for out in (stopped, whole)))
