"""Bringing public weights, from a hub on this machine that misbehaves in every way that hubs do.

After each failure there is a correct file, or one sentence and nothing under the file's name.
"""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import GPT2LMHeadModel

import minipeft as mp
from minipeft import downloads
from minipeft.downloads import PUBLIC, DownloadError, transfer
from tests.hub import COMMIT, Fault, Hub, hub_with
from tests.models import twins

NAME = "gpt2"
AT_ONCE = 4
"""Processes that download at once: Python and its libraries are loaded in each."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    twins(folder, n_embd=64, n_positions=128, vocab_size=512)
    return folder


@pytest.fixture
def hub(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose gpt2 is a tiny one; this machine's cache is empty, and waiting takes no time."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0, 0.0, 0.0))
    with hub_with((written / "model.safetensors").read_bytes()) as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setitem(PUBLIC, NAME, tiny(running))
        yield running


def tiny(hub: Hub, pinned: bool = True) -> downloads.public.PublicModel:
    """The public model that `hub` has."""
    config = mp.GPT2Config(n_layer=2, n_head=2, n_embd=64, n_positions=128, vocab_size=512)
    model = downloads.public.PublicModel(hub.repo, config)
    if not pinned:
        return model
    return dataclasses.replace(model, revision=COMMIT, sha256=hub.sha256, size=len(hub.data))


def bring(hub: Hub, **options: object) -> tuple[Path, list[str]]:
    """The downloaded file, and what was said on the way."""
    said: list[str] = []
    return downloads.download(NAME, mirror=hub.address, say=said.append, **options), said  # type: ignore[arg-type]


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def check_clean(tmp_path: Path) -> None:
    """Nothing lies under the name of the weights, neither in the cache nor anywhere else."""
    assert "model.safetensors" not in files_in(tmp_path)
    assert not [name for name in files_in(tmp_path / "cache") if len(name) == 64]


# -- when all is well -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [True, False])
def test_a_download_gives_the_file_and_a_second_one_asks_nobody(
    pinned: bool, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLIC, NAME, tiny(hub, pinned))
    path, said = bring(hub)
    assert path.read_bytes() == hub.data
    assert path.name == "model.safetensors"
    assert hub.sha256 in said[-1]
    assert (hub.count("HEAD", "/resolve/"), hub.count("GET", "/cdn/")) == (1, 1)  # what was checked is what is used
    asked = len(hub.requests)
    assert bring(hub)[0] == path
    assert len(hub.requests) == asked


def test_a_public_model_loads_by_its_name(hub: Hub, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = mp.GPT2.from_pretrained(NAME), GPT2LMHeadModel.from_pretrained(written).eval()
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-5
    assert "gpt2: " in capsys.readouterr().err
    hub.requests.clear()
    mp.GPT2.from_pretrained(NAME)
    assert hub.requests == []


def test_transformers_finds_what_was_brought(hub: Hub) -> None:
    """It lies where the hub's own client would have put it."""
    from huggingface_hub import hf_hub_download, scan_cache_dir

    path, _ = bring(hub)
    assert hf_hub_download(hub.repo, "model.safetensors", revision=COMMIT, local_files_only=True) == str(path)
    cache = scan_cache_dir(constants.HF_HUB_CACHE)
    assert cache.warnings == []
    assert [repo.repo_id for repo in cache.repos] == [hub.repo]
    assert cache.size_on_disk == len(hub.data)


def test_what_the_hubs_own_client_brought_is_used(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    theirs = hf_hub_download(hub.repo, "model.safetensors", revision=COMMIT, endpoint=hub.address)
    hub.requests.clear()
    assert bring(hub)[0] == Path(theirs)
    assert hub.requests == []


def test_a_folder_of_ones_own_is_a_whole_model(hub: Hub, tmp_path: Path, written: Path) -> None:
    path, _ = bring(hub, to=tmp_path / "mine")
    assert path == tmp_path / "mine" / "model.safetensors"
    assert files_in(tmp_path / "mine") == {"model.safetensors", "config.json"}
    tokens = torch.arange(20)[None]
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "mine").eval()
    with torch.no_grad():
        assert (mp.GPT2.from_pretrained(tmp_path / "mine")(tokens) - theirs(tokens).logits).abs().max() < 1e-5
    _, said = bring(hub, to=tmp_path / "mine")
    assert "is here already, and right" in said[-1]
    bring(hub)
    hub.requests.clear()
    bring(hub, to=tmp_path / "another")  # now from the cache
    assert hub.requests == []
    assert (tmp_path / "another" / "model.safetensors").read_bytes() == hub.data


def test_another_file_in_the_folder_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(DownloadError, match="is another file; name another folder with --to"):
        bring(hub, to=tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"


def test_a_folder_of_another_model_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    mp.GPT2(mp.GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=300)).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(DownloadError, match=r"config\.json is another model's; name another folder with --to"):
        bring(hub, to=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_repository_is_also_found_under_its_old_name(hub: Hub) -> None:
    path, _ = bring(hub)
    cache = Path(constants.HF_HUB_CACHE)
    (cache / "models--openai-community--gpt2").rename(cache / "models--gpt2")
    hub.requests.clear()
    assert bring(hub)[0] == cache / "models--gpt2" / path.relative_to(cache / "models--openai-community--gpt2")
    assert hub.requests == []


def test_a_token_goes_to_no_mirror_and_to_no_other_host(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    bring(hub)
    assert not [path for _, path, headers in hub.requests if "hf_secret" in str(headers)]
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.requests.clear()
    downloads.download(NAME, say=lambda line: None)  # the hub itself sees it, the host it sends us to does not
    shown = [path for _, path, headers in hub.requests if "hf_secret" in str(headers)]
    assert shown
    assert not [path for path in shown if path.startswith("/cdn/")]


# -- faults that pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int, hub: Hub) -> None:
    hub.heads = [Fault(status)] * 2
    hub.gets = [Fault(status)] * 2
    path, said = bring(hub)
    assert path.read_bytes() == hub.data
    assert sum(f"the server answered {status}; trying again" in line for line in said) == 4


def test_the_server_says_when_to_come_back(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waited.append)
    monkeypatch.setattr(transfer, "WAITS", (1.0, 2.0, 4.0, 8.0))
    hub.gets = [Fault(429, headers={"Retry-After": "7"}), Fault(503), Fault(503, headers={"Retry-After": "999999"})]
    bring(hub)
    assert waited == [7.0, 2.0, 60.0]


@pytest.mark.parametrize("body", ["cut", "short"])
def test_a_body_cut_short_is_gone_on_with(body: str, hub: Hub) -> None:
    hub.gets = [Fault(body=body)] * 3
    assert bring(hub)[0].read_bytes() == hub.data
    starts = [headers["Range"] for _, path, headers in hub.requests if "Range" in headers and "/cdn/" in path]
    came = [len(hub.data) - len(hub.data) // 2]  # what is missing after each
    for _ in range(2):
        came.append(came[-1] - came[-1] // 2)
    assert starts == [f"bytes={len(hub.data) - missing}-" for missing in came]


def test_a_try_that_brings_bytes_starts_the_count_anew(hub: Hub) -> None:
    hub.gets = [Fault(body="cut")] * 3 * len(transfer.WAITS)
    assert bring(hub)[0].read_bytes() == hub.data


def test_a_server_that_only_pretends_to_get_on_is_left(hub: Hub, tmp_path: Path) -> None:
    """Without ranges, cut at a third and at a half in turn: more than before, but never more than ever."""
    hub.ranges = False
    hub.gets = [Fault(body=body) for _ in range(50) for body in ("third", "cut")]
    with pytest.raises(DownloadError, match=r"cannot be reached|does not send gpt2 whole"):
        bring(hub)
    assert hub.count("GET", "/cdn/") < 10
    check_clean(tmp_path)


def test_a_part_that_the_server_does_not_know_is_begun_anew(hub: Hub) -> None:
    hub.gets = [Fault(body="cut"), Fault(416)]
    assert bring(hub)[0].read_bytes() == hub.data


def test_a_server_without_ranges_is_begun_anew(hub: Hub) -> None:
    hub.ranges = False
    hub.gets = [Fault(body="cut")]
    assert bring(hub)[0].read_bytes() == hub.data


def test_a_connection_that_falls_silent_is_left(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.gets = [Fault(body="slow")]
    path, said = bring(hub)
    assert path.read_bytes() == hub.data
    assert "trying again" in said[1]


def test_an_interrupted_download_goes_on(hub: Hub) -> None:
    """Ctrl-C in the middle; the next call asks for the other half only."""
    _interrupt(hub, signal.SIGINT, expected=130)


def test_a_killed_download_goes_on(hub: Hub) -> None:
    _interrupt(hub, signal.SIGKILL, expected=-signal.SIGKILL)


def _interrupt(hub: Hub, by: signal.Signals, expected: int) -> None:
    hub.gets = [Fault(body="slow")]
    cache = Path(constants.HF_HUB_CACHE)
    process = command(hub)
    assert hub.reached.wait(60)
    while not any(path.stat().st_size for path in cache.rglob(".*.incomplete")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(by)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == expected, errors
    if by is signal.SIGINT:
        assert errors.splitlines()[-1].endswith("the same command goes on from there.")
        assert "Traceback" not in errors
    kept = next(cache.rglob(".*.incomplete")).stat().st_size
    assert 0 < kept < len(hub.data)
    hub.requests.clear()
    path, said = bring(hub)
    assert path.read_bytes() == hub.data
    assert f"{kept:,} are here already" in said[0]
    assert any(headers.get("Range") == f"bytes={kept}-" for _, _, headers in hub.requests)


def test_a_wrong_first_part_is_brought_again(hub: Hub) -> None:
    """What an earlier download left may be of another file, or damaged."""
    blobs = Path(constants.HF_HUB_CACHE) / "models--openai-community--gpt2" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f".{hub.sha256[:16]}.incomplete").write_bytes(b"\0" * 1000)
    path, said = bring(hub)
    assert path.read_bytes() == hub.data
    assert any("did not fit; all of it again" in line for line in said)


def test_a_part_longer_than_the_file_is_brought_again(hub: Hub) -> None:
    blobs = Path(constants.HF_HUB_CACHE) / "models--openai-community--gpt2" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f".{hub.sha256[:16]}.incomplete").write_bytes(b"\0" * (len(hub.data) + 1))
    assert bring(hub)[0].read_bytes() == hub.data


def test_downloads_at_once_give_one_file(hub: Hub, tmp_path: Path) -> None:
    for number in range(AT_ONCE):
        (tmp_path / f"tmp{number}").mkdir()
    processes = [command(hub, TMPDIR=str(tmp_path / f"tmp{number}")) for number in range(AT_ONCE)]
    found = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * AT_ONCE, found
    assert len({out for out, _ in found}) == 1
    assert hub.count("GET", "/cdn/") == 1
    assert [path.read_bytes() for path in Path(constants.HF_HUB_CACHE).rglob("model.safetensors")] == [hub.data]
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


def command(hub: Hub, **variables: str) -> subprocess.Popen[str]:
    """`weights_download.py gpt2` in a process of its own, where gpt2 is the tiny one."""
    code = (
        "import dataclasses, sys; from minipeft.downloads import PUBLIC; from minipeft.cli import run_download\n"
        f"PUBLIC['gpt2'] = dataclasses.replace(PUBLIC['gpt2'], revision={COMMIT!r}, sha256={hub.sha256!r}, "
        f"size={len(hub.data)})\n"
        "sys.argv = ['weights_download.py', 'gpt2']; run_download()"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": constants.HF_HUB_CACHE, **variables}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# -- faults that stay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, r"refuses to give gpt2 \(400\): is the address right"),
        (401, r"wants to know who asks for gpt2 \(401\): log in with `hf auth login`"),
        (403, r"does not let you have gpt2 \(403\): ask there for access; then type"),
        (404, r"has no such file of gpt2 \(404\): is the address right"),
        (429, r"has had too many requests from here \(429\): wait some minutes"),
        (500, r"is in trouble \(500\): wait some minutes"),
        (503, r"is in trouble \(503\): wait some minutes"),
    ],
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_refusal_is_one_sentence_with_the_next_command(
    method: str, status: int, advice: str, hub: Hub, tmp_path: Path
) -> None:
    faults = [Fault(status)] * 100
    hub.heads, hub.gets = (faults, []) if method == "HEAD" else ([], faults)
    with pytest.raises(DownloadError, match=advice) as caught:
        bring(hub)
    assert f"then type: minipeft download gpt2 --mirror {hub.address} (or add" in str(caught.value)
    assert "\n" not in str(caught.value)
    asked = hub.count("HEAD", "/resolve/") if method == "HEAD" else hub.count("GET", "/cdn/")
    assert asked == (5 if status in transfer.TRANSIENT else 1)
    check_clean(tmp_path)


def test_a_body_that_is_always_cut_ends_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    hub.gets = [Fault(body="cut")] * 100
    with pytest.raises(DownloadError, match=r"cannot be reached \(.*\): check the network|does not send gpt2 whole"):
        bring(hub)
    assert hub.count("GET", "/cdn/") <= 6
    check_clean(tmp_path)


def test_a_body_that_is_too_long_ends_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.gets = [Fault(body="longer")] * 100
    with pytest.raises(DownloadError, match=r"does not send gpt2 whole \(more than [\d,]+ bytes came\)"):
        bring(hub)
    check_clean(tmp_path)


def test_a_wrong_hash_is_set_aside_and_never_loaded(hub: Hub, tmp_path: Path) -> None:
    hub.gets = [Fault(body="flipped")] * 100
    with pytest.raises(mp.CheckpointError, match=r"has the SHA-256 [0-9a-f]{64}, not .*it was not used and lies in"):
        mp.GPT2.from_pretrained(NAME)
    check_clean(tmp_path)
    assert [name for name in files_in(tmp_path / "cache") if ".wrong-" in name]
    hub.gets = []
    assert bring(hub)[0].read_bytes() == hub.data  # the wrong one is in nobody's way


def test_what_was_set_aside_is_never_lost(hub: Hub, tmp_path: Path) -> None:
    hub.gets = [Fault(body="flipped")] * 2
    for _ in range(2):
        with pytest.raises(mp.CheckpointError, match="lies in"):
            bring(hub)
    assert len([name for name in files_in(tmp_path / "cache") if ".wrong-" in name]) == 2


def test_a_hub_that_offers_another_file_than_the_known_one_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.etag = "ab" * 32
    with pytest.raises(DownloadError, match="offers another file than the one that is known"):
        bring(hub)
    assert hub.count("GET", "/cdn/") == 0
    check_clean(tmp_path)


@pytest.mark.parametrize("etag", ["W/abc", "../../../etc/passwd", "d41d8cd98f00b204e9800998ecf8427e"])
def test_a_server_without_a_sha256_is_no_hub(
    etag: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLIC, NAME, tiny(hub, pinned=False))
    hub.etag = etag
    with pytest.raises(DownloadError, match="names no SHA-256, size and revision"):
        bring(hub)
    check_clean(tmp_path)


def test_a_revision_that_would_leave_the_cache_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLIC, NAME, tiny(hub, pinned=False))
    hub.heads = [Fault(headers={"X-Repo-Commit": "../../../../elsewhere"})]
    with pytest.raises(DownloadError, match="names no SHA-256, size and revision"):
        bring(hub)
    check_clean(tmp_path)


def test_a_name_that_nobody_knows_is_said_to_be_so(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"the name of http://no-such-host\.invalid cannot be looked up"):
        downloads.download(NAME, mirror="http://no-such-host.invalid", say=lambda line: None)
    check_clean(tmp_path)


def test_a_machine_that_does_not_answer_is_said_to_be_so(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9 cannot be reached \(.*refused"):
        downloads.download(NAME, mirror="http://127.0.0.1:9", say=lambda line: None)
    check_clean(tmp_path)


def test_offline_mode_is_obeyed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="gpt2 is not here, and HF_HUB_OFFLINE forbids bringing it: unset it"):
        bring(hub)
    assert hub.requests == []


def test_a_full_disk_is_noticed_beforehand(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=len(hub.data) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(DownloadError, match=r"the disk is full \([\d,]+ bytes are missing and [\d,]+ are free\)"):
        bring(hub)
    assert hub.count("GET", "/cdn/") == 0
    check_clean(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_disk_that_fills_up_ends_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    blobs = Path(constants.HF_HUB_CACHE) / "models--openai-community--gpt2" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f".{hub.sha256[:16]}.incomplete").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"the disk is full \(No space left on device\): make room"):
        bring(hub)
    check_clean(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the rights of Unix")
def test_a_folder_that_may_not_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.chmod(tmp_path, 0o755)
        os.seteuid(65534)  # root may write anywhere; somebody else may not
    try:
        with pytest.raises(DownloadError, match=rf"cannot write {locked}\S* \(Permission denied\): make room, or take"):
            bring(hub, to=locked / "gpt2")
    finally:
        if root:
            os.seteuid(0)
    check_clean(tmp_path)


# -- a file that is here already, and checking one --------------------------------------------------------------------


def test_a_file_from_elsewhere_is_taken_in_without_a_network(hub: Hub, written: Path) -> None:
    path = downloads.adopt(NAME, written / "model.safetensors", say=lambda line: None)
    assert path.read_bytes() == hub.data
    assert hub.requests == []
    mp.GPT2.from_pretrained(NAME)
    assert hub.requests == []


def test_a_file_from_elsewhere_makes_a_folder(hub: Hub, written: Path, tmp_path: Path) -> None:
    downloads.adopt(NAME, written / "model.safetensors", to=tmp_path / "mine", say=lambda line: None)
    assert files_in(tmp_path / "mine") == {"model.safetensors", "config.json"}
    mp.GPT2.from_pretrained(tmp_path / "mine")


def test_a_file_of_a_model_without_a_known_hash_is_compared_with_the_hubs(
    hub: Hub, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLIC, NAME, tiny(hub, pinned=False))
    downloads.adopt(NAME, written / "model.safetensors", mirror=hub.address, say=lambda line: None)
    assert hub.count("HEAD", "/resolve/main/") == 1
    assert hub.count("GET", "/cdn/") == 0
    hub.requests.clear()
    mp.GPT2.from_pretrained(NAME)
    assert hub.requests == []


def test_another_file_is_not_taken_in(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(mp.CheckpointError, match=r"is not gpt2's model\.safetensors: its SHA-256 is"):
        downloads.adopt(NAME, tmp_path / "other", say=lambda line: None)
    check_clean(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        downloads.adopt(NAME, tmp_path / "missing", say=lambda line: None)


def test_a_file_from_elsewhere_repairs_the_cache(hub: Hub, written: Path) -> None:
    blob = bring(hub)[0].resolve()
    blob.write_bytes(hub.data[:-1] + bytes([hub.data[-1] ^ 1]))
    path = downloads.adopt(NAME, written / "model.safetensors", say=lambda line: None)
    assert path.read_bytes() == hub.data


def test_a_file_from_elsewhere_replaces_nothing_of_the_users(hub: Hub, written: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(DownloadError, match="is another file; name another folder with --to"):
        downloads.adopt(NAME, written / "model.safetensors", to=tmp_path, say=lambda line: None)
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
    assert not (tmp_path / "config.json").exists()


def test_a_damaged_file_is_not_copied(hub: Hub, tmp_path: Path) -> None:
    blob = bring(hub)[0].resolve()
    blob.write_bytes(hub.data[:-1] + bytes([hub.data[-1] ^ 1]))
    with pytest.raises(mp.CheckpointError, match=r"is damaged: its SHA-256 is not .*; nothing was copied"):
        bring(hub, to=tmp_path / "mine")
    assert files_in(tmp_path / "mine") == set()


def test_a_damaged_file_is_found_and_set_aside(hub: Hub, tmp_path: Path) -> None:
    path, _ = bring(hub)
    said: list[str] = []
    assert downloads.verify(NAME, say=said.append) == path
    assert f"SHA-256 {hub.sha256}, as it must be" in said[-1]
    blob = path.resolve()
    blob.write_bytes(hub.data[:-1] + bytes([hub.data[-1] ^ 1]))
    with pytest.raises(mp.CheckpointError, match=r"was damaged .* now lies in \S+\.wrong-1; bring it again"):
        downloads.verify(NAME, say=said.append)
    check_clean(tmp_path)
    with pytest.raises(DownloadError, match="gpt2 is not here; bring it with: minipeft download gpt2"):
        downloads.verify(NAME, say=said.append)
    assert bring(hub)[0].read_bytes() == hub.data


def test_a_file_of_the_wrong_size_is_brought_again(hub: Hub) -> None:
    path, _ = bring(hub)
    path.resolve().write_bytes(hub.data[:-1])
    again, said = bring(hub)
    assert again.read_bytes() == hub.data
    assert "is damaged: it has" in said[0]
    assert "It was set aside as" in said[0]


def test_the_folder_of_ones_own_can_be_checked(hub: Hub, tmp_path: Path) -> None:
    bring(hub, to=tmp_path / "mine")
    downloads.verify(NAME, tmp_path / "mine", say=lambda line: None)
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(mp.CheckpointError, match=r"is not gpt2's model\.safetensors: its SHA-256 is"):
        downloads.verify(NAME, tmp_path / "mine", say=lambda line: None)
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == b"no"  # it may be a model of the user's own


@pytest.mark.parametrize("mirror", ["foo", "http://", "https://", "ftp://x", "://"])
def test_an_address_that_is_none_is_said_to_be_so(mirror: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"is no address of a hub, such as https://hf-mirror\.com; then type"):
        downloads.download(NAME, mirror=mirror, say=lambda line: None)
    check_clean(tmp_path)


def test_a_file_is_no_folder(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(DownloadError, match="file is a file; name a folder with --to"):
        bring(hub, to=tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert hub.requests == []


# -- what is known of the public models -------------------------------------------------------------------------------


def test_the_public_models_have_the_published_numbers_of_parameters() -> None:
    """Counted on models without memory."""
    published = {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
        "distilgpt2": 81_912_576,
    }
    assert published.keys() == PUBLIC.keys()
    for name, count in published.items():
        with torch.device("meta"):
            assert mp.GPT2(PUBLIC[name].config).num_parameters() == count
        assert PUBLIC[name].config.num_parameters() == count


def test_the_script_says_what_it_can_do() -> None:
    root = Path(__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, root / "weights_download.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    for option in ("--to", "--mirror", "--from-file", "--list", "--verify"):
        assert option in shown
