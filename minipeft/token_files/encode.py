"""Pieces of text to token ids, by several threads, in the order of the text."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from minipeft.corpus import CorpusError, is_held_out
from minipeft.token_files.shards import id_type
from minipeft.token_files.text import Piece, TextFile, marks_of, read_pieces
from minipeft.token_files.writer import Place
from minipeft.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """Some neighbouring pieces of one file, and the place to go on at after them."""

    path: Path
    pieces: list[Piece]
    end: Place


@dataclass(frozen=True)
class Encoded:
    """The token ids of a batch: to train on, with `<|endoftext|>` after documents; held out, with one after pieces."""

    train: UInt[np.ndarray, "N"]
    held_out: UInt[np.ndarray, "M"]


def batches(paths: Sequence[Path], texts: Sequence[TextFile], start: Place, characters: int) -> Iterator[Batch]:
    """All that follows `start`, in batches of about so many characters, which do not depend on what comes before.

    Raises CorpusError if a file has changed since it was checked.
    """
    for number in range(start.file, len(paths)):
        here = start if number == start.file else Place(number)
        some: list[Piece] = []
        length = 0
        for piece in read_pieces(paths[number], here.offset, here.in_document):
            some.append(piece)
            length += len(piece.text)
            if length >= characters:
                yield _batch(paths[number], number, some)
                some, length = [], 0
        if some:
            yield _batch(paths[number], number, some)
        if marks_of(paths[number]) != texts[number].marks:
            raise CorpusError(f"{paths[number]} was changed while it was read; leave it as it is and try again.")


def encode(batch: Batch, tokenizer: Tokenizer, held_out_percent: float) -> Encoded:
    """The token ids that `build_corpus` makes of these pieces. Raises CorpusError where the tokenizer gives up."""
    kind = id_type(tokenizer.vocab_size)
    eot, nothing = np.array([tokenizer.eot], kind), np.zeros(0, kind)
    train, held_out = [nothing], [nothing]
    for piece in batch.pieces:
        try:
            tokens = tokenizer.encode_to_array(piece.text).astype(kind)
        except ValueError as error:  # a run of a million blanks is too much for the pattern of words
            raise CorpusError(
                f"{batch.path} cannot be tokenised before byte {piece.end:,} ({error}); take very long runs of white "
                "space out and try again."
            ) from None
        if is_held_out(piece.text, held_out_percent):
            held_out += [tokens, eot]
        else:
            train.append(tokens)
        if piece.ends_document:
            train.append(eot)
    return Encoded(np.concatenate(train), np.concatenate(held_out))


def in_order(
    work: Callable[[Batch], Encoded], coming: Iterable[Batch], workers: int
) -> Iterator[tuple[Batch, Encoded]]:
    """Each batch with its token ids, in order; the threads are given a few batches more, so that none waits."""
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch in coming:
            waiting.append((batch, pool.submit(work, batch)))
            if len(waiting) > 2 * workers:
                first, made = waiting.popleft()
                yield first, made.result()
        for rest, made in waiting:
            yield rest, made.result()


def _batch(path: Path, number: int, some: list[Piece]) -> Batch:
    return Batch(path, some, Place(number, some[-1].end, not some[-1].ends_document))
