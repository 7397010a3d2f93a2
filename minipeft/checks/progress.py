"""What a learner has done so far, in one small file of their own.

It is the file that MINIPEFT_PROGRESS names, else ~/.config/minipeft/progress.json.
"""

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from minipeft.files import CheckpointError, read_json, write_json


def path() -> Path:
    """Where it is kept."""
    named = os.environ.get("MINIPEFT_PROGRESS")
    return Path(named) if named else Path.home() / ".config" / "minipeft" / "progress.json"


def read() -> dict[str, dict[str, Any]]:
    """By exercise: `passed` (when first), `tries`, `hints`. Nothing if the file is missing or damaged."""
    try:
        found = read_json(path())
    except (FileNotFoundError, CheckpointError):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}


def record(name: str, passed: bool) -> None:
    """One more try at an exercise."""
    entry = read().get(name, {})
    entry["tries"] = _count(entry, "tries") + 1
    if passed and not entry.get("passed"):
        entry["passed"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _write(name, entry)


def record_hint(name: str, seen: int) -> None:
    """How many hints of an exercise were shown."""
    _write(name, {**read().get(name, {}), "hints": seen})


def hints_seen(name: str) -> int:
    """How many hints of an exercise were shown so far."""
    return _count(read().get(name, {}), "hints")


def passed(name: str) -> bool:
    """Whether the exercise was ever solved."""
    return bool(read().get(name, {}).get("passed"))


def _count(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key, 0)
    return value if isinstance(value, int) else 0


def _write(name: str, entry: dict[str, Any]) -> None:
    """Progress is a kindness: where it cannot be kept, the lesson goes on without."""
    try:
        write_json(path(), {**read(), name: entry})
    except OSError:
        return
