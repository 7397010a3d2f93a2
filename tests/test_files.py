"""Files: wholly there or not at all, and refused with a sentence when they are not what they should be."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minipeft import files
from minipeft.files import (
    MAX_JSON_BYTES,
    CheckpointError,
    check_keys,
    check_tensor,
    read_json,
    read_tensors,
    tensor_pieces,
    write_atomically,
    write_json,
    write_together,
)


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond `size` bytes."""
    resource = pytest.importorskip("resource", reason="this system has no file size limit to set")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_where_its_folders_are_missing(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"new")
    assert contents(tmp_path / "a" / "b") == {"file": b"new"}


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"a long old content")
    write_atomically(tmp_path / "file", b"new")
    assert contents(tmp_path) == {"file": b"new"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_file_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"new")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(files.os, step, disk_full)
    for name in ("file", "another"):
        with pytest.raises(OSError, match="No space left"):
            write_atomically(tmp_path / name, b"new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_write_that_the_system_cuts_short_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    with files_limited_to(1_000_000), pytest.raises(OSError, match="too large"):
        write_atomically(tmp_path / "file", bytes(2_000_000))
    assert contents(tmp_path) == {"file": b"old"}


def test_files_that_belong_together_are_not_half_replaced(tmp_path: Path) -> None:
    write_together({tmp_path / "one": b"old", tmp_path / "two": b"old"})
    with files_limited_to(1_000_000), pytest.raises(OSError, match="too large"):
        write_together({tmp_path / "one": b"new", tmp_path / "two": bytes(2_000_000)})
    assert contents(tmp_path) == {"one": b"old", "two": b"old"}


def test_a_folder_in_the_way_of_one_file_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"old")
    (tmp_path / "two").mkdir()
    with pytest.raises(OSError, match="two"):
        write_together({tmp_path / "one": b"new", tmp_path / "two": b"new"})
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    assert (tmp_path / "one").read_bytes() == b"old"


def test_no_file_gets_its_name_before_all_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (done.append("sync"), fsync(handle)))
    monkeypatch.setattr(files.os, "replace", lambda old, new: (done.append(Path(new).name), replace(old, new)))
    write_together({tmp_path / "one": b"1", tmp_path / "two": b"2"})
    assert done == ["sync", "sync", "one", "two"]


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"text": "naïve 🤗", "numbers": [1, 2.5, None], "inner": {"yes": True}}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "is not JSON", id="empty"),
        pytest.param(b'{"n_layer": 2', "is not JSON", id="cut short"),
        pytest.param(b"\xff\xfe{}", "is not JSON", id="not utf-8"),
        pytest.param(b'{"a":' * 100_000, "is not JSON", id="nested without end"),
        pytest.param(b"[1, 2]", "must hold a JSON object, but holds a list", id="list"),
        pytest.param(b'"text"', "must hold a JSON object, but holds a str", id="text"),
        pytest.param(b" " * (MAX_JSON_BYTES + 1), "has 10,000,001 bytes", id="endless"),
    ],
)
def test_what_is_no_json_object_is_refused_by_name(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"config\.json .*{said}"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("read", [read_json, read_tensors])
def test_a_missing_file_is_named(read, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent"):
        read(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read(tmp_path)


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    tensors = {
        "full": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "whole": torch.tensor([1, -(2**40)]),
        "turned": torch.randn(3, 4).T,
        "empty": torch.zeros(0, 3),
    }
    write_atomically(tmp_path / "file", tensor_pieces(tensors, {"step": "7"}))
    found, about = read_tensors(tmp_path / "file")
    peer = load_file(tmp_path / "file")
    assert found.keys() == peer.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert torch.equal(peer[name], tensor)
    assert about == {"format": "pt", "step": "7"}


def test_tensors_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, tensor_pieces({"a": torch.ones(1000)}))
    found, _ = read_tensors(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found["a"], torch.ones(1000))


def test_a_file_without_metadata_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "file")
    assert read_tensors(tmp_path / "file")[1] == {}


@pytest.mark.parametrize("kept", [0, 4, 8, 60, -1], ids="{} bytes".format)
def test_a_tensor_file_cut_short_is_refused_by_name(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_atomically(path, tensor_pieces({"a": torch.randn(100)}))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no whole safetensors file"):
        read_tensors(path)


def test_what_is_no_tensor_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"a": Trap()}, tmp_path / "pickle")
    (tmp_path / "junk").write_bytes(os.urandom(1000))
    (tmp_path / "page").write_text("<html>404</html>" * 20)
    for name in ("pickle", "junk", "page"):
        with pytest.raises(CheckpointError, match=f"{name} is no whole safetensors file"):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("found", "needed", "said"),
    [
        ({"a"}, {"a", "b"}, r"file lacks key b\.$"),
        ({"a", "x", "y"}, {"a"}, r"file has unexpected keys x, y\.$"),
        ({"x"}, {"b"}, r"file lacks key b and has unexpected key x\.$"),
        (set(), set("abcdefgh"), r"file lacks keys a, b, c, d, e and 3 more\.$"),
    ],
)
def test_missing_and_unexpected_keys_are_named(found: set[str], needed: set[str], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        check_keys(Path("file"), found, needed)


def test_right_keys_pass() -> None:
    check_keys(Path("file"), {"a", "b"}, {"b", "a"})


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(3, 2), r"file: key a has shape \(3, 2\), needed is \(2, 3\)\.$"),
        (torch.zeros(2, 3, dtype=torch.int8), "file: key a is int8; weights are float32, bfloat16, float16"),
        (torch.zeros(2, 3, dtype=torch.float64), "file: key a is float64"),
        (torch.full((2, 3), float("nan")), "file: key a holds NaN or infinity"),
        (torch.full((2, 3), float("-inf")), "file: key a holds NaN or infinity"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(tensor: torch.Tensor, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        check_tensor(Path("file"), "a", tensor, (2, 3))


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    tensors = {name: torch.arange(n, dtype=torch.float32) for n, name in enumerate("bacd", start=1)}
    about = {f"key {number}": "ä" * number for number in range(20)}
    backwards = dict(reversed(tensors.items())), dict(reversed(about.items()))
    written = {b"".join(tensor_pieces(*both)) for both in ((tensors, about), backwards)}
    assert len(written) == 1
    (tmp_path / "a.safetensors").write_bytes(written.pop())
    found, told = files.read_tensors(tmp_path / "a.safetensors")
    assert told == {"format": "pt", **about}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_numbers_are_asked_for_when_their_turn_comes() -> None:
    """As tensors of several processes are: the header tells of all before the first is brought together."""
    asked: list[float] = []

    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(float(tensor))
        return 2 * tensor

    pieces = tensor_pieces({"b": torch.tensor(3.0), "a": torch.tensor(5.0)}, numbers_of=doubled)
    next(pieces)
    assert not asked
    assert np.frombuffer(next(pieces), dtype=np.float32) == 10
    assert asked == [5.0]


def test_what_we_write_is_what_the_library_reads(tmp_path: Path) -> None:
    """Tensors of every type, one number, none, transposed, a view into another; the largest are not copied."""
    draw = torch.Generator().manual_seed(0)
    tensors = {f"{kind}": torch.randn(3, 5, generator=draw).mul(9).to(kind) for kind in files.SAFETENSORS_TYPES}
    tensors |= {"one": torch.tensor(7.0), "none": torch.zeros(0, 4), "turned": torch.randn(4, 6, generator=draw).T}
    tensors["part"] = torch.randn(8, generator=draw)[2:5]
    write_atomically(tmp_path / "ours", tensor_pieces(tensors, {"step": "7"}))
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    large = torch.randn(1000)
    _, numbers = tensor_pieces({"large": large})
    assert np.frombuffer(numbers, dtype=np.float32).ctypes.data == large.data_ptr()
