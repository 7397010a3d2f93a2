"""Token files while they grow, in a folder that a process may leave at any moment and another goes on with."""

import errno
import hashlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt

from minipeft.files import sha256_of, write_json
from minipeft.token_files.record import ANEW, INDEX_FILE, JOURNAL_FILE, TokenFilesError
from minipeft.token_files.shards import FILE_NAME, TokenFile, id_type

PART = ".part"
SAVE_SECONDS = 10.0


def shard_name(number: int) -> str:
    """The file of a shard: train-00000.bin, train-00001.bin, …"""
    return f"train-{number:05}.bin"


def held_out_names(sources: list[str]) -> dict[str, str]:
    """A file for the held-out part of each source, whose own name may hold signs that a file's cannot."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for source in dict.fromkeys(sources):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", source)[:80]
        if plain != source or plain.lower() in taken:  # some systems take a.bin and A.bin for one file
            plain += "-" + hashlib.sha256(source.encode("utf-8")).hexdigest()[:12]
        taken.add(plain.lower())
        names[source] = f"held_out-{plain}.bin"
    return names


@dataclass(frozen=True)
class Place:
    """How far the texts are read: the number of a file, the byte to go on at, and whether a document goes on there."""

    file: int = 0
    offset: int = 0
    in_document: bool = False


@dataclass(frozen=True)
class Progress:
    """What is written: finished shards, tokens in the one that grows, tokens of each source held out.

    Never changed, only replaced, so that an interrupt finds the old one or the new one whole.
    """

    place: Place = Place()
    shards: tuple[TokenFile, ...] = ()
    growing: int = 0
    held_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_record(cls, folder: Path, record: Mapping[str, Any]) -> "Progress":
        """What a journal says. Raises TokenFilesError if it is damaged."""
        try:
            value = record["progress"]
            shards = tuple(TokenFile.from_json(entry) for entry in value["shards"])
            return cls(Place(**value["place"]), shards, value["growing"], dict(value["held_out"]))
        except (KeyError, TypeError, ValueError):
            raise TokenFilesError(f"{folder / JOURNAL_FILE} is damaged; {ANEW}") from None

    @property
    def train_tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards) + self.growing

    @property
    def tokens(self) -> int:
        return self.train_tokens + sum(self.held_out.values())


class TokenWriter:
    """Adds tokens to files called `.part`, which lose the ending when they are finished.

    The journal says how many tokens of each file count, and from where in the texts to go on. What an earlier process
    wrote beyond that is cut off. The journal itself is replaced atomically, after what it counts is on disk: every few
    seconds, and with every shard. At the end `index.json` takes its place.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any], sources: list[str], progress: Progress) -> None:
        self.folder, self.setting, self.progress = folder, setting, progress
        self.names = held_out_names(sources)
        self.itemsize = id_type(setting["vocab_size"]).itemsize
        self._unsynced: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.save()
        self._take_up()

    def add(self, place: Place, source: str, train: UInt[np.ndarray, "N"], held_out: UInt[np.ndarray, "M"]) -> None:
        """The tokens of the texts up to `place`, after those before: to train on, and held out of `source`."""
        if self.progress.growing >= self.setting["shard_tokens"]:
            self._finish_shard()
        progress = self.progress
        before = progress.held_out.get(source, 0)
        self._append(shard_name(len(progress.shards)), progress.growing, train)
        self._append(self.names[source], before, held_out)
        parts = {**progress.held_out, source: before + len(held_out)} if len(held_out) else progress.held_out
        self.progress = replace(progress, place=place, growing=progress.growing + len(train), held_out=parts)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Everything that was added on disk, and a journal that says so."""
        for path in self._unsynced:
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()
        write_json(self.folder / JOURNAL_FILE, {**self.setting, "progress": asdict(self.progress)})
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Every file gets its name, then the folder its index."""
        if self.progress.growing:  # else an earlier process had come this far
            self._finish_shard()
        held_out = {source: self._finished(self.names[source], n) for source, n in self.progress.held_out.items()}
        for entry in held_out.values():
            self._name(entry)
        index = {
            **self.setting,
            "train": [asdict(shard) for shard in self.progress.shards],
            "held_out": [{"source": source, **asdict(entry)} for source, entry in held_out.items()],
        }
        write_json(self.folder / INDEX_FILE, index)
        (self.folder / JOURNAL_FILE).unlink()

    def _append(self, name: str, tokens: int, ids: UInt[np.ndarray, "N"]) -> None:
        """Write ids behind the `tokens` that count, in the place of what an interrupted process left there."""
        if not len(ids):
            return
        path = self.folder / (name + PART)
        try:
            with open(path, "ab") as file:
                file.truncate(tokens * self.itemsize)
                file.write(ids.tobytes())
        except OSError as error:
            reason = error.strerror or str(error)
            raise type(error)(
                error.errno or errno.EIO, f"cannot write {path}: {reason}; the same command goes on from what is there"
            ) from None
        self._unsynced.add(path)

    def _finish_shard(self) -> None:
        name = shard_name(len(self.progress.shards))
        shard = self._finished(name, self.progress.growing)
        self.progress = replace(self.progress, shards=(*self.progress.shards, shard), growing=0)
        self._unsynced.discard(self.folder / (name + PART))
        self.save()
        self._name(shard)

    def _finished(self, name: str, tokens: int) -> TokenFile:
        """A file that will not grow any more, on disk; it may have its name already."""
        path = self._path(name)
        with open(path, "r+b") as file:
            file.truncate(tokens * self.itemsize)
            os.fsync(file.fileno())
        return TokenFile(name, tokens, sha256_of(path))

    def _path(self, name: str) -> Path:
        """Where a file lies: under its name if it has got it, else as a part."""
        path = self.folder / name
        return path if path.exists() else self.folder / (name + PART)

    def _name(self, entry: TokenFile) -> None:
        os.replace(self._path(entry.file), self.folder / entry.file)

    def _take_up(self) -> None:
        """Go on with what the journal counts, remove what it does not. Raises TokenFilesError if something is gone."""
        progress = self.progress
        counted = {shard.file: shard.tokens for shard in progress.shards}
        counted |= {shard_name(len(progress.shards)): progress.growing} if progress.growing else {}
        counted |= {self.names[source]: tokens for source, tokens in progress.held_out.items()}
        for name, tokens in counted.items():
            path = self._path(name)
            if not path.is_file() or path.stat().st_size < tokens * self.itemsize:
                raise TokenFilesError(f"{path} is not as long as {JOURNAL_FILE} beside it says; {ANEW}")
        for shard in progress.shards:
            self._name(shard)
        remove(self.folder, keep=set(counted))


def remove(folder: Path, keep: set[str] | None = None) -> None:
    """Remove token files, finished or not, but for some names; without `keep` the index and the journal, too."""
    if keep is None:
        for name in (INDEX_FILE, JOURNAL_FILE):  # first: a folder without them promises nothing
            (folder / name).unlink(missing_ok=True)
    for path in token_files_in(folder):
        if path.name.removesuffix(PART) not in (keep or ()):
            path.unlink()
    for name in (INDEX_FILE, JOURNAL_FILE):
        for path in folder.glob(f".{name}.*"):  # a process that is killed while it writes leaves these
            path.unlink()


def token_files_in(folder: Path) -> list[Path]:
    """The token files in a folder, finished or not."""
    return sorted(path for path in folder.glob("*.bin*") if FILE_NAME.fullmatch(path.name.removesuffix(PART)))
