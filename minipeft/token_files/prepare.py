"""Text files of any size to token files, by a process that may be stopped at any moment."""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

from minipeft.corpus import HELD_OUT_PERCENT, CorpusError
from minipeft.devices import cores
from minipeft.progress import bytes_bar
from minipeft.token_files.encode import batches, encode, in_order
from minipeft.token_files.record import (
    FORMAT,
    INDEX_FILE,
    JOURNAL_FILE,
    TokenFilesError,
    record_in,
    refuse_changes,
    texts_of,
)
from minipeft.token_files.shards import TokenFiles, id_type
from minipeft.token_files.text import TextFile, check_texts
from minipeft.token_files.writer import Place, Progress, TokenWriter, remove, token_files_in
from minipeft.tokenizer import Tokenizer

SHARD_TOKENS = 2**26
BATCH_CHARACTERS = 2**17
"""What a thread tokenises at once."""

Say = Callable[[str], None]


def prepare_tokens(
    files: Sequence[str | Path],
    tokenizer: Tokenizer,
    folder: str | Path,
    held_out_percent: float = HELD_OUT_PERCENT,
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    *,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> TokenFiles:
    """Tokenise text files of any size into a folder: the very tokens of `build_corpus`, in shards, held-out ones apart.

    All texts are checked first, so that a mistake in the last of them is found before anything is written. Then
    `workers` threads tokenise: one for each core, unless said otherwise. A process that is stopped, in whatever way,
    loses what it did in the last seconds: the same call goes on, and the files end up the same to the byte. If all
    is done already, it is used as it is. What is trusted then: a text whose name, size and time are those it had (one
    with another time is compared by its SHA-256), and finished token files that have the right size.

    On two cores of an AMD EPYC 5.1 million tokens a second of GPT-2's vocabulary, from file to file: 1.07 times what
    tiktoken's `encode_ordinary_batch` makes of the same text in memory, with 11 MB of it where that takes 790 (80 MB of
    text, medians of seven; `python benchmarks/tokenising.py`).

    Raises FileNotFoundError or CorpusError for a text that cannot be used, as `check_text` does, and if nothing is left
    to train on; TokenFilesError if the folder holds other tokens, or the texts, the tokenizer or a setting changed
    since, unless `overwrite`; ValueError for a setting that cannot be; OSError if the folder cannot be written to.
    """
    paths, folder = [Path(file) for file in files], Path(folder)
    workers = cores() if workers is None else workers
    _check_settings(paths, held_out_percent, shard_tokens, workers)
    with _alone(folder):
        record = None if overwrite else record_in(folder)
        if record is None and not overwrite:
            _refuse_strangers(folder)
        texts = check_texts(paths, texts_of(folder, record) if record else [])
        setting = {
            "format": FORMAT,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint(),
            "dtype": id_type(tokenizer.vocab_size).name,
            "held_out_percent": float(held_out_percent),
            "shard_tokens": shard_tokens,
            "inputs": [asdict(text) for text in texts],
        }
        if record:
            refuse_changes(folder, record, setting)
        if record and "progress" not in record:
            (folder / JOURNAL_FILE).unlink(missing_ok=True)
            say("Nothing has changed since these tokens were made; they are used as they are.")
            return TokenFiles.open(folder)
        if overwrite:
            remove(folder)
        progress = Progress.from_record(folder, record) if record else Progress()
        writer = TokenWriter(folder, setting, [path.stem for path in paths], progress)
        _tokenise(paths, texts, tokenizer, writer, workers, say)
        writer.finish()
        return TokenFiles.open(folder)


def _tokenise(
    paths: list[Path], texts: list[TextFile], tokenizer: Tokenizer, writer: TokenWriter, workers: int, say: Say
) -> None:
    """Write the tokens of all that follows the writer's place or, if the texts are no good after all, nothing."""
    begun, started = writer.progress, time.perf_counter()
    before = [0, *accumulate(text.bytes for text in texts)]
    if begun.place != Place():
        done = before[begun.place.file] + begun.place.offset
        say(f"Going on after {done:,} of {before[-1]:,} bytes.")
    percent = writer.setting["held_out_percent"]
    coming = batches(paths, texts, begun.place, min(BATCH_CHARACTERS, writer.setting["shard_tokens"]))
    try:
        with bytes_bar("tokenising", before[-1]) as show:
            for batch, ids in in_order(lambda batch: encode(batch, tokenizer, percent), coming, workers):
                writer.add(batch.end, batch.path.stem, ids.train, ids.held_out)
                show(before[batch.end.file] + batch.end.offset)
        if writer.progress.train_tokens <= 2:
            raise CorpusError(f"{', '.join(map(str, paths))}: no text is left to train on.")
    except TokenFilesError:
        raise
    except CorpusError:
        remove(writer.folder)
        raise
    except KeyboardInterrupt:
        writer.save()
        raise
    made, seconds = writer.progress.tokens - begun.tokens, time.perf_counter() - started
    say(f"{made:,} tokens in {seconds:.1f} s: {made / seconds:,.0f} a second.")


def _check_settings(paths: list[Path], held_out_percent: float, shard_tokens: int, workers: int) -> None:
    if not paths:
        raise CorpusError("there are no text files to prepare.")
    if not 0 <= held_out_percent < 100:
        raise ValueError(f"the part held out must be at least 0 and less than 100 percent, got {held_out_percent}.")
    for name, value in (("shard_tokens", shard_tokens), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _refuse_strangers(folder: Path) -> None:
    """Raise TokenFilesError rather than write over files of which nothing is known."""
    for path in token_files_in(folder):
        raise TokenFilesError(
            f"{folder} holds {path.name}, but no {INDEX_FILE} that says what it is; "
            "use another --out, or start anew with --overwrite."
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else on this machine writes into `folder` meanwhile. Raises TokenFilesError if somebody does."""
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"minipeft-{name}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TokenFilesError(f"another process is writing tokens into {folder}; wait until it has ended.") from None
    try:
        yield
    finally:
        lock.release()
