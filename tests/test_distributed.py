"""Several processes train what one would: the same losses, gradients and files, also after one of them was killed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

import minipeft as mp
from minipeft.batches import MicroBatches
from minipeft.distributed import ALONE, Team, joined
from minipeft.methods import Method
from minipeft.sharding import shard, shard_tuned
from minipeft.traffic import Traffic, sent_in_a_ring
from minipeft.training_state import METRICS_FILE, STATE_FILE
from tests.models import random_model
from tests.processes import ALL_METHODS, METHODS, STEPS, STOP, WAYS, interrupted, run_pretrain, run_tune, until_stopped
from tests.test_resume import PATIENCE_SECONDS, start, steps_logged
from tests.test_train import rows_of

CLOSE = 1e-4
"""Between losses of one process and of several: fp32 sums in another order, over ten steps. Seen: up to 7e-6."""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun and Gloo were not tried on Windows")


def torchrun(processes: int, *command: object) -> subprocess.Popen[str]:
    """So many processes of a command, on a free port."""
    return start("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m", *command)


def finished(process: subprocess.Popen[str]) -> str:
    """What the processes printed, once all ended well."""
    out, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A folder of this name, filled once, by whichever process of pytest (`-n 2`) needs it first."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder = root / f"distributed_{name}"
        with FileLock(root / f"{name}.lock"):
            if not folder.exists():
                unfinished = root / f"unfinished_{name}"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="module")
def inputs(made_once: Any) -> Path:
    """A folder with a model, rows whose targets are of one to five words, and texts."""
    return made_once("inputs", write_inputs)


def write_inputs(folder: Path) -> None:
    random_model(vocab_size=512, n_positions=64).save_pretrained(folder / "model")
    draw = random.Random(0)
    words = ["the", "sea", "was", "calm", "and", "ships", "came", "home"]
    rows = [f"{n} a text\t{' '.join(draw.choices(words, k=draw.randint(1, 5)))}\n" for n in range(30)]
    (folder / "ragged.tsv").write_text("text\tlabel\n" + "".join(rows))
    documents = [f"Document {n} tells of {draw.randint(0, 10**6)} ships that sail by night." for n in range(600)]
    (folder / "texts.txt").write_text("\n<|endoftext|>\n".join(documents))


@pytest.fixture(scope="module")
def two(inputs: Path, made_once: Any) -> Path:
    """What two processes left behind."""
    return made_once("two", lambda out: finished(torchrun(2, "tests.processes", "two", inputs, out)))


@pytest.fixture(scope="module")
def four(inputs: Path, two: Path, made_once: Any) -> Path:
    """What four processes left behind; they went on with a run that two had begun."""

    def fill(out: Path) -> None:
        shutil.copytree(two / "stopped", out / "stopped")
        finished(torchrun(4, "tests.processes", "four", inputs, out))

    return made_once("four", fill)


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run by one process, each taken once."""
    out, done = tmp_path_factory.mktemp("alone"), {}

    def run(name: str, batch_size: int = 5) -> Path:
        folder = out / f"{name} {batch_size}"
        if folder not in done:
            done[folder] = folder
            if name == "pretrain":
                run_pretrain(inputs, folder, ALONE, batch_size)
            else:
                run_tune(name, inputs, folder, ALONE, batch_size)
        return done[folder]

    return run


def assert_same_curve(found: Path, wanted: Path) -> None:
    """Every loss, learning rate and evaluation of every step."""
    rows, expected = rows_of(found), rows_of(wanted)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, other in zip(rows, expected, strict=True):
        row.pop("sample", None)
        assert row == pytest.approx(other, rel=CLOSE), f"step {row['step']}"
    first, *_, last = (row["score"] for row in expected if "score" in row)
    assert last > first + 10 * CLOSE * abs(first), "nothing was learned, so nothing is compared"


# --- one step


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch", [1, 3, 4, 13])
@pytest.mark.parametrize("at_once", [1, 2, 5, 13])
def test_every_row_is_one_process_s(size: int, batch: int, at_once: int) -> None:
    rows = [f"{'scored ' * (number % 3)}{number}" for number in range(batch)] if batch > 1 else ["scored 0"]

    def scored(rows: Sequence[str]) -> int:
        return sum(row.count("scored") for row in rows)

    shares = [list(Team(rank, size).shares(rows, MicroBatches(at_once), scored)) for rank in range(size)]
    taken = [row for each in shares for share in each if share.weight for row in share.rows]
    assert len(set(taken)) == len(taken)
    assert {row for row in rows if "scored" in row} <= set(taken) <= set(rows)
    assert sum(share.weight for each in shares for share in each) == pytest.approx(1)
    assert all(scored(share.rows) > 0 and len(share.rows) <= at_once for each in shares for share in each)
    assert len({len(each) for each in shares}) == 1, "one would wait for the others"
    assert all([share.last for share in each] == [False] * (len(each) - 1) + [True] for each in shares)
    most = max(sum(len(share.rows) for share in each if share.weight) for each in shares)
    assert most <= Team(0, size).most_rows(batch)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_summed_gradients_are_those_of_the_whole_batch(name: str, two: Path) -> None:
    """Three rows for two processes, one at a time, so that one row stands in and counts nothing."""
    found = json.loads((two / "told.json").read_text())["summed"][name]
    assert found["apart"] < 1e-5  # sums of fp32 in another order; two-sided by the next test's bytes


@pytest.mark.parametrize("name", ALL_METHODS)
def test_only_trained_numbers_are_sent_and_each_once_a_step(name: str, two: Path) -> None:
    found = json.loads((two / "told.json").read_text())["summed"][name]
    assert found["bytes"] == {"all-reduce": 4 * found["trained"]}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_sharded_weights_are_those_of_whole_ones(way: str, two: Path) -> None:
    apart = json.loads((two / "told.json").read_text())["sharded"][way]["gradients"]
    # In bfloat16 (8 bits) sums of two rows are rounded apart from those of three.
    assert apart < (2e-2 if way == "bfloat16 activations" else 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_evaluations_see_what_steps_made_of_sharded_weights(way: str, two: Path) -> None:
    assert json.loads((two / "told.json").read_text())["sharded"][way]["evaluated"] < 1e-5


def test_processes_that_find_out_other_things_do_the_same(two: Path) -> None:
    """The writer's scores fall, the other's rise; the other's clock runs away in the third of six steps; its gradients
    overflow from a scale of 2¹⁶ on in each of six steps."""
    found = json.loads((two / "told.json").read_text())["agreed"]
    assert len({number for pair in found["drawn"] for number in pair}) == 2 * 6, "dropout would be the same"
    assert found["best step"] == [1, 1]
    assert found["steps"] == [3, 3]
    assert found["scale"] == [2**10, 2**10]


# --- runs


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_tune_as_one(name: str, two: Path, alone: Any) -> None:
    assert_same_curve(two / name, alone(name))


def test_two_processes_with_sharded_weights_tune_as_one(two: Path, alone: Any, inputs: Path) -> None:
    assert_same_curve(two / "full, sharded", alone("full"))
    model = mp.GPT2.from_pretrained(inputs / "model")
    found, wanted = (mp.load(folder, model) for folder in (two / "full, sharded", alone("full")))
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(found(tokens), wanted(tokens), rtol=0, atol=1e-2)  # logits of up to 10


@pytest.mark.parametrize("name", ["pretrain", "pretrain, sharded"])
def test_two_processes_pretrain_as_one(name: str, two: Path, alone: Any) -> None:
    assert_same_curve(two / name, alone("pretrain"))
    found, wanted = (load_file(folder / "model.safetensors") for folder in (two / name, alone("pretrain")))
    assert {key: tensor.shape for key, tensor in found.items()} == {k: t.shape for k, t in wanted.items()}
    reports = [json.loads((folder / "report.json").read_text()) for folder in (two / name, alone("pretrain"))]
    assert reports[0]["perplexity"]["overall"] == pytest.approx(reports[1]["perplexity"]["overall"], rel=CLOSE)
    assert reports[0]["settings"] == reports[1]["settings"]


def test_sharded_weights_can_write_a_sample(two: Path) -> None:
    samples = [row["sample"] for row in rows_of(two / "pretrain, sharded") if "sample" in row]
    assert [sample[:3] for sample in samples] == ["The"] * 4


@pytest.mark.parametrize(
    ("name", "as_one", "batch_size"),
    [
        ("uneven", "pretrain", 6),
        ("fewer rows", "pretrain", 3),
        ("fewer rows, sharded", "pretrain", 3),
        ("tune, fewer rows", "prefix by MLP", 3),
    ],
)
def test_four_processes_train_as_one(name: str, as_one: str, batch_size: int, four: Path, alone: Any) -> None:
    assert_same_curve(four / name, alone(as_one, batch_size))


# --- stopped and resumed


def test_ctrl_c_for_one_process_stops_all_at_one_step_and_another_number_goes_on(four: Path, alone: Any) -> None:
    """Two processes began; four, whose weights are sharded, went on."""
    assert_same_curve(four / "stopped", alone("pretrain"))


def test_a_sharded_run_is_resumed_by_one_process(two: Path, alone: Any, inputs: Path) -> None:
    stopped = two / "stopped, sharded"
    assert len(rows_of(stopped)) == STOP + 1
    assert not (stopped / "model.safetensors").exists()
    state, whole = load_file(stopped / STATE_FILE), load_file(alone("pretrain") / STATE_FILE)
    assert {key: tensor.shape for key, tensor in state.items()} == {k: t.shape for k, t in whole.items()}
    run_pretrain(inputs, stopped, ALONE, resume=True)
    assert_same_curve(stopped, alone("pretrain"))


def test_a_killed_process_ends_the_run_at_once_and_it_can_be_resumed(inputs: Path, tmp_path: Path) -> None:
    job = torchrun(2, "tests.processes", "until_stopped", inputs, tmp_path)
    began = time.monotonic()
    while steps_logged(tmp_path) < STOP and job.poll() is None:
        assert time.monotonic() - began < PATIENCE_SECONDS, "the run makes no progress"
        time.sleep(0.01)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    if not children.exists():
        job.kill()
        pytest.skip("only Linux tells which processes torchrun started")
    workers = [int(pid) for pid in children.read_text().split()]
    by_rank = {re.search(rb"\0RANK=(\d)", Path(f"/proc/{pid}/environ").read_bytes()): pid for pid in workers}
    (victim,) = (pid for found, pid in by_rank.items() if found and found[1] == b"1")
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _, errors = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode not in (0, None)
    assert "-9" in errors  # torchrun's own report
    assert time.monotonic() - killed < 20
    assert all(not Path(f"/proc/{pid}").exists() for pid in workers)

    end = steps_logged(tmp_path) + 3
    for out in (tmp_path, tmp_path / "undisturbed"):
        with interrupted(at=end, by=True):
            until_stopped(inputs, out, ALONE)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, end + 2))
    wanted = [row["loss"] for row in rows_of(tmp_path / "undisturbed")]
    assert [row["loss"] for row in rows] == pytest.approx(wanted, rel=CLOSE)


# --- commands


def test_the_commands_are_the_same_under_torchrun(inputs: Path, tmp_path: Path, alone: Any) -> None:
    command = f"tune full --model {inputs}/model --data {inputs}/ragged.tsv --input text --target label --kind text"
    command += f" --steps {STEPS} --batch-size 5 --lr 0.03 --device cpu --shard --out {tmp_path}/tuned"
    out = finished(torchrun(2, "minipeft.cli", *command.split()))
    assert out.count("trained numbers") == 1
    found, wanted = ([row["loss"] for row in rows_of(folder)] for folder in (tmp_path / "tuned", alone("full")))
    assert found == pytest.approx(wanted, rel=1e-2)  # the command has no weight decay

    command = f"pretrain --data {inputs}/texts.txt --config pico --steps 2 --batch-size 2 --out {tmp_path}/model"
    out = finished(torchrun(2, "minipeft.cli", *command.split(), "--device", "cpu"))
    assert out.count("parameters;") == 1
    assert (tmp_path / "model" / METRICS_FILE).read_text().count("\n") == 2
    assert mp.GPT2.from_pretrained(tmp_path / "model").num_parameters() > 1_000_000


def test_a_run_that_is_there_is_refused_by_the_writer(inputs: Path, two: Path) -> None:
    command = f"tune lora --model {inputs}/model --data {inputs}/ragged.tsv --input text --target label"
    job = torchrun(2, "minipeft.cli", *command.split(), "--kind", "text", "--device", "cpu", "--out", two / "LoRA")
    _, errors = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == 1
    assert errors.count("already holds a run") == 1
    assert "rank1]: Traceback" not in errors


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as team:
        assert team is ALONE


def test_a_device_that_each_process_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match=r"device is 'cuda:1'; several processes can use cpu, or cuda"),
        joined("cuda:1"),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"there are 1 GPUs, and process 2 of this machine"), joined("auto"):
        pass


@pytest.mark.parametrize("method", [mp.LoRA(), mp.SoftPrompt(init="random")])
def test_weights_that_are_not_trained_are_not_sharded(method: Method) -> None:
    with pytest.raises(ValueError, match=f"those of full; {method.name} trains few"):
        shard_tuned(mp.attach(random_model(), method), Team(0, 2))
    with pytest.raises(ValueError, match="start them with torchrun --nproc-per-node"):
        shard(random_model(), ALONE)


def test_a_ring_sends_each_tensor_twice_to_sum_it_and_once_to_gather_it() -> None:
    """Patarasuk & Yuan 2009: each of n processes sends 2 (n - 1) / n of what is summed."""
    assert sent_in_a_ring({"all-reduce": 800}, 2) == 800
    assert sent_in_a_ring({"all-reduce": 800}, 8) == 2 * 700
    assert sent_in_a_ring({"all-gather": 800, "reduce-scatter": 400}, 4) == 600 + 300
    with Traffic() as traffic:
        torch.ones(3) + 1
    assert not traffic.bytes
