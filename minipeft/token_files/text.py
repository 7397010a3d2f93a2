"""Text files of any size, read a block at a time: the same pieces of the same documents that `build_corpus` makes."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minipeft.corpus import CorpusError, decode, pieces
from minipeft.progress import bytes_bar
from minipeft.tokenizer import END_OF_TEXT

BLOCK_BYTES = 2**18
LONGEST_LINE = 2**26
"""Bytes (64 MB). A line is read whole; text has no such lines, so the file is none or its line ends were lost."""
MOST_BLANK = 2**22
"""Characters of white space in a row whose meaning depends on whether text follows, and which wait until then."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LINE_ENDS_WITH_MARK = re.compile(rb"%s\r?$" % re.escape(END_OF_TEXT).encode(), re.MULTILINE)


@dataclass(frozen=True)
class TextFile:
    """A text file as it was when it was checked; `modified` is its time in nanoseconds."""

    name: str
    bytes: int
    modified: int
    sha256: str

    @property
    def marks(self) -> tuple[str, int, int]:
        """What `marks_of` the file was."""
        return self.name, self.bytes, self.modified


@dataclass(frozen=True)
class Piece:
    """A piece of a document, as `corpus.pieces` cuts it, and the byte of the file to go on at after it."""

    text: str
    ends_document: bool
    end: int


def marks_of(path: Path) -> tuple[str, int, int]:
    """The name of a file, its size and its time: while they are the same, it is taken for unchanged."""
    found = path.stat()
    return path.name, found.st_size, found.st_mtime_ns


def check_text(path: Path, read: Callable[[int], None] = lambda count: None) -> TextFile:
    """Read a file once, to find what is wrong with it before anything is made of it; `read` is told of bytes read.

    Raises FileNotFoundError or CorpusError with a sentence that names the file, PermissionError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        raise CorpusError(f"the name of {str(path)!a} is not UTF-8; rename it and try again.") from None
    marks, digest, blank = marks_of(path), hashlib.sha256(), True
    for start, data in _blocks(path):
        decode(path, data, start)
        digest.update(data)
        blank = blank and data.isspace()
        read(len(data))
    if blank:
        raise CorpusError(f"{path} is empty.")
    return TextFile(*marks, digest.hexdigest())


def check_texts(paths: Sequence[Path], known: Sequence[TextFile]) -> list[TextFile]:
    """Check every file, but for those that are known and still have the same marks. Raises what `check_text` does."""
    by_marks = {text.marks: text for text in known}
    found = [by_marks.get(marks_of(path)) if path.is_file() else None for path in paths]
    new = [path for path, text in zip(paths, found, strict=True) if text is None]
    done = 0
    with bytes_bar("checking", sum(path.stat().st_size for path in new if path.is_file())) as show:

        def read(count: int) -> None:
            nonlocal done
            done += count
            show(done)

        return [text or check_text(path, read) for path, text in zip(paths, found, strict=True)]


def read_pieces(path: Path, start: int = 0, in_document: bool = False) -> Iterator[Piece]:
    """The pieces of every document of a file, or those after a piece that ended at byte `start`.

    `in_document`: that piece did not end its document. Raises CorpusError as `check_text` does.
    """
    document = _Document(path, start, in_document)
    end = start
    for begin, data in _blocks(path, max(0, start - 1)):  # the byte before tells whether a line starts at `start`
        if begin == 0 and data.startswith(BYTE_ORDER_MARK):
            begin, data = len(BYTE_ORDER_MARK), data[len(BYTE_ORDER_MARK) :]
            document.offset = max(start, begin)
        at = max(0, start - begin)
        for separator in _separators(data, at):
            yield from document.add(decode(path, data[at : separator.start()], begin + at))
            yield from document.end(begin + separator.end())
            at = separator.end()
        yield from document.add(decode(path, data[at:], begin + at))
        end = begin + len(data)
    yield from document.end(end)


class _Document:
    """A document that comes in parts, cut into the pieces of the whole.

    `rest`, which begins at byte `offset`, cannot be given on yet: the last piece, to which more may belong, or white
    space at the start, which counts only if text follows. So do line ends, of which only the number is kept.
    """

    def __init__(self, path: Path, offset: int, has_text: bool) -> None:
        self.path, self.offset, self.has_text = path, offset, has_text
        self.rest, self.line_ends = "", 0

    def add(self, text: str) -> Iterator[Piece]:
        """The pieces that are certain after more text, which ends with a whole line."""
        if not (self.has_text or self.rest):  # line ends at the start are left out
            without = text.lstrip("\n")
            self.offset += len(text) - len(without)
            text = without
        body = text.rstrip("\n")
        if not body:
            self.line_ends += len(text)
            return
        self._check_blank()
        whole = self.rest + "\n" * self.line_ends + body
        self.line_ends = len(text) - len(body)
        self.has_text = self.has_text or bool(body.strip())
        if not self.has_text:
            self.rest = whole
            return
        *certain, self.rest = pieces(whole)
        for piece in certain:
            self.offset += len(piece.encode("utf-8"))
            yield Piece(piece, False, self.offset)

    def end(self, offset: int) -> Iterator[Piece]:
        """The last piece, if there is any text; the next document begins at byte `offset`."""
        if self.has_text:
            yield Piece(self.rest, True, offset)
        self.offset, self.has_text, self.rest, self.line_ends = offset, False, "", 0

    def _check_blank(self) -> None:
        if max(self.line_ends, 0 if self.has_text else len(self.rest)) > MOST_BLANK:
            raise CorpusError(
                f"{self.path} has more than {MOST_BLANK:,} characters of white space in a row after byte "
                f"{self.offset:,}; take them out and try again."
            )


def _separators(data: bytes, start: int) -> Iterator[re.Match[bytes]]:
    """The lines from `start` on that part documents. A pattern that begins with ^ would take 15 times as long."""
    for found in LINE_ENDS_WITH_MARK.finditer(data, start):
        if found.start() == 0 or data[found.start() - 1] == ord("\n"):
            yield found


def _blocks(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """A file from byte `start` on, in blocks of whole lines, each with the byte at which it begins.

    Raises CorpusError if a line is longer than LONGEST_LINE.
    """
    with path.open("rb") as file:
        file.seek(start)
        line: list[bytes] = []  # what has come of a line that has no end yet
        length = 0
        while data := file.read(BLOCK_BYTES):
            first_end = data.find(b"\n")
            if length + (len(data) if first_end < 0 else first_end) > LONGEST_LINE:
                raise CorpusError(
                    f"{path}, line {_line_number(path, start)}, is longer than {LONGEST_LINE:,} bytes; "
                    "break it into lines, or leave the file out if it is no text."
                )
            cut = data.rfind(b"\n") + 1
            if cut:
                block = b"".join([*line, data[:cut]])
                yield start, block
                start += len(block)
                line, length = [], 0
            line.append(data[cut:])
            length += len(data) - cut
        if length:
            yield start, b"".join(line)


def _line_number(path: Path, byte: int) -> int:
    """The number, from 1, of the line that holds a byte of a file."""
    number = 1
    with path.open("rb") as file:
        while (left := byte - file.tell()) > 0 and (data := file.read(min(left, BLOCK_BYTES))):
            number += data.count(b"\n")
    return number
