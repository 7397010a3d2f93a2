"""Files of token ids, mapped into memory: many of them read as one array, and no more of it than is asked for."""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from minipeft.files import sha256_of
from minipeft.token_files.record import ANEW, INDEX_FILE, JOURNAL_FILE, TokenFilesError, read_record

FILE_NAME = re.compile(r"(train-\d{5,}|held_out-[A-Za-z0-9._-]+)\.bin")
COUNTED_AT_ONCE = 2**20
SAMPLES, SAMPLE_TOKENS = 16, 4096
"""Where ids outside the vocabulary are looked for: everywhere in a small file, in some places of a large one."""


@dataclass(frozen=True)
class TokenFile:
    """A file of token ids and nothing else: its name, how many there are, its SHA-256."""

    file: str
    tokens: int
    sha256: str

    @classmethod
    def from_json(cls, value: Any) -> "TokenFile":
        """An entry of an index or journal. Raises KeyError, TypeError or ValueError if it is none."""
        file, tokens, digest = value["file"], value["tokens"], value["sha256"]
        if not (FILE_NAME.fullmatch(file) and isinstance(tokens, int) and tokens > 0 and isinstance(digest, str)):
            raise ValueError(f"{value} describes no file of tokens")
        return cls(file, tokens, digest)


class Shards:
    """The token ids of several files, one after the other: `len(shards)`, and `shards[start:stop]` as an array.

    `fingerprint` tells whether two are the same, by the digests that were recorded when they were written.
    """

    def __init__(self, folder: Path, entries: Sequence[TokenFile], vocab_size: int) -> None:
        self.folder, self.dtype = folder, id_type(vocab_size)
        self._arrays = [map_tokens(folder, entry, vocab_size) for entry in entries]
        self._ends = list(accumulate(len(array) for array in self._arrays))
        recorded = [self.dtype.str, *(f"{entry.tokens} {entry.sha256}" for entry in entries)]
        self.fingerprint = hashlib.sha256("\n".join(recorded).encode("utf-8")).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, where: slice) -> UInt[np.ndarray, "N"]:
        """Neighbouring tokens: a view that cannot be written to or, across a border, a copy."""
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"tokens are read one after the other, not in steps of {step}.")
        parts = []
        while start < stop:
            number = bisect_right(self._ends, start)
            array, end = self._arrays[number], self._ends[number]
            begin = end - len(array)
            parts.append(array[start - begin : stop - begin])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, self.dtype), *parts])

    def counts(self, vocab_size: int) -> Int[np.ndarray, "V"]:
        """How often each id occurs. Raises TokenFilesError on one that is not in the vocabulary."""
        occurrences = np.zeros(vocab_size, np.int64)
        for start in range(0, len(self), COUNTED_AT_ONCE):
            found = np.bincount(self[start : start + COUNTED_AT_ONCE], minlength=vocab_size)
            if len(found) > vocab_size:
                raise _outside(self.folder, len(found) - 1, vocab_size)
            occurrences += found
        return occurrences


@dataclass(frozen=True)
class TokenFiles:
    """Token ids in a folder, used like a `Corpus`: `train` to train on and, per source (a file's name), ids held out.

    `tokenizer` is the fingerprint of the tokenizer that made them, `held_out_percent` how much was to be held out.
    """

    folder: Path
    vocab_size: int
    tokenizer: str
    held_out_percent: float
    train: Shards
    held_out: dict[str, np.ndarray]
    entries: tuple[TokenFile, ...]

    @classmethod
    def open(cls, folder: str | Path) -> "TokenFiles":
        """What `prepare_tokens` wrote, mapped into memory.

        Raises FileNotFoundError if there is no index, and TokenFilesError if it is damaged or a file is missing, has
        another size or, where that is quickly seen, ids outside the vocabulary: `verify` reads everything.
        """
        folder = Path(folder)
        index = read_record(folder / INDEX_FILE)
        try:
            vocab_size, tokenizer, percent = index["vocab_size"], index["tokenizer"], float(index["held_out_percent"])
            train = [TokenFile.from_json(entry) for entry in index["train"]]
            held_out = {str(entry["source"]): TokenFile.from_json(entry) for entry in index["held_out"]}
            sound = train and vocab_size > 0 and index["dtype"] == id_type(vocab_size).name
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise TokenFilesError(f"{folder / INDEX_FILE} is damaged; {ANEW}")
        shards = Shards(folder, train, vocab_size)
        mapped = {source: map_tokens(folder, entry, vocab_size) for source, entry in held_out.items()}
        return cls(folder, vocab_size, tokenizer, percent, shards, mapped, (*train, *held_out.values()))

    def verify(self) -> None:
        """Read everything. Raises TokenFilesError if a file has another SHA-256, or an id outside the vocabulary."""
        for entry in self.entries:
            if sha256_of(self.folder / entry.file) != entry.sha256:
                raise TokenFilesError(f"{self.folder / entry.file} is damaged (its SHA-256 differs); {ANEW}")
        self.train.counts(self.vocab_size)


def is_prepared(path: str | Path) -> bool:
    """Whether this is a folder of tokens, whole or not."""
    return any((Path(path) / name).exists() for name in (INDEX_FILE, JOURNAL_FILE))


def is_finished(path: str | Path) -> bool:
    """Whether this is a folder of tokens, all of which are there."""
    return (Path(path) / INDEX_FILE).exists()


def id_type(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id, little-endian on every machine."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def map_tokens(folder: Path, entry: TokenFile, vocab_size: int) -> UInt[np.ndarray, "N"]:
    """The ids of a file, read only where they are used. Raises TokenFilesError as `TokenFiles.open` does."""
    path, kind = folder / entry.file, id_type(vocab_size)
    if not path.is_file():
        raise TokenFilesError(f"{path} is missing; bring it back, or {ANEW}")
    size, needed = path.stat().st_size, entry.tokens * kind.itemsize
    if size != needed:
        raise TokenFilesError(f"{path} has {size:,} bytes, not {needed:,}; bring it back whole, or {ANEW}")
    ids = np.asarray(np.memmap(path, kind, mode="r"))
    for start in np.linspace(0, max(0, len(ids) - SAMPLE_TOKENS), SAMPLES, dtype=np.int64):
        highest = int(ids[start : start + SAMPLE_TOKENS].max())
        if highest >= vocab_size:
            raise _outside(path, highest, vocab_size)
    return ids


def _outside(path: Path, token: int, vocab_size: int) -> TokenFilesError:
    return TokenFilesError(f"{path} holds the id {token:,}, but the vocabulary has {vocab_size:,} tokens; {ANEW}")
