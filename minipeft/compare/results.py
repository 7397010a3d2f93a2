"""What a study has found so far: one JSON line for each run, appended as it ends, and one that closes each sweep."""

import base64
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Bool
from torch import Tensor

from minipeft.compare.study import Group, Part, Run, Study, StudyError

RESULTS_FILE = "results.jsonl"
Row = dict[str, Any]


class Results:
    """The rows of a file. A last line that was cut off while it was written does not count; other damage is refused."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: dict[str, Row] = {}
        self.closed: dict[str, Row] = {}
        """By part: which trials dev chose, written before a test example was read."""
        for row in _read(self.path):
            self._take(row)

    def append(self, row: Row) -> None:
        """Keep a row, on disk before anything else happens."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _end_with_whole_line(self.path)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(row)

    def of(self, study: Study, part: Part) -> Iterator[tuple[Run, Row]]:
        """The runs of a part, sweep and finals, that have a row found by the rules that the study has now."""
        for run in (*study.sweep(part), *study.finals(part, self.choices(study, part))):
            if (key := study.key(run)) in self.rows:
                yield run, self.rows[key]

    def missing(self, study: Study, part: Part) -> int:
        """How many runs of a part have no row; before its choice is made, every one that is to see test."""
        sweep = sum(study.key(run) not in self.rows for run in study.sweep(part))
        if not self.is_closed(study, part):
            return sweep + sum(len(study.seeds_of(part, task, name)) for task, _, name, _, _ in study.tested(part))
        finals = study.finals(part, self.choices(study, part))
        return sweep + sum(study.key(run) not in self.rows for run in finals)

    def is_closed(self, study: Study, part: Part) -> bool:
        """Whether the part's choice was made, of just the trials that the study has now."""
        part = study.part(part.chosen_by) if part.chosen_by else part
        return part.name in self.closed and self.closed[part.name]["sweep"] == _sweep_of(study, part)

    def close(self, study: Study, part: Part) -> None:
        """Choose on dev, and write down what was chosen. Raises StudyError while a run of the sweep is missing."""
        sweep = _sweep_of(study, part)
        if missing := [key for key in sweep if key not in self.rows]:
            raise StudyError(f"part {part.name}: {len(missing)} runs of the sweep are missing, so it cannot be closed.")
        best: dict[Group, tuple[int, float]] = {}
        for run in study.sweep(part):
            dev = self.rows[study.key(run)]["dev"]
            if dev is not None and (run.group not in best or dev > best[run.group][1]):
                best[run.group] = run.trial, dev  # the trial's place in the study as it is now
        chosen = [{"group": list(group), "trial": trial, "dev": dev} for group, (trial, dev) in best.items()]
        self.append({"closed": part.name, "sweep": sweep, "chosen": chosen})

    def choices(self, study: Study, part: Part) -> dict[Group, int]:
        """The trial that dev chose for each group; none before the sweep is closed."""
        if not self.is_closed(study, part):
            return {}
        row = self.closed[part.chosen_by or part.name]
        return {tuple(one["group"]): one["trial"] for one in row["chosen"]}

    def _take(self, row: Row) -> None:
        if "closed" in row:
            self.closed[row["closed"]] = row
        else:
            self.rows[row["key"]] = row


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else runs a study in this folder meanwhile. Raises StudyError if somebody does."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise StudyError(
            f"another minipeft compare is at work in {folder}; wait for it, or take another --out."
        ) from None


def number_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def pack(bits: Bool[Tensor, "N"]) -> str:
    """Yes or no of each example, as text; `unpack` reads it."""
    return f"{len(bits)}:{base64.b64encode(np.packbits(bits.numpy()).tobytes()).decode()}"


def unpack(text: str) -> np.ndarray:
    """The bits that `pack` wrote, as 0 and 1."""
    number, _, packed = text.partition(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8))[: int(number)]


def _sweep_of(study: Study, part: Part) -> list[str]:
    return [study.key(run) for run in study.sweep(part)]


def _read(path: Path) -> Iterator[Row]:
    """The rows of a file; not a last line without its end, which was being written when something stopped it."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not ("closed" in row or {"key", "stage", "part", "dev"} <= row.keys()):
                raise ValueError
        except ValueError:
            raise StudyError(
                f"line {number} of {path} is no result of a study; take it out, or another --out."
            ) from None
        yield row


def _end_with_whole_line(path: Path) -> None:
    """Cut off what an earlier process was stopped in the middle of."""
    with open(path, "ab+") as file:
        file.seek(0)
        whole, end = file.read().rfind(b"\n") + 1, file.tell()
        if whole < end:
            file.truncate(whole)
