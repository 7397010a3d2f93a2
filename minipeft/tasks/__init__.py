"""The tasks, and the tables of them."""

from collections.abc import Callable
from functools import partial

from minipeft.tasks.base import Batch, Encoder, Example, Task, collate
from minipeft.tasks.e2e import e2e
from minipeft.tasks.files import DataError, task_from_file
from minipeft.tasks.sentiment import DOMAINS, sentiment
from minipeft.tasks.writing import LABELS, STYLES, opinions, shakespeare, style

TASKS: dict[str, Callable[[], Task]] = {domain: partial(sentiment, domain) for domain in DOMAINS}
"""Those with labels, which ship."""
WRITING: dict[str, Callable[[], Task]] = {
    **{STYLES[domain]: partial(style, domain) for domain in STYLES},
    **{label: partial(opinions, label) for label in LABELS},
    "shakespeare": shakespeare,
    "e2e": e2e,
}
"""Those whose target is text; the last two are brought, or found under MINIPEFT_DATA."""


def open_task(name: str) -> Task:
    """The task of this name. Raises ValueError if there is none, FileNotFoundError if its data are not here."""
    known = {**TASKS, **WRITING}
    if name not in known:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(known)}, or bring your own with --data.")
    return known[name]()


__all__ = [
    "TASKS",
    "WRITING",
    "Batch",
    "DataError",
    "Encoder",
    "Example",
    "Task",
    "collate",
    "open_task",
    "task_from_file",
]
