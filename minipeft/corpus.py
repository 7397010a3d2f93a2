"""Plain text files to one stream of token ids, with a part held out, and the texts that must never be trained on."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minipeft.tokenizer import END_OF_TEXT, Tokenizer

HELD_OUT_PERCENT = 1.0
PIECE_CHARACTERS = 8_000
SHORTEST_LEAK = 24
"""Held-out texts shorter than this many letters and digits are too common ("a good film") to be called leaks."""


class CorpusError(ValueError):
    """A text file that cannot be trained on."""


@dataclass(frozen=True)
class Corpus:
    """Token ids to train on and, per source (a file's name), token ids held out."""

    train: np.ndarray
    held_out: dict[str, np.ndarray]


def read_text(path: str | Path) -> str:
    """The UTF-8 text of a file. Raises FileNotFoundError or CorpusError with a sentence that names it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    data = path.read_bytes()
    if not data.strip():
        raise CorpusError(f"{path} is empty.")
    return decode(path, data).removeprefix("\ufeff")  # some editors begin UTF-8 with a byte-order mark


def decode(path: Path, data: bytes, start: int = 0) -> str:
    """The text that a file holds from byte `start` on. Raises CorpusError with a sentence that names the file."""
    if b"\0" in data:
        raise CorpusError(f"{path} is not a text file (it holds NUL bytes).")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte {start + error.start} is 0x{data[error.start]:02x}"
        raise CorpusError(f"{path} is not UTF-8 ({wrong}); save it as UTF-8 and try again.") from None


def documents(text: str) -> Iterator[str]:
    """The documents of a file: what stands between lines that hold only `<|endoftext|>`."""
    for document in re.split(rf"^{re.escape(END_OF_TEXT)}\r?$", text, flags=re.MULTILINE):
        if document.strip():
            yield document.strip("\n")


def pieces(document: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """A document in pieces of about `size` characters, cut between lines, so that a book can be held out in part."""
    piece: list[str] = []
    length = 0
    for line in document.splitlines(keepends=True):
        piece.append(line)
        length += len(line)
        if length >= size:
            yield "".join(piece)
            piece, length = [], 0
    if piece:
        yield "".join(piece)


def normalised(text: str) -> str:
    """Lower-case a–z and digits only: two texts that differ in spacing or punctuation become equal.

    Made for English: text in another script becomes empty.
    """
    return re.sub(r"[^a-z0-9]", "", text.lower())


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, spread evenly: what splits data once and for ever."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64


def is_held_out(piece: str, percent: float = HELD_OUT_PERCENT) -> bool:
    """Whether a piece belongs to the held-out part."""
    return share_of(piece) < percent / 100


class HeldOutTexts:
    """Texts that must not be trained on: finds any of them inside a paragraph.

    Compared as `normalised`; texts under `SHORTEST_LEAK` characters only count where they are a whole paragraph.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        normal = {normalised(text) for text in texts}
        self._whole = normal - {""}
        self._by_start: dict[str, list[str]] = {}
        for text in normal:
            if len(text) >= SHORTEST_LEAK:
                self._by_start.setdefault(text[:SHORTEST_LEAK], []).append(text)

    def __len__(self) -> int:
        return len(self._whole)

    def find_in(self, paragraph: str) -> str | None:
        """The first held-out text inside `paragraph`, normalised, or None."""
        normal = normalised(paragraph)
        if normal in self._whole:
            return normal
        for start in range(len(normal) - SHORTEST_LEAK + 1):
            for text in self._by_start.get(normal[start : start + SHORTEST_LEAK], ()):
                if normal.startswith(text, start):
                    return text
        return None


class WordBlocklist:
    """Words no paragraph may hold, stored as SHA-256 so that the list itself offends nobody."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self._hashes = frozenset(hashes)

    @classmethod
    def from_file(cls, path: str | Path) -> "WordBlocklist":
        """One hexadecimal hash per line; lines starting with # are comments."""
        lines = read_text(path).split("\n")
        return cls(line.strip() for line in lines if line.strip() and not line.startswith("#"))

    def find_in(self, paragraph: str) -> bool:
        """Whether a word of `paragraph` is on the list."""
        words = set(re.findall(r"[a-z]+", paragraph.lower()))
        return any(hashlib.sha256(word.encode()).hexdigest() in self._hashes for word in words)


def build_corpus(
    files: Sequence[str | Path], tokenizer: Tokenizer, held_out_percent: float = HELD_OUT_PERCENT
) -> Corpus:
    """Tokenise text files into one stream, documents joined by `<|endoftext|>`, with a part held out per file name.

    Raises FileNotFoundError or CorpusError as `read_text` does, and CorpusError if nothing is left to train on.
    """
    train: list[np.ndarray] = []
    held_out: dict[str, list[np.ndarray]] = {}
    id_type = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    eot = np.array([tokenizer.eot], dtype=id_type)
    for path in map(Path, files):
        for document in documents(read_text(path)):
            parts = list(pieces(document))
            for part, ids in zip(parts, tokenizer.encode_batch(parts), strict=True):
                tokens = np.array(ids, dtype=id_type)
                if is_held_out(part, held_out_percent):
                    held_out.setdefault(path.stem, []).extend([tokens, eot])
                else:
                    train.append(tokens)
            train.append(eot)
    if sum(map(len, train)) <= 2:
        raise CorpusError(f"{', '.join(map(str, files))}: no text is left to train on.")
    return Corpus(np.concatenate(train), {source: np.concatenate(parts) for source, parts in held_out.items()})
