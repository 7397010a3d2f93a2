"""What every form of weights is to the loader: names, shapes and types at once, the numbers of each when asked for."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from minipeft.config import GPT2Config

PART_BYTES = 16_000_000


@dataclass(frozen=True)
class Stored:
    """One tensor of a file; `read` brings its numbers, checked against the file's own checksum where it has one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor] = field(repr=False)
    read_rows: Callable[[int, int], Tensor] | None = field(default=None, repr=False)
    """Brings rows `start` … `stop` - 1 without the others, where the file can."""
    in_file: bool = True
    """False for zeros that stand for what the file leaves out."""

    def parts(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, rows), a few MB at a time where the file can: then reading needs little memory of its own."""
        if self.read_rows is None or not self.shape:
            yield 0, self.shape[0] if self.shape else 1, self.read()
            return
        row_bytes = max(1, self.dtype.itemsize * math.prod(self.shape[1:]))
        rows = max(1, PART_BYTES // row_bytes)
        for start in range(0, self.shape[0], rows):
            stop = min(start + rows, self.shape[0])
            yield start, stop, self.read_rows(start, stop)


@dataclass(frozen=True)
class Weights:
    """A model as some file holds it.

    `tensors` by their names there; linear weights stand as [in, out] where `conv1d`, else as PyTorch's [out, in].
    `path` is for messages; `files` are all that the numbers and the shape are read from.
    """

    path: Path
    config: GPT2Config
    tensors: Mapping[str, Stored]
    files: tuple[Path, ...]
    conv1d: bool = True
