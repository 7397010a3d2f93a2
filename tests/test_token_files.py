"""Token files: the tokens of `build_corpus`, whatever the text and whoever stops it; what is damaged is refused."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import corpus
from minipeft.corpus import PIECE_CHARACTERS, Corpus, CorpusError, build_corpus, documents, read_text
from minipeft.token_files import Shards, TokenFiles, TokenFilesError, prepare, prepare_tokens, text, writer
from minipeft.token_files.record import INDEX_FILE, JOURNAL_FILE
from minipeft.token_files.shards import SAMPLE_TOKENS, TokenFile
from minipeft.token_files.text import Piece, check_text, read_pieces
from minipeft.token_files.writer import PART, held_out_names
from minipeft.tokenizer import END_OF_TEXT, Tokenizer
from tests.test_corpus import numbered_lines, write

ROOT = Path(__file__).parents[1]
BYTES = Tokenizer.gpt2(merges=0)
KILLS = 25
FULL = "x" * (PIECE_CHARACTERS - 1) + "\n"
"""A line that fills a piece."""

RAGGED = {
    "one document": numbered_lines("it", 900),
    "many documents": f"\n{END_OF_TEXT}\n".join(f"Document {n} is short." for n in range(500)),
    "marks all around": f"{END_OF_TEXT}\none\n{END_OF_TEXT}\n\n{END_OF_TEXT}\n  two\n\n\n{END_OF_TEXT}",
    "written on Windows": f"one\r\n\r\nstill one\r\n{END_OF_TEXT}\r\n\r\ntwo\r\n{END_OF_TEXT}\r",
    "byte-order marks": f"\ufeff{END_OF_TEXT}\none\n{END_OF_TEXT}\n\ufefftwo",
    "marks inside lines": f"The mark {END_OF_TEXT} ends a text.\n {END_OF_TEXT}\n{END_OF_TEXT} \n",
    "white documents": f" \t\n\n{END_OF_TEXT}\n\u3000\n \n{END_OF_TEXT}\n \n\n one\n \n{END_OF_TEXT}\n\n \n",
    "other line ends": "a\rb\x0bc\x0cd\x1ce\x85f\u2028g\u2029" * 5000 + "\n\n\n" + "\r\r\n" * 5000 + "end",
    "a mark after another line end": (FULL[:-1] + f"\u2028{END_OF_TEXT}\n") * 3,
    "full pieces and nothing after": FULL * 3 + "\n\n",
    "full pieces and empty lines": FULL * 2 + "\n" * 20_000 + "end\n\n" + END_OF_TEXT + "\n" + FULL + "\n",
    "long lines": ("word " * 3000 + "\n") * 5 + "no end",
    "white space at the start": "\n \n" * 9000 + "end",
    "signs of several bytes": "Ünïcödé 🤗 日本語\n" * 3000,
}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is for power cuts, which are not tested; a killed process's writes are not lost."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def assert_equal(made: TokenFiles, expected: Corpus) -> None:
    assert np.array_equal(made.train[:], expected.train)
    assert made.train.dtype == expected.train.dtype
    assert list(made.held_out) == list(expected.held_out)
    for source, tokens in expected.held_out.items():
        assert np.array_equal(made.held_out[source], tokens)
        assert made.held_out[source].dtype == tokens.dtype


# --- a text, a block at a time


def pieces_of_the_whole(path: Path) -> list[tuple[str, bool]]:
    """As `build_corpus` makes them, and whether each ends its document."""
    cut = [list(corpus.pieces(document)) for document in documents(read_text(path))]
    return [(piece, number == len(some)) for some in cut for number, piece in enumerate(some, 1)]


def told(found: Iterable[Piece]) -> list[tuple[str, bool]]:
    return [(piece.text, piece.ends_document) for piece in found]


@pytest.mark.parametrize("block", [1000, text.BLOCK_BYTES])
@pytest.mark.parametrize("what", RAGGED)
def test_blocks_give_the_pieces_of_the_whole(
    what: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    path = write(tmp_path / "a.txt", RAGGED[what])
    assert told(read_pieces(path)) == pieces_of_the_whole(path)


SNIPPETS = [
    *("a", "bc d", "é", "🤗", " ", "\t", "\n", "\n\n", "\r", "\r\n", "\x0c", "\u2028", "\u3000", "\ufeff", "<|"),
    *(END_OF_TEXT, f"\n{END_OF_TEXT}\n", f"\n{END_OF_TEXT}\r\n", f"{END_OF_TEXT}\n", "abc\n" * 4),
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(parts=st.lists(st.sampled_from(SNIPPETS), max_size=24), block=st.integers(1, 40), size=st.integers(1, 12))
def test_whatever_the_text_blocks_give_its_pieces_and_reading_can_begin_after_any(
    parts: list[str], block: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.txt", "a" + "".join(parts))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text, "BLOCK_BYTES", block)
        cut_small = partial(corpus.pieces, size=size)
        for module in (corpus, text):
            patched.setattr(module, "pieces", cut_small)
        expected, found = pieces_of_the_whole(path), list(read_pieces(path))
        assert told(found) == expected
        for number, piece in enumerate(found, 1):
            rest = read_pieces(path, piece.end, in_document=not piece.ends_document)
            assert told(rest) == expected[number:]


def test_a_text_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", numbered_lines("it", 200_000))
    assert path.stat().st_size > 7_000_000
    tracemalloc.start()
    for _ in read_pieces(path):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_500_000  # some copies of a block of 262,144 bytes, and its lines


# --- the same tokens


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All ragged texts; two share a name, and one's name is no name for a file everywhere."""
    folder = tmp_path_factory.mktemp("ragged")
    files = [write(folder / f"{what}.txt", data) for what, data in RAGGED.items()]
    twins = [write(folder / name / "input.txt", numbered_lines(name, 3000)) for name in ("one", "two")]
    return [*files, *twins, write(folder / "a?b:c.d.txt", numbered_lines("three", 3000))]


@pytest.mark.parametrize("percent", [0.0, 1.0, 40.0])
@pytest.mark.parametrize("shard", [1000, 30_000, 2**26])
def test_the_tokens_are_those_of_the_corpus(shard: int, percent: float, ragged: list[Path], tmp_path: Path) -> None:
    made = prepare_tokens(ragged, BYTES, tmp_path / "out", percent, shard)
    assert_equal(made, build_corpus(ragged, BYTES, percent))
    made.verify()
    names = set(files_in(tmp_path / "out"))
    assert INDEX_FILE in names
    assert not any(name.endswith(PART) or name.startswith(".") or name == JOURNAL_FILE for name in names)


def test_shards_are_about_as_long_as_asked_for(ragged: list[Path], tmp_path: Path) -> None:
    made = prepare_tokens(ragged, BYTES, tmp_path / "out", 1.0, 20_000)
    sizes = [entry.tokens for entry in made.entries if entry.file.startswith("train-")]
    assert len(sizes) > 10
    assert all(20_000 <= size < 20_000 + 20_000 + 2 * PIECE_CHARACTERS for size in sizes[:-1])  # and a batch of UTF-8


def test_the_number_of_threads_changes_nothing(ragged: list[Path], tmp_path: Path) -> None:
    for workers in (1, 5):
        prepare_tokens(ragged, BYTES, tmp_path / str(workers), 5.0, 10_000, workers)
    assert files_in(tmp_path / "1") == files_in(tmp_path / "5")


@pytest.mark.parametrize(("vocab_size", "kind"), [(257, np.uint16), (8257, np.uint16), (50257, np.uint16)])
def test_the_vocabulary_is_that_of_the_tokenizer(
    vocab_size: int, kind: type, ragged: list[Path], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.for_vocab_size(vocab_size)
    made = prepare_tokens(ragged[:2], tokenizer, tmp_path / "out", 10.0)
    assert_equal(made, build_corpus(ragged[:2], tokenizer, 10.0))
    assert (made.vocab_size, made.tokenizer, made.train.dtype) == (vocab_size, tokenizer.fingerprint(), kind)


class ManyTokens(Tokenizer):
    """A byte tokenizer whose `<|endoftext|>` does not fit into two bytes."""

    def __init__(self) -> None:
        super().__init__(BYTES._encoding)
        self.eot, self.vocab_size = 70_000, 70_001

    def fingerprint(self) -> str:
        return "many"


def test_ids_beyond_two_bytes_take_four(ragged: list[Path], tmp_path: Path) -> None:
    made = prepare_tokens(ragged[:2], ManyTokens(), tmp_path / "out", 40.0)
    assert_equal(made, build_corpus(ragged[:2], ManyTokens(), 40.0))
    assert made.train.dtype == np.uint32
    assert int(made.train[:].max()) == 70_000


def test_real_text_becomes_the_tokens_of_the_corpus(tmp_path: Path) -> None:
    if "MINIPEFT_CORPUS" not in os.environ:
        pytest.skip("needs text: set MINIPEFT_CORPUS")
    files = sorted(Path(os.environ["MINIPEFT_CORPUS"]).rglob("*.txt"), key=lambda file: file.stat().st_size)[-8:-5]
    tokenizer = Tokenizer.for_vocab_size(8257)
    made = prepare_tokens(files, tokenizer, tmp_path / "out", shard_tokens=100_000)
    assert_equal(made, build_corpus(files, tokenizer))


def test_the_index_tells_what_was_read(ragged: list[Path], tmp_path: Path) -> None:
    made = prepare_tokens(ragged, BYTES, tmp_path / "out", 20.0)
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert (index["vocab_size"], index["dtype"], index["held_out_percent"]) == (257, "uint16", 20.0)
    for path, entry in zip(ragged, index["inputs"], strict=True):
        assert (entry["name"], entry["bytes"]) == (path.name, path.stat().st_size)
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for entry in (*index["train"], *index["held_out"]):
        data = (made.folder / entry["file"]).read_bytes()
        assert (entry["tokens"] * 2, entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_every_source_has_a_file_with_a_safe_name_of_its_own() -> None:
    sources = ["plain", "Plain", "a/b", "a:b", "日本", "日本語", "..", "x" * 300, "x" * 301, "", "plain"]
    names = held_out_names(sources)
    assert list(names) == sources[:-1]
    assert names["plain"] == "held_out-plain.bin"
    assert len({name.lower() for name in names.values()}) == len(names)
    assert all(name.isascii() and len(name) < 120 and not set(name) & set('/\\:*?"<>| ') for name in names.values())


# --- stopped and gone on with

DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
from minipeft.token_files import prepare_tokens, writer
from minipeft.tokenizer import Tokenizer

os.fsync = lambda _: None  # for power cuts alone
writer.SAVE_SECONDS = 0.002
tokenizer = Tokenizer.gpt2(merges=0)
out, kills, *files = sys.argv[1:]
prepare_tokens(files[:1], tokenizer, out + "-first", 20.0)  # imports what it needs
draw = random.Random(0)
add = writer.TokenWriter.add

def shards():
    return sum(path.name.startswith("train-") for path in Path(out).glob("*"))

def add_some(self, *given):  # never all of them, even if the other process sleeps
    if shards() > enough + 2:
        time.sleep(600)
    add(self, *given)

for _ in range(int(kills)):
    enough = shards() + draw.randint(0, 6)
    child = os.fork()
    if child == 0:
        writer.TokenWriter.add = add_some
        prepare_tokens(files, tokenizer, out, 20.0, 1000)
        os._exit(0)
    while shards() < enough and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.004))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    print(shards(), flush=True)
prepare_tokens(files, tokenizer, out, 20.0, 1000)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL and fork")
def test_killed_again_and_again_it_ends_the_same_to_the_byte(tmp_path: Path) -> None:
    files = [str(write(tmp_path / f"{name}.txt", numbered_lines(name, 25_000))) for name in ("one", "two")]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(killed), str(KILLS), *files],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shards = list(map(int, done.stdout.split()))
    assert len(shards) == KILLS
    assert len({*shards}) > KILLS // 2, shards  # it went on between most of them
    made = prepare_tokens(files, BYTES, whole, 20.0, 1000)
    assert files_in(killed) == files_in(whole)
    assert_equal(made, build_corpus(files, BYTES, 20.0))


class Interrupt:
    """Stands in for a function; somebody presses Ctrl-C in its call number `at`."""

    def __init__(self, function: Callable[..., Any], at: int) -> None:
        self.function, self.at, self.calls = function, at, 0

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        return self if instance is None else partial(self, instance)

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.function(*given, **named)


def interrupted(owner: Any, name: str, at: int, action: Callable[[], Any]) -> bool:
    """Do something until somebody presses Ctrl-C; whether it came to that."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, Interrupt(getattr(owner, name), at))
        try:
            action()
        except KeyboardInterrupt:
            return True
    return False


@pytest.fixture(scope="module")
def two_texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    return [write(folder / f"{name}.txt", numbered_lines(name, 2500)) for name in ("one", "two")]


def prepare_two(two_texts: list[Path], out: Path) -> TokenFiles:
    """Five shards from eight batches, and two files held out."""
    return prepare_tokens(two_texts, BYTES, out, 40.0, 20_000, 1)


@pytest.mark.parametrize(
    ("owner", "name", "fewest"),
    [
        (writer.TokenWriter, "add", 6),
        (writer.TokenWriter, "_append", 12),
        (writer.TokenWriter, "_path", 8),
        (writer, "write_json", 4),
        (os, "replace", 8),
        (os, "fsync", 8),
        (Path, "unlink", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_interrupted_at_any_call_it_ends_the_same(owner: Any, name: str, fewest: int, tmp_path: Path) -> None:
    texts = [write(tmp_path / f"{name}.txt", numbered_lines(name, 1000)) for name in ("one", "two")]

    def go(out: str) -> TokenFiles:
        return prepare_tokens(texts, BYTES, tmp_path / out, 40.0, 10_000, 1)

    go("whole")
    at = 1
    while interrupted(owner, name, at, partial(go, str(at))):
        go(str(at))
        assert files_in(tmp_path / str(at)) == files_in(tmp_path / "whole"), at
        at += 1
    assert at > fewest
    assert files_in(tmp_path / str(at)) == files_in(tmp_path / "whole")


def test_what_was_written_before_an_interrupt_is_not_tokenised_again(two_texts: list[Path], tmp_path: Path) -> None:
    counted: list[int] = []

    class Counting(Tokenizer):
        def encode_to_array(self, text: str) -> np.ndarray:
            counted.append(len(text))
            return super().encode_to_array(text)

    tokenizer = Counting(BYTES._encoding)
    lines: list[str] = []

    def go() -> TokenFiles:
        return prepare_tokens(two_texts, tokenizer, tmp_path / "out", 40.0, 20_000, 1, say=lines.append)

    assert interrupted(writer.TokenWriter, "add", 6, go)
    counted.clear()
    made = go()
    assert 0 < sum(counted) < 0.5 * sum(path.stat().st_size for path in two_texts)  # five of eight batches were done
    assert_equal(made, build_corpus(two_texts, BYTES, 40.0))
    assert lines[0].startswith("Going on after ")


def test_a_full_disk_is_one_sentence_and_the_same_call_goes_on(
    two_texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            prepare_two(two_texts, tmp_path / "out")
    assert files_in(tmp_path / "out") == {}
    assert_equal(prepare_two(two_texts, tmp_path / "out"), build_corpus(two_texts, BYTES, 40.0))


def test_two_processes_do_not_write_into_one_folder(two_texts: list[Path], tmp_path: Path) -> None:
    with prepare._alone(tmp_path / "out"), pytest.raises(TokenFilesError, match="another process is writing tokens"):
        prepare_two(two_texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- done already, or something changed since


def test_what_is_done_is_used_as_it_is(two_texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepare_two(two_texts, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    monkeypatch.setattr(prepare, "TokenWriter", None)
    lines: list[str] = []
    again = prepare_tokens(two_texts, BYTES, tmp_path / "out", 40.0, 20_000, 1, say=lines.append)
    assert again.train.fingerprint == made.train.fingerprint
    assert {path: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    assert lines == ["Nothing has changed since these tokens were made; they are used as they are."]


def copies(texts: list[Path], folder: Path) -> list[Path]:
    return [write(folder / path.name, path.read_bytes()) for path in texts]


def test_a_text_that_was_only_touched_or_moved_is_the_same(two_texts: list[Path], tmp_path: Path) -> None:
    made = prepare_two(two_texts, tmp_path / "out")
    moved = copies(two_texts, tmp_path / "texts")
    os.utime(moved[0], ns=(0, 0))
    assert prepare_two(moved, tmp_path / "out").train.fingerprint == made.train.fingerprint


def change_letter(texts: list[Path]) -> None:
    texts[1].write_bytes(texts[1].read_bytes().replace(b"4", b"5", 1))


def grow(texts: list[Path]) -> None:
    texts[0].write_bytes(texts[0].read_bytes() + b"More.\n")


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize(
    ("change", "named", "said"),
    [
        pytest.param(change_letter, {}, "two.txt has changed", id="a letter"),
        pytest.param(grow, {}, "one.txt has changed", id="a line more"),
        pytest.param(lambda texts: texts.pop(), {}, "there were 2 texts, there are 1", id="a text less"),
        pytest.param(lambda texts: texts.reverse(), {}, "text 1 was one.txt, is two.txt", id="another order"),
        pytest.param(None, {"held_out_percent": 1.0}, "held_out_percent was 40.0, is 1.0", id="held out"),
        pytest.param(None, {"shard_tokens": 9}, "shard_tokens was 20000, is 9", id="shards"),
        pytest.param(
            None, {"tokenizer": Tokenizer.gpt2(1)}, r"vocab_size was 257, is 258; tokenizer was \w+, is", id="tokenizer"
        ),
    ],
)
def test_what_changed_since_is_told_and_can_be_overwritten(
    change: Callable[[list[Path]], Any] | None,
    named: dict[str, Any],
    said: str,
    finished: bool,
    two_texts: list[Path],
    tmp_path: Path,
) -> None:
    texts = copies(two_texts, tmp_path / "texts")
    given: dict[str, Any] = {"tokenizer": BYTES, "held_out_percent": 40.0, "shard_tokens": 20_000}
    if finished:
        prepare_tokens(texts, folder=tmp_path / "out", **given)
    else:
        assert interrupted(
            writer.TokenWriter, "add", 4, lambda: prepare_tokens(texts, folder=tmp_path / "out", **given)
        )
    before = files_in(tmp_path / "out")
    if change:
        change(texts)
    given |= named
    with pytest.raises(TokenFilesError, match=rf"made otherwise \({said}.*start anew with --overwrite"):
        prepare_tokens(texts, folder=tmp_path / "out", **given)
    assert files_in(tmp_path / "out") == before
    made = prepare_tokens(texts, folder=tmp_path / "out", overwrite=True, **given)
    assert_equal(made, build_corpus(texts, given["tokenizer"], given["held_out_percent"]))


def test_files_of_which_nothing_is_known_are_not_written_over(two_texts: list[Path], tmp_path: Path) -> None:
    stranger = write(tmp_path / "out" / "train-00000.bin", b"mine")
    with pytest.raises(TokenFilesError, match=r"holds train-00000.bin, but no index.json"):
        prepare_two(two_texts, tmp_path / "out")
    assert files_in(tmp_path / "out") == {stranger.name: b"mine"}


def test_other_files_in_the_folder_stay(two_texts: list[Path], tmp_path: Path) -> None:
    others = [write(tmp_path / "out" / name, b"mine") for name in ("train.bin", "notes.txt", "train-00000.binary")]
    prepare_two(two_texts, tmp_path / "out")
    prepare_tokens(two_texts, BYTES, tmp_path / "out", overwrite=True)
    assert all(path.read_bytes() == b"mine" for path in others)


# --- no text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", r"bad\.txt is empty\.", id="empty"),
        pytest.param(b" \n\t\n", r"bad\.txt is empty\.", id="white"),
        pytest.param(b"text\0text", r"bad\.txt is not a text file \(it holds NUL bytes\)", id="NUL"),
        pytest.param("text".encode("utf-16"), r"bad\.txt is not a text file", id="utf-16"),
        pytest.param(b"word\n" * 99_999 + b"na\xefve", r"not UTF-8 \(byte 499997 is 0xef\); save it as", id="latin-1"),
        pytest.param(b"\n" * 9 + "naï".encode()[:-1], r"not UTF-8 \(byte 11 is 0xc3\)", id="cut short"),
    ],
)
def test_what_is_no_text_is_refused_as_in_a_corpus_and_nothing_is_written(
    data: bytes, said: str, two_texts: list[Path], tmp_path: Path
) -> None:
    bad = write(tmp_path / "bad.txt", data)
    for use in (lambda: prepare_two([*two_texts, bad], tmp_path / "out"), lambda: read_text(bad)):
        with pytest.raises(CorpusError, match=said):
            use()
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing_or_a_folder_is_named(two_texts: list[Path], tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"there is no file {path}\\."):
            prepare_two([*two_texts, path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_must_not_be_read_is_named(
    two_texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path, *_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*one\.txt'"):
        prepare_two(two_texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("nothing", [f"\n{END_OF_TEXT}\n \n", "\ufeff", "x"])
def test_texts_without_text_leave_nothing(nothing: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", nothing)
    with pytest.raises(CorpusError, match=r"a\.txt: no text is left to train on\."):
        prepare_tokens([path], BYTES, tmp_path / "out")
    with pytest.raises(CorpusError, match=r"a\.txt: no text is left to train on\."):
        build_corpus([path], BYTES)
    assert files_in(tmp_path / "out") == {}


def test_no_texts_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there are no text files"):
        prepare_tokens([], BYTES, tmp_path / "out")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"held_out_percent": 100.0}, "less than 100 percent, got 100.0"),
        ({"held_out_percent": -1.0}, "at least 0"),
        ({"held_out_percent": float("nan")}, "got nan"),
        ({"shard_tokens": 0}, "shard_tokens must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    named: dict[str, Any], said: str, two_texts: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        prepare_tokens(two_texts, BYTES, tmp_path / "out", **named)


def test_a_line_without_end_is_refused_by_its_number_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        file.write(b"short\n" * 3)
        for _ in range(90):
            file.write(b"x" * 10**6)
    tracemalloc.start()
    with pytest.raises(CorpusError, match=r"long\.txt, line 4, is longer than 67,108,864 bytes; break it into lines"):
        check_text(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < text.LONGEST_LINE + 4 * text.BLOCK_BYTES


@pytest.mark.parametrize("block", [7, 64, 499])
@pytest.mark.parametrize("end", [b"", b"\n", b"\nmore\n"])
def test_a_line_may_be_as_long_as_the_limit(
    end: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    monkeypatch.setattr(text, "LONGEST_LINE", 500)
    check_text(write(tmp_path / "a.txt", b"a\n" + b"x" * 500 + end))
    with pytest.raises(CorpusError, match=r"a\.txt, line 2, is longer than 500 bytes"):
        check_text(write(tmp_path / "a.txt", b"a\n" + b"x" * 501 + end))


@pytest.mark.parametrize("data", [" " * 300 + "\n" + " \n" * 50 + "x", "x" + "\n" * 300 + "x"])
def test_endless_white_space_is_refused(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 50)
    monkeypatch.setattr(text, "MOST_BLANK", 200)
    path = write(tmp_path / "a.txt", data)
    with pytest.raises(CorpusError, match=r"a\.txt has more than 200 characters of white space in a row after byte"):
        prepare_tokens([path], BYTES, tmp_path / "out")
    assert files_in(tmp_path / "out") == {}


def test_what_the_tokenizer_cannot_take_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "word " + " " * 10**6 + "x\n")
    with pytest.raises(CorpusError, match=r"a\.txt cannot be tokenised before byte 1,000,007 .* take very long runs"):
        prepare_tokens([path], BYTES, tmp_path / "out")
    assert files_in(tmp_path / "out") == {}


def test_a_text_that_changes_while_it_is_read_leaves_nothing(
    two_texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = copies(two_texts, tmp_path / "texts")
    add = writer.TokenWriter.add

    def meanwhile(self: writer.TokenWriter, *given: Any) -> None:
        grow(texts[1:])
        add(self, *given)

    monkeypatch.setattr(writer.TokenWriter, "add", meanwhile)
    with pytest.raises(CorpusError, match=r"two\.txt was changed while it was read"):
        prepare_two(texts, tmp_path / "out")
    assert files_in(tmp_path / "out") == {}


# --- tokens in several files, read as one


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shards, np.ndarray]:
    """Five files, and the same tokens in one array."""
    folder = tmp_path_factory.mktemp("shards")
    parts = [np.random.default_rng(n).integers(300, size=n, dtype=np.uint16) for n in (1, 7, 1, 500, 90)]
    entries = [
        TokenFile(write(folder / f"train-{n:05}.bin", p.tobytes()).name, len(p), "") for n, p in enumerate(parts)
    ]
    return Shards(folder, entries, 300), np.concatenate(parts)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(start=st.none() | st.integers(-700, 700), stop=st.none() | st.integers(-700, 700))
def test_any_stretch_is_that_of_one_array(
    start: int | None, stop: int | None, shards: tuple[Shards, np.ndarray]
) -> None:
    found = shards[0][start:stop]
    assert np.array_equal(found, shards[1][start:stop])
    assert found.dtype == np.uint16


def test_tokens_cannot_be_written_to_or_read_in_steps(shards: tuple[Shards, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        shards[0][10:20][0] = 1
    with pytest.raises(ValueError, match="not in steps of 2"):
        shards[0][::2]


def test_counts_are_those_of_one_array(shards: tuple[Shards, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.bincount(shards[1], minlength=400)
    assert np.array_equal(shards[0].counts(400), expected)
    monkeypatch.setattr("minipeft.token_files.shards.COUNTED_AT_ONCE", 37)
    assert np.array_equal(shards[0].counts(400), expected)
    with pytest.raises(TokenFilesError, match="but the vocabulary has 200 tokens"):
        shards[0].counts(200)


def test_the_fingerprint_tells_tokens_apart(two_texts: list[Path], tmp_path: Path) -> None:
    made = prepare_two(two_texts, tmp_path / "one").train.fingerprint
    assert prepare_two(two_texts, tmp_path / "two").train.fingerprint == made
    others = [
        prepare_tokens(two_texts, BYTES, tmp_path / "other", 60.0, 20_000),
        prepare_tokens(two_texts[::-1], BYTES, tmp_path / "turned", 40.0, 20_000),
    ]
    assert made not in {other.train.fingerprint for other in others}


# --- what is damaged


@pytest.fixture
def prepared(two_texts: list[Path], tmp_path: Path) -> Path:
    return prepare_two(two_texts, tmp_path / "out").folder


def edit_index(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX_FILE).read_text())
        (folder / INDEX_FILE).write_text(json.dumps({**index, **changes}))

    return edit


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 2)


def put(name: str, place: int, token: int) -> Callable[[Path], None]:
    def write_token(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.seek(2 * place)
            file.write(token.to_bytes(2, "little"))

    return write_token


DAMAGE = {
    "no index": (lambda folder: (folder / INDEX_FILE).unlink(), r"there is no file .*index\.json; make it with"),
    "no JSON": (lambda folder: (folder / INDEX_FILE).write_text("{"), r"index\.json is damaged \(it is no JSON object"),
    "a list": (lambda folder: (folder / INDEX_FILE).write_text("[]"), r"index\.json is damaged \(it is no JSON object"),
    "another format": (edit_index(format="x 2"), r"index\.json has the format 'x 2', not 'minipeft tokens 1'"),
    "another type": (edit_index(dtype="uint32"), r"index\.json is damaged"),
    "no vocabulary": (edit_index(vocab_size=None), r"index\.json is damaged"),
    "no shards": (edit_index(train=[]), r"index\.json is damaged"),
    "shards of nothing": (edit_index(train=[{}]), r"index\.json is damaged"),
    "a file elsewhere": (
        edit_index(train=[{"file": "../train-00000.bin", "tokens": 1, "sha256": ""}]),
        r"index\.json is damaged",
    ),
    "a missing shard": (lambda folder: (folder / "train-00002.bin").unlink(), r"train-00002\.bin is missing; bring it"),
    "a shard cut short": (cut("train-00001.bin"), r"train-00001\.bin has [\d,]+ bytes, not [\d,]+; bring it back"),
    "held out cut short": (cut("held_out-one.bin"), r"held_out-one\.bin has [\d,]+ bytes, not"),
    "an id too large": (
        put("train-00000.bin", 3, 257),
        r"train-00000\.bin holds the id 257, but the vocabulary has 257",
    ),
    "an id too large held out": (put("held_out-two.bin", 0, 9999), r"held_out-two\.bin holds the id 9,999"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_files_are_refused_with_what_to_do(what: str, prepared: Path) -> None:
    damage, said = DAMAGE[what]
    damage(prepared)
    with pytest.raises((TokenFilesError, FileNotFoundError), match=said) as refused:
        TokenFiles.open(prepared)
    assert "minipeft prepare" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_damage_that_is_not_seen_at_once_is_found_by_reading_everything(two_texts: list[Path], tmp_path: Path) -> None:
    for token, said in ((300, "is damaged"), (7, "is damaged")):
        made = prepare_tokens(two_texts * 9, BYTES, tmp_path / str(token), 1.0)
        made.verify()
        assert len(made.train) > 8 * 16 * SAMPLE_TOKENS
        put("train-00000.bin", SAMPLE_TOKENS + 100, token)(made.folder)
        with pytest.raises(TokenFilesError, match=rf"train-00000\.bin {said} \(its SHA-256 differs\)"):
            TokenFiles.open(made.folder).verify()


def test_unfinished_tokens_are_not_opened(two_texts: list[Path], tmp_path: Path) -> None:
    assert interrupted(writer.TokenWriter, "add", 4, lambda: prepare_two(two_texts, tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match="are unfinished; the `minipeft prepare` that began them goes on"):
        TokenFiles.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / JOURNAL_FILE).write_text("{"), r"unfinished\.json is damaged"),
        (lambda folder: (folder / JOURNAL_FILE).write_text('{"format": "x"}'), r"unfinished\.json has the format 'x'"),
        (
            lambda folder: (folder / "train-00000.bin").unlink(),
            r"train-00000\.bin.* is not as long as unfinished\.json",
        ),
        (
            lambda folder: cut("train-00001.bin.part")(folder),
            r"train-00001\.bin\.part is not as long as unfinished\.json",
        ),
    ],
    ids=["no JSON", "another format", "no shard", "a part cut short"],
)
def test_what_an_interrupted_call_left_is_not_trusted_blindly(
    damage: Callable[[Path], Any], said: str, two_texts: list[Path], tmp_path: Path
) -> None:
    assert interrupted(writer.TokenWriter, "add", 4, lambda: prepare_two(two_texts, tmp_path / "out"))
    damage(tmp_path / "out")
    with pytest.raises(TokenFilesError, match=said + r".*make the tokens anew with `minipeft prepare` and --overwrite"):
        prepare_two(two_texts, tmp_path / "out")
    assert_equal(
        prepare_tokens(two_texts, BYTES, tmp_path / "out", 40.0, overwrite=True), build_corpus(two_texts, BYTES, 40.0)
    )
