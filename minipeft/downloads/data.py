"""Data files that a task brings from a public address, or reads where somebody has put them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minipeft.downloads.failures import Advice
from minipeft.downloads.store import fetch
from minipeft.downloads.transfer import Remote

GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Source:
    """A data file: its place under the folder that MINIPEFT_DATA names, its public address, and what it must be.

    Without a known SHA-256 it is never brought, only read where somebody has put it.
    """

    place: str
    address: str
    sha256: str | None = None
    size: int = 0

    def find(self, task: str, again: str = "the same command again", say: Callable[[str], None] = print) -> Path:
        """The file; `again` is the command that wanted it.

        Raises FileNotFoundError with what to do, and what `fetch` raises.
        """
        folder = os.environ.get("MINIPEFT_DATA")
        if folder and (Path(folder) / self.place).is_file():
            return Path(folder) / self.place
        if self.sha256 is None:
            raise FileNotFoundError(f"{task}'s data are not here: get {self.address}, then type: {again} --data FILE")
        advice = Advice(again, f"put {self.place} into the folder that MINIPEFT_DATA names", "with MINIPEFT_CACHE")
        cache = Path(os.environ.get("MINIPEFT_CACHE") or Path.home() / ".cache" / "minipeft")
        remote = Remote(self.address, self.sha256, self.size)
        return fetch(task, remote, cache / self.place, advice, say)


TINYSHAKESPEARE = Source(
    "tinyshakespeare/input.txt",
    f"{GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    1_115_394,
)
