"""Choosing among words: LAMBADA's last word, HellaSwag's best ending."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.corpus import read_text
from minipeft.perplexity import perplexity_of
from minipeft.zero_shot.scoring import Row, Subject, batches, score

Bar = Callable[[int], Callable[[str], None]]


@dataclass(frozen=True)
class Ending:
    """What HellaSwag asks: a context, four endings, and the number of the right one."""

    context: str
    endings: tuple[str, ...]
    label: int


def read_lambada(path: Path) -> list[str]:
    """Passages: `.jsonl` lines with `text`, as OpenAI published them, or one passage a line. Raises ValueError."""
    passages = []
    for number, line in _lines(path):
        passage = line if path.suffix != ".jsonl" else _of(path, number, _json(path, number, line), "text", str)
        if len(passage.split()) < 2:
            raise ValueError(f"{path}: line {number} has no last word with something before it.")
        passages.append(passage)
    return passages


def read_hellaswag(path: Path) -> list[Ending]:
    """The examples of hellaswag_val.jsonl. Raises ValueError that names a line which is none."""
    examples = []
    for number, line in _lines(path):
        found = _json(path, number, line)
        context, endings = _of(path, number, found, "ctx", str), _of(path, number, found, "endings", list)
        label = _of(path, number, found, "label", int)
        if not context or not all(isinstance(ending, str) and ending for ending in endings):
            raise ValueError(f"{path}: line {number}: ctx and endings must be texts.")
        if not 0 <= label < len(endings):
            raise ValueError(f"{path}: line {number}: label {label} is the number of no ending.")
        examples.append(Ending(context, tuple(endings), label))
    return examples


def score_lambada(
    subject: Subject, passages: Sequence[str], batch_size: int, bar: Bar = lambda total: lambda note: None
) -> dict[str, float]:
    """Of each passage the last word, given all before it: right if each of its tokens is the likeliest.

    A passage without room loses its beginning. Also the last token alone, which is what GPT-2's paper counted.
    """
    rows = []
    for passage in passages:
        context, word = passage.rstrip().rsplit(maxsplit=1)
        rows.append(_row(subject, context, " " + word))
    scored = score(subject, rows, batch_size, bar(batches(rows, batch_size)))
    return {
        "accuracy, last word": _share(bool(row.likeliest.all()) for row in scored),
        "accuracy, last token": _share(bool(row.likeliest[-1]) for row in scored),
        "perplexity per last word": perplexity_of(_mean(float(row.nats.sum()) for row in scored)),
        "perplexity per last token": perplexity_of(_mean(float(row.nats[-1]) for row in scored)),
    }


def score_hellaswag(
    subject: Subject, examples: Sequence[Ending], batch_size: int, bar: Bar = lambda total: lambda note: None
) -> dict[str, float]:
    """The ending of the smallest cost in nats, in all (accuracy) or for each of its tokens (normalised)."""
    rows = [_row(subject, one.context, " " + ending) for one in examples for ending in one.endings]
    scored = iter(score(subject, rows, batch_size, bar(batches(rows, batch_size))))
    right, right_normalised = [], []
    for example in examples:
        costs = [next(scored) for _ in example.endings]
        right.append(_least([float(cost.nats.sum()) for cost in costs]) == example.label)
        right_normalised.append(_least([float(cost.nats.mean()) for cost in costs]) == example.label)
    return {"accuracy": _share(right), "accuracy, normalised": _share(right_normalised)}


def _row(subject: Subject, context: str, target: str) -> Row:
    """Context and target encoded apart, as they are in every published protocol; the target is never cut."""
    before, after = subject.tokenizer.encode(context), subject.tokenizer.encode(target)
    room = subject.room + 1 - len(after)  # the last token is only a target
    if room < 1:
        raise ValueError(f"{target[:40]!r}… has {len(after)} tokens and does not fit into {subject.room} positions.")
    kept = before[-room:]
    return Row([*kept, *after], len(kept))


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Only a line feed ends one: JSON may hold other separators."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def _least(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


def _share(right: Any) -> float:
    return _mean(float(one) for one in right)


def _mean(values: Any) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _json(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: line {number} is no JSON object.")
    return found


def _of(path: Path, number: int, found: dict[str, Any], key: str, kind: type) -> Any:
    if not isinstance(found.get(key), kind) or isinstance(found[key], bool):
        raise ValueError(f"{path}: line {number}: {key} is missing or no {kind.__name__}.")
    return found[key]
