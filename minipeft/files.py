"""Files in and out: replaced atomically, tensors only as safetensors, nothing ever unpickled, everything verified."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_JSON_BYTES = 10_000_000
HASHED_AT_ONCE = 1 << 20
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SAFETENSORS_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
SAFETENSORS_TYPES |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


class CheckpointError(ValueError):
    """A file of weights or settings that cannot be used; the message names the file and what is wrong in it."""


Data = bytes | Iterable[bytes | memoryview]
"""What to write: all of it, or piece after piece, so that no copy of much is needed."""


def write_atomically(path: str | Path, data: Data) -> None:
    """Write a file that is either wholly there or not at all. Raises OSError and leaves nothing behind if it cannot."""
    write_together({path: data})


def write_together(contents: Mapping[str | Path, Data]) -> None:
    """Write files that belong together: every byte is on disk before the first of them gets its name.

    Raises OSError, with nothing left behind, if any cannot be written.
    """
    written: list[tuple[str, Path]] = []
    for path in map(Path, contents):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"cannot write {path}: it is a folder; nothing was changed")
    try:
        for path, data in ((Path(path), data) for path, data in contents.items()):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            written.append((temporary, path))
            with os.fdopen(handle, "wb") as file:
                for piece in (data,) if isinstance(data, bytes) else data:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        _rename_all(written)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(error.errno, f"cannot write {path}: {reason}; nothing was changed") from None
    finally:
        for temporary, _ in written:
            Path(temporary).unlink(missing_ok=True)


def _rename_all(written: list[tuple[str, Path]]) -> None:
    """Give every file its name, or, if one cannot have it, the earlier ones their old content back."""
    before = {path: path.read_bytes() if path.exists() else None for _, path in written[:-1]}
    done: list[Path] = []
    try:
        for temporary, path in written:
            os.replace(temporary, path)
            done.append(path)
    except OSError:
        for path in done:
            old = before[path]
            if old is None:
                path.unlink()
            else:
                path.write_bytes(old)
        raise


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, atomically."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON object as it stands in our files."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def read_json(path: str | Path, most_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, or CheckpointError if the file is anything else or absurdly long."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if path.stat().st_size > most_bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, far more than a settings file needs.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON; is it damaged, or another file renamed?") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds a {type(value).__name__}.")
    return value


def tensor_pieces(
    tensors: Mapping[str, Tensor],
    about: Mapping[str, str] | None = None,
    numbers_of: Callable[[Tensor], Tensor] = torch.Tensor.detach,
) -> Iterator[bytes | memoryview]:
    """A safetensors file piece after piece: a header, then the numbers of each tensor; always the same for the same.

    `numbers_of` is asked for each tensor's numbers when their turn comes.

    The library's own writer needs the whole file in memory once more, and shuffles the metadata.
    Source: the format's description, https://github.com/huggingface/safetensors#format.
    """
    wide_first = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(about or {})}}
    end = 0
    for name in wide_first:
        start, end = end, end + tensors[name].nbytes
        kind = SAFETENSORS_TYPES[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    told = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("utf-8")
    told += b" " * (-len(told) % 8)
    yield len(told).to_bytes(8, "little") + told
    for name in wide_first:
        numbers = numbers_of(tensors[name]).detach().cpu().contiguous().flatten()
        yield numbers.view(torch.uint8).numpy().data


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Raises FileNotFoundError, or CheckpointError on anything that is no whole safetensors file.
    """
    with open_safetensors(path) as file:
        names = list(file.keys())
        return {name: file.get_tensor(name).clone() for name in names}, dict(file.metadata() or {})


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """A safetensors file, mapped into memory; what it gives is valid as long as nobody changes the file.

    Raises FileNotFoundError, or CheckpointError on anything that is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}); was a copy or download cut short?"
        ) from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(*arrays: Any) -> str:
    """A short hash of NumPy arrays or tensors, to tell whether two are the same."""
    digest = hashlib.sha256()
    for array in arrays:
        tensor = torch.as_tensor(array).detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def check_tensor(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless `tensor` has this shape, a floating type, and no NaN or infinity."""
    check_shape(path, name, tuple(tensor.shape), tensor.dtype, shape)
    check_numbers(path, name, tensor)


def check_shape(
    path: Path, name: str, found: tuple[int, ...], dtype: torch.dtype, needed: tuple[int, ...], hint: str = ""
) -> None:
    """Raise CheckpointError unless a tensor has the needed shape and a floating type."""
    if found != needed:
        raise CheckpointError(f"{path}: key {name} has shape {found}, needed is {needed}.{hint}")
    if dtype not in FLOATS:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in FLOATS)
        raise CheckpointError(f"{path}: key {name} is {str(dtype).removeprefix('torch.')}; weights are {kinds}.")


def check_numbers(path: Path, name: str, tensor: Tensor) -> None:
    """Raise CheckpointError if a tensor holds NaN or infinity."""
    if bool(torch.isfinite(tensor.sum())):  # a single NaN or infinity would show in the sum; large numbers may, too
        return
    least, most = tensor.aminmax() if tensor.numel() else (torch.zeros(()), torch.zeros(()))
    if not (torch.isfinite(least) and torch.isfinite(most)):  # a NaN anywhere makes both of them NaN
        raise CheckpointError(f"{path}: key {name} holds NaN or infinity; the training that wrote it diverged.")


def check_keys(path: Path, found: set[str], needed: set[str]) -> None:
    """Raise CheckpointError that names missing and unexpected keys."""
    wrong = [
        f"{what} {_listed(keys)}"
        for what, keys in (("lacks", needed - found), ("has unexpected", found - needed))
        if keys
    ]
    if wrong:
        raise CheckpointError(f"{path} {' and '.join(wrong)}.")


def _listed(keys: set[str], most: int = 5) -> str:
    shown = sorted(keys)[:most]
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ("key " if len(keys) == 1 else "keys ") + ", ".join(shown) + more


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
