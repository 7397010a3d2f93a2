"""The corpus: files are read whole or refused, the held-out part stays out, leaks are found."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.corpus import (
    PIECE_CHARACTERS,
    SHORTEST_LEAK,
    Corpus,
    CorpusError,
    HeldOutTexts,
    WordBlocklist,
    build_corpus,
    documents,
    is_held_out,
    pieces,
    read_text,
)
from minipeft.tokenizer import END_OF_TEXT, Tokenizer

BYTES = Tokenizer.gpt2(merges=0)
QUOTE = "The quick brown fox, they say, jumps over 13 lazy dogs."


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def numbered_lines(name: str, count: int) -> str:
    """Text of which every line occurs once."""
    return "".join(f"{name} has a line that is number {number}\n" for number in range(count))


def text_of(tokens: np.ndarray) -> str:
    return BYTES.decode(tokens.tolist())


def test_text_is_read_as_utf8(tmp_path: Path) -> None:
    text = "naïve 🤗\nand a second line\n"
    assert read_text(write(tmp_path / "a.txt", text)) == text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"there is no file {path}"):
            read_text(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", r"a\.txt is empty", id="empty"),
        pytest.param(b" \n\t\n", r"a\.txt is empty", id="white"),
        pytest.param(b"text\0text", r"a\.txt is not a text file \(it holds NUL bytes\)", id="NUL"),
        pytest.param("text".encode("utf-16"), r"a\.txt is not a text file", id="utf-16"),
        pytest.param(
            b"na\xefve", r"a\.txt is not UTF-8 \(byte 2 is 0xef\); save it as UTF-8 and try again", id="latin-1"
        ),
        pytest.param("naï".encode()[:-1], r"a\.txt is not UTF-8 \(byte 2 is 0xc3\)", id="cut short"),
    ],
)
def test_what_is_no_text_is_refused_by_name(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=said):
        read_text(write(tmp_path / "a.txt", data))


def test_documents_stand_between_lines_of_end_of_text() -> None:
    text = f"{END_OF_TEXT}\none\n\nstill one\n{END_OF_TEXT}\n\n{END_OF_TEXT}\n  two\n{END_OF_TEXT}"
    assert list(documents(text)) == ["one\n\nstill one", "  two"]


def test_an_end_of_text_inside_a_line_ends_no_document() -> None:
    text = f"The mark {END_OF_TEXT} ends a text.\n {END_OF_TEXT}"
    assert list(documents(text)) == [text]


def test_documents_are_found_in_files_written_on_windows() -> None:
    found = list(documents(f"one\r\n{END_OF_TEXT}\r\ntwo\r\n"))
    assert [document.strip() for document in found] == ["one", "two"]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(document=st.text(st.sampled_from("ab \n\r\u2028\x0c🤗")), size=st.integers(1, 9))
def test_pieces_join_back_to_their_document(document: str, size: int) -> None:
    assert "".join(pieces(document, size)) == document


def test_pieces_are_cut_between_lines_at_about_their_size() -> None:
    document = numbered_lines("it", 2000)
    found = list(pieces(document))
    longest_line = max(map(len, document.splitlines(keepends=True)))
    assert all(piece.endswith("\n") for piece in found)
    assert all(PIECE_CHARACTERS <= len(piece) < PIECE_CHARACTERS + longest_line for piece in found[:-1])


@pytest.mark.parametrize(
    "paragraph",
    [
        QUOTE,
        QUOTE.upper(),
        "  the quick\nbrown fox they\tsay — jumps over (13) lazy dogs",
        f"Somebody wrote: “{QUOTE}” And went away.",
        f"{QUOTE[:30]} {QUOTE}",
    ],
)
def test_a_held_out_text_is_found_whatever_its_spacing_punctuation_and_case(paragraph: str) -> None:
    found = HeldOutTexts(["Something else that is also long enough.", QUOTE]).find_in(paragraph)
    assert found == "thequickbrownfoxtheysayjumpsover13lazydogs"


@pytest.mark.parametrize("paragraph", ["", "Nothing of it.", QUOTE[:-6], QUOTE[1:], QUOTE.replace("13", "14")])
def test_what_is_no_held_out_text_is_not_flagged(paragraph: str) -> None:
    assert HeldOutTexts([QUOTE, "", "!?"]).find_in(paragraph) is None


def test_a_short_common_text_counts_only_as_a_whole_paragraph() -> None:
    texts = HeldOutTexts(["A good film!"])
    assert texts.find_in("It was a good film, on the whole.") is None
    assert texts.find_in("a good film") == "agoodfilm"


def test_a_text_counts_inside_others_from_the_shortest_leak_on() -> None:
    for length, found in ((SHORTEST_LEAK - 1, False), (SHORTEST_LEAK, True)):
        text = "abcdefghijklmnopqrstuvwxyz"[:length]
        for paragraph in (f"0 {text} 0", f"0 {text}", f"{text} 0"):
            assert (HeldOutTexts([text]).find_in(paragraph) is not None) == found


def test_of_two_texts_with_one_beginning_both_are_found() -> None:
    longer = QUOTE + " Twice."
    texts = HeldOutTexts([QUOTE.replace("dogs", "cats"), longer])
    assert len(texts) == 2
    assert texts.find_in(f"He said: {QUOTE}") is None
    assert texts.find_in(f"He said: {longer}") is not None


def test_blocked_words_are_found_whole_and_in_any_case(tmp_path: Path) -> None:
    hashes = [hashlib.sha256(word.encode()).hexdigest() for word in ("rude", "uncouth")]
    listed = WordBlocklist.from_file(write(tmp_path / "list", "# words\n" + "\n".join(hashes) + "\n\n"))
    assert listed.find_in("How RUDE!")
    assert listed.find_in("so uncouth, so")
    assert not listed.find_in("a rudely crude prude")
    assert not listed.find_in(f"# words {hashes[0]}")


def test_the_share_held_out_is_what_was_asked_for() -> None:
    n, percent = 4000, 10.0
    found = sum(is_held_out(f"piece {number}", percent) for number in range(n))
    # A binomial count: its standard deviation is √(n·p·(1−p)) = 19; this is four of them.
    assert abs(found - n * percent / 100) < 76
    assert not any(is_held_out(f"piece {number}", 0.0) for number in range(200))
    assert all(is_held_out(f"piece {number}", 100.0) for number in range(200))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of about 25 pieces each; the first has two documents."""
    folder = tmp_path_factory.mktemp("sources")
    first = numbered_lines("one", 2600) + f"{END_OF_TEXT}\n" + numbered_lines("two", 2600)
    return [write(folder / "first.txt", first), write(folder / "second.txt", numbered_lines("three", 5000))]


@pytest.fixture(scope="module")
def corpus(sources: list[Path]) -> Corpus:
    return build_corpus(sources, BYTES, held_out_percent=30.0)


def test_no_line_is_both_trained_on_and_held_out(sources: list[Path], corpus: Corpus) -> None:
    def lines(tokens: np.ndarray) -> set[str]:
        return set(text_of(tokens).replace(END_OF_TEXT, "\n").split("\n")) - {""}

    train = lines(corpus.train)
    held_out = {name: lines(tokens) for name, tokens in corpus.held_out.items()}
    assert held_out.keys() == {"first", "second"}
    for name, path in zip(("first", "second"), sources, strict=True):
        everything = set(path.read_text().split("\n")) - {"", END_OF_TEXT}
        assert held_out[name] <= everything
        assert not held_out[name] & train
        assert held_out[name] | (train & everything) == everything
        assert 0.05 < len(held_out[name]) / len(everything) < 0.6  # 25 pieces at 30 %: more than three deviations off


def test_held_out_pieces_are_parted_by_the_end_of_text(sources: list[Path], corpus: Corpus) -> None:
    parts = text_of(corpus.held_out["second"]).split(END_OF_TEXT)
    everything = sources[1].read_text()
    assert parts.pop() == ""
    assert len(parts) > 2
    assert all(part in everything and len(part) < 2 * PIECE_CHARACTERS for part in parts)


def test_documents_are_joined_by_the_end_of_text(sources: list[Path]) -> None:
    everything = build_corpus(sources, BYTES, held_out_percent=0.0)
    assert everything.held_out == {}
    three = [text.strip("\n") for text in sources[0].read_text().split(f"{END_OF_TEXT}\n")]
    three.append(sources[1].read_text().strip("\n"))
    assert text_of(everything.train) == "".join(text + END_OF_TEXT for text in three)
    assert int((everything.train == BYTES.eot).sum()) == 3


def test_the_same_files_give_the_same_corpus(sources: list[Path], corpus: Corpus) -> None:
    again = build_corpus(sources, Tokenizer.gpt2(merges=0), held_out_percent=30.0)
    assert np.array_equal(again.train, corpus.train)
    assert again.held_out.keys() == corpus.held_out.keys()
    for name, tokens in corpus.held_out.items():
        assert np.array_equal(again.held_out[name], tokens)


def test_what_is_held_out_does_not_depend_on_other_files_or_their_order(sources: list[Path], corpus: Corpus) -> None:
    alone = build_corpus(sources[1:], BYTES, held_out_percent=30.0)
    turned = build_corpus(sources[::-1], BYTES, held_out_percent=30.0)
    assert np.array_equal(alone.held_out["second"], corpus.held_out["second"])
    assert np.array_equal(turned.held_out["first"], corpus.held_out["first"])


def test_files_of_one_name_in_two_folders_are_both_held_out(tmp_path: Path) -> None:
    paths = [write(tmp_path / name / "input.txt", numbered_lines(name, 2600)) for name in ("one", "two")]

    def held_out(files: list[Path]) -> int:
        return sum(map(len, build_corpus(files, BYTES, held_out_percent=50.0).held_out.values()))

    apart = [held_out([path]) for path in paths]
    assert all(apart)
    assert held_out(paths) == sum(apart)


def test_ids_are_kept_in_the_smallest_type_that_holds_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", QUOTE)
    for merges in (0, 50_000):
        assert build_corpus([path], Tokenizer.gpt2(merges), held_out_percent=0.0).train.dtype == np.uint16


def test_one_bad_file_refuses_the_whole_corpus(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"bad\.txt is not UTF-8"):
        build_corpus([*sources, write(tmp_path / "bad.txt", b"\xff")], BYTES)
    with pytest.raises(FileNotFoundError, match="absent"):
        build_corpus([*sources, tmp_path / "absent.txt"], BYTES)
