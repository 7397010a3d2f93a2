"""Sentiment of movie reviews, product reviews, tweets and news, rated by people; shipped with the package.

Source: Hutto & Gilbert 2014 (ICWSM), about twenty raters a text, from -4 (very negative) to 4 (very positive).
"""

import gzip
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from minipeft.tasks.base import SPLITS, Example, Task

DOMAINS = ("movie", "product", "tweet", "news")
CLEAR = 1.0
"""A text has a label where its mean rating is at least this far from zero."""

JOINT = " I thought it was"
WORDS = {"negative": " bad", "positive": " good"}

HARD_PROMPTS = (
    "{text} It was",
    "{text} I thought it was",
    "{text} I think it is",
    "{text} In short, it was",
    "{text} All in all, it was",
    "{text} It is",
    "{text} That was",
    "Review: {text} Sentiment:",
    "What do you think of it? {text} So it was",
    "{text} Was it bad or wonderful? It was",
)
"""Ten ways in which a person might ask; the best on dev is the one to compare with."""

_FOLDER = Path(__file__).parent.parent / "assets" / "sentiment"


@dataclass(frozen=True)
class RatedText:
    """One text, the mean of its ratings (-4…4), and the split that its hash puts it in."""

    split: str
    rating: float
    text: str


@lru_cache(maxsize=len(DOMAINS))
def rated_texts(domain: str) -> tuple[RatedText, ...]:
    """Every rated text of a domain, clear or not, duplicates removed."""
    lines = gzip.decompress((_FOLDER / f"{domain}.tsv.gz").read_bytes()).decode("utf-8").splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return tuple(RatedText(split, float(rating), text) for split, rating, text in rows)


def sentiment(domain: str) -> Task:
    """Positive or negative? The clearly rated texts of one domain. Raises KeyError if there is no such domain."""
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for number, row in enumerate(rated_texts(domain), start=1):
        if abs(row.rating) >= CLEAR:
            label = "positive" if row.rating > 0 else "negative"
            splits[row.split].append(Example(row.text, label, f"text {number} of task {domain}"))
    return Task(
        name=domain,
        splits={split: tuple(examples) for split, examples in splits.items()},
        labels=("negative", "positive"),
        words=WORDS,
        joint=JOINT,
        hard_prompts=HARD_PROMPTS,
    )
