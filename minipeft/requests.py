"""A file of prompts, each with its task and its settings: written to another file, line by line, and resumed there."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from minipeft.sampling import Sampling

SETTINGS = {setting.name for setting in fields(Sampling)}
WHOLE = {"max_new_tokens", "top_k", "seed", "no_repeat_ngram", "beams"}
"""The settings that are whole numbers; all others but `stop` are numbers."""


@dataclass(frozen=True)
class Request:
    """One line of the file."""

    line: int
    prompt: str
    task: str | None
    sampling: Sampling


def read_requests(path: str | Path, usual: Sampling) -> list[Request]:
    """The lines of a JSONL file: "prompt", and where wanted "task" and any setting of `Sampling` instead of the usual.

    Without a seed of its own, a line's is the usual one + the number of the line, whatever stands around it.
    Raises FileNotFoundError, or ValueError that names the line and what is wrong with it.
    """
    found = []
    lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # JSON's texts may hold what else ends a line
    for number, text in enumerate(lines[:-1] if not lines[-1].strip() else lines, 1):
        where = f"{path}, line {number}"
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{where} is no JSON.") from None
        if not isinstance(told, dict) or not isinstance(told.get("prompt"), str) or not told["prompt"]:
            raise ValueError(f'{where} must be an object with a "prompt" that is a text.')
        try:
            told["prompt"].encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{where}: half of a character (a lone surrogate) is in the prompt.") from None
        task = told.get("task")
        if task is not None and not isinstance(task, str):
            raise ValueError(f"{where}: task is {task!r}; it must be a name, or null for the bare model.")
        unknown = told.keys() - SETTINGS - {"prompt", "task"}
        if unknown:
            raise ValueError(
                f"{where}: there is no setting {', '.join(sorted(unknown))}; there are {', '.join(sorted(SETTINGS))}."
            )
        own = {"seed": (usual.seed + number) % 2**32, **{name: told[name] for name in told.keys() & SETTINGS}}
        if own.get("beams", 1) != 1 and usual.beams == 1:
            own.setdefault("temperature", 0)  # beam search draws nothing
        found.append(Request(number, told["prompt"], task, _settings(usual, own, where)))
    if not found:
        raise ValueError(f"{path} is empty.")
    return found


def answer(
    requests: Sequence[Request],
    write: Callable[[Sequence[Request]], Sequence[str]],
    out: str | Path,
    rows: int,
    told: Callable[[str], None] = lambda note: None,
) -> None:
    """Have every request written that is not in `out` yet, `rows` at a time, and append what comes.

    Raises ValueError if `out` answers other requests.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = answered(requests, out)
    for _ in range(done):
        told("")
    with open(out, "a", encoding="utf-8", newline="\n") as file:
        for together in batches_of(requests[done:], rows):
            texts = write(together)
            for request, text in zip(together, texts, strict=True):
                row = {"line": request.line, "task": request.task, "prompt": request.prompt, "text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            for request in together:
                told(f"line {request.line}")


def answered(requests: Sequence[Request], out: Path) -> int:
    """How many of the requests, from the first on, are in `out`; half a line at its end, of a killed run, goes.

    Raises ValueError if what is there answers something else.
    """
    if not out.exists():
        return 0
    whole, newline, _ = out.read_bytes().rpartition(b"\n")
    lines = whole.decode("utf-8", errors="replace").split("\n") if newline else []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            same = number < len(requests) and (row["line"], row["task"], row["prompt"]) == (
                requests[number].line,
                requests[number].task,
                requests[number].prompt,
            )
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ValueError(f"{out}, line {number + 1} answers none of these prompts; name another --out.")
    with open(out, "r+b") as file:
        file.truncate(len(whole + newline))
    return len(lines)


def batches_of(requests: Sequence[Request], rows: int) -> Iterator[list[Request]]:
    """Neighbours, at most so many at once; beam search wants one setting in a batch."""

    def alike(request: Request) -> object:
        return request.sampling.rules if request.sampling.beams > 1 else None

    for _, group in groupby(requests, alike):
        some = list(group)
        yield from (some[start : start + rows] for start in range(0, len(some), rows))


def _settings(usual: Sampling, own: Mapping[str, Any], where: str) -> Sampling:
    try:
        return replace(usual, **{name: _of_its_kind(name, value) for name, value in own.items()})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _of_its_kind(name: str, value: Any) -> Any:
    """A setting as `Sampling` has it. Raises ValueError if JSON gave something else."""
    if name == "stop":
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return tuple(value)
        raise ValueError(f"stop is {value!r}; it must be a list of texts.")
    if value is None and name in ("top_k", "top_p"):
        return None
    kinds = (int,) if name in WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{name} is {value!r}; it must be a {'whole ' if name in WHOLE else ''}number.")
    return value if name in WHOLE else float(value)
