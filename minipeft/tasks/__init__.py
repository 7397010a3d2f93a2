"""The tasks, and the one table of those that ship."""

from collections.abc import Callable
from functools import partial

from minipeft.tasks.base import Batch, Encoder, Example, Task, collate
from minipeft.tasks.files import DataError, task_from_file
from minipeft.tasks.sentiment import DOMAINS, sentiment

TASKS: dict[str, Callable[[], Task]] = {domain: partial(sentiment, domain) for domain in DOMAINS}

__all__ = ["TASKS", "Batch", "DataError", "Encoder", "Example", "Task", "collate", "task_from_file"]
