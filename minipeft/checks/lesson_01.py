"""Lesson 01: one step of byte-pair encoding."""

from collections.abc import Callable
from itertools import pairwise

from minipeft.checks.exercise import Exercise, require
from minipeft.tokenizer import WORD_PATTERN, Tokenizer

Pieces = list[bytes]

SENTENCES = (
    "The quick brown fox jumps over the lazy dog",
    "banana bandana banana",
    "Tokenisation isn't magic; it's counting.",
    "naïve café — 12,345 €",
    "aaaa aaa aa a",
    "Wörter, слова, 言葉 and 🤗 are bytes, too.",
)


def judge(merge: Callable[[Pieces, tuple[bytes, bytes]], Pieces]) -> None:
    """Small cases with one likely mistake each; then 200 texts, merged word by word, against tiktoken."""
    pieces = [b"b", b"a", b"n", b"a", b"n", b"a"]
    given = list(pieces)
    found = merge(given, (b"a", b"n"))
    require(isinstance(found, list), f"merge must return a list of pieces, but returned a {type(found).__name__}.")
    require(given == pieces, "merge changed the list that it was given; build a new one.")
    require(
        found != [b"b", b"an", b"a", b"n", b"a"],
        "merge joined only the first a + n of b a n a n a; every pair in the word is to be joined.",
    )
    require(
        found == [b"b", b"an", b"an", b"a"],
        f"in b a n a n a the pair (a, n) gives b an an a, but merge gave {_shown(found)}.",
    )
    found = merge([b"a", b"a", b"a"], (b"a", b"a"))
    require(
        found == [b"aa", b"a"],
        f"a a a with the pair (a, a) gives aa a: a piece that was joined is used up. merge gave {_shown(found)}.",
    )
    require(merge([b"x"], (b"a", b"n")) == [b"x"], "a word of one piece has no pair and stays as it is.")
    require(merge([b"a", b"n"], (b"n", b"a")) == [b"a", b"n"], "(n, a) is not (a, n): the order of a pair counts.")
    _against_tiktoken(merge)


def _against_tiktoken(merge: Callable[[Pieces, tuple[bytes, bytes]], Pieces]) -> None:
    """The ids that the learner's step gives, the best-ranked pair merged first, and those of the library."""
    import regex

    tokenizer = Tokenizer.gpt2(merges=2000)
    ranks = {tokenizer.token_bytes(token): token for token in range(tokenizer.eot)}
    texts = [" ".join(SENTENCES[n % 6].split()[: 1 + n % 7]) + "!" * (n % 3) + str(n) for n in range(200)]
    for text in texts:
        ids: list[int] = []
        for word in regex.findall(WORD_PATTERN, text):
            pieces = [bytes([byte]) for byte in word.encode()]
            while pairs := [pair for pair in pairwise(pieces) if pair[0] + pair[1] in ranks]:
                best = min(pairs, key=lambda pair: ranks[pair[0] + pair[1]])
                before, pieces = pieces, merge(pieces, best)
                require(len(pieces) < len(before), f"merge left {_shown(before)} as it was, though {best} is in it.")
            ids += [ranks[piece] for piece in pieces]
        expected = tokenizer.encode(text)
        require(ids == expected, f"{text!r} becomes {ids} with your merge, but tiktoken says {expected}.")


def _shown(pieces: object) -> str:
    if not isinstance(pieces, list):
        return repr(pieces)
    return " ".join(piece.decode(errors="replace") if isinstance(piece, bytes) else repr(piece) for piece in pieces)


EXERCISE = Exercise(
    name="01",
    function="merge",
    judge=judge,
    hints=(
        "Walk through the pieces with an index that you move yourself, and collect the result in a new list.",
        "At each place compare pieces[i] and pieces[i + 1] with the pair. If both match, append their sum.",
        "After a match go on two places, else one; mind the last piece, which has no neighbour on the right.",
    ),
)
