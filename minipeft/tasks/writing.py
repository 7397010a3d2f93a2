"""Texts of one kind, to learn to write more of them: there is nothing to read, and the loss is what counts."""

from minipeft.downloads.data import TINYSHAKESPEARE
from minipeft.tasks.base import SPLITS, Example, Task
from minipeft.tasks.files import task_from_file
from minipeft.tasks.sentiment import rated_texts, sentiment

STYLES = {"tweet": "tweets", "news": "headlines"}
LABELS = ("positive", "negative")


def style(domain: str) -> Task:
    """All texts of a domain of `rated_texts`, whatever their rating."""
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for number, row in enumerate(rated_texts(domain), start=1):
        splits[row.split].append(Example("", row.text, f"text {number} of {domain}"))
    return Task(name=STYLES[domain], splits={split: tuple(examples) for split, examples in splits.items()})


def opinions(label: str) -> Task:
    """The movie reviews that people rated so."""
    splits = {
        split: tuple(Example("", row.text, row.where) for row in rows if row.target == label)
        for split, rows in sentiment("movie").splits.items()
    }
    return Task(name=label, splits=splits)


def shakespeare() -> Task:
    """Pieces of tinyshakespeare, of about 128 tokens. Raises FileNotFoundError if it is not here and cannot be had."""
    path = TINYSHAKESPEARE.find("shakespeare")
    return Task(name="shakespeare", splits=task_from_file(path, None, None).splits)
