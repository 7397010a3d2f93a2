"""Perplexity of a long text, read through a window that moves on by a stride."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minipeft.perplexity import perplexity_of
from minipeft.zero_shot.scoring import Row, Subject, batches, score

WIKITEXT_NUMBERS = re.compile(r" @([-,.])@ ")
WIKITEXT_BEFORE = re.compile(r" ([.,:;?!%)\]]|'(?:s|t|re|ve|m|ll|d)\b|n't\b)")
WIKITEXT_AFTER = re.compile(r"([(\[$£€#]) ")
WIKITEXT_QUOTED = re.compile(r'" ([^"\n]*?) "')


@dataclass(frozen=True)
class TextScore:
    """The cost of a text, and what it may be divided by.

    A word is what stands between white space; the end of a line counts as one. For WikiText these are the words of the
    original file, 245,569 in its test set: the unit of published perplexities.
    """

    nats: float
    tokens: int
    words: int
    utf8_bytes: int

    def values(self) -> dict[str, float]:
        """The measures by the names that the table of reference values uses."""
        return {
            "perplexity per token": perplexity_of(self.nats / self.tokens),
            "perplexity per word": perplexity_of(self.nats / self.words),
            "bits per byte": self.nats / math.log(2) / self.utf8_bytes,
        }


def windows(ids: Sequence[int], first: int, room: int, stride: int) -> list[Row]:
    """Rows that score every id exactly once: `stride` new ones each, after as many earlier ones as there is room for.

    `first` is read before the text and not scored. Raises ValueError if the stride is not in 1…room.
    """
    if not 1 <= stride <= room:
        raise ValueError(f"stride is {stride}; it must be between 1 and the {room} positions that there are.")
    stream = [first, *ids]
    rows = []
    for begin in range(1, len(stream), stride):
        end = min(begin + stride, len(stream))
        start = max(0, end - room - 1)  # the last id of a row is only a target: room positions are read
        rows.append(Row(stream[start:end], begin - start))
    return rows


def score_text(
    subject: Subject,
    text: str,
    original: str,
    stride: int,
    batch_size: int,
    bar: Callable[[int], Callable[[str], None]] = lambda total: lambda note: None,
) -> TextScore:
    """The cost of `text`; words are counted in `original`, of which it may be a detokenised form.

    Raises ValueError if there is no text, or as `windows` does.
    """
    ids = subject.tokenizer.encode(text)
    if not ids:
        raise ValueError("there is no text to measure.")
    rows = windows(ids, subject.tokenizer.eot, subject.room, stride)
    scored = score(subject, rows, batch_size, bar(batches(rows, batch_size)))
    nats = sum(float(row.nats.double().sum()) for row in scored)
    return TextScore(nats, len(ids), len(original.split()) + original.count("\n"), len(text.encode()))


def detokenised(wikitext: str) -> str:
    """WikiText as a person would have typed it: no spaces before commas, no `@-@` for a hyphen. `<unk>` stays."""
    text = WIKITEXT_NUMBERS.sub(r"\1", wikitext)
    text = WIKITEXT_QUOTED.sub(r'"\1"', text)
    text = WIKITEXT_AFTER.sub(r"\1", WIKITEXT_BEFORE.sub(r"\1", text))
    return re.sub(r"^ | $", "", text, flags=re.MULTILINE)
