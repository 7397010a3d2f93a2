"""A person's own task: rows of a TSV, CSV or JSONL file, a folder of three such, or the running text of a TXT file."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from minipeft.corpus import documents, read_text, share_of
from minipeft.tasks.base import SPLITS, Example, Task
from minipeft.tokenizer import Tokenizer

MOST_LABELS = 20
"""A column with more different targets than this is free text, not labels."""
DEV_SHARE, TEST_SHARE = 0.1, 0.2
KINDS = (".tsv", ".csv", ".jsonl")
WINDOW_TOKENS = 128


class DataError(ValueError):
    """A data file that cannot make a task."""


def task_from_file(path: str | Path, input_column: str | None, target_column: str | None, kind: str = "auto") -> Task:
    """A task of a .tsv, .csv or .jsonl file: `input_column` is read, `target_column` is to be written after it.

    Without an input column the target stands alone, and a method learns to write texts like it; a .txt file is cut
    into such texts. `kind`: "labels", "text", or "auto" (labels where at most 20 different targets recur). A column
    named `split` with train, dev and test decides the splits, else a hash of the text does (70, 10, 20 %); in a folder
    each split has a file, such as train.tsv. Columns named by number, from 1, are those of a table without a header,
    unless its first row has these names.

    Raises FileNotFoundError, CorpusError or DataError with one sentence that names the file and what is wrong.
    """
    path = Path(path)
    if kind not in ("auto", "labels", "text"):
        raise DataError(f"kind is {kind!r}; it can be auto, labels or text.")
    if path.suffix == ".txt":
        if input_column or target_column or kind == "labels":
            raise DataError(f"{path} is running text: it has no columns and no labels.")
        return _running_text(path)
    if target_column is None:
        raise DataError(f"say which column of {path} is to be learned: --target COLUMN (and --input COLUMN to read).")
    named = [column for column in (input_column, target_column) if column is not None]
    rows = list(_rows_of_folder(path, named) if path.is_dir() else _rows(path, named))
    if not rows:
        raise DataError(f"{path} has a header but no rows.")
    for column in filter(None, (input_column, target_column)):
        if column not in rows[0][1]:
            raise DataError(f"{path} has no column {column!r}; it has {', '.join(map(repr, rows[0][1]))}.")
    splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    for where, row in rows:
        target = _field(row, target_column, where)
        text = _field(row, input_column, where) if input_column else ""
        splits[_split_of(row, text or target, where)].append(Example(text, target, where))
    if input_column and "split" in rows[0][1]:
        _tell_of_known(splits, path)
    labels = _labels(path, splits, kind, has_input=input_column is not None)
    for split in splits:
        if not splits[split]:
            raise DataError(f"{path}: no row falls into the {split} split; {len(rows)} rows are too few.")
    joint = "" if not input_column else "\nLabel:" if labels else "<|endoftext|>"
    frozen = {split: tuple(examples) for split, examples in splits.items()}
    return Task(name=path.stem, splits=frozen, labels=labels, joint=joint, hard_prompts=("{text}" + joint,))


def _running_text(path: Path) -> Task:
    """Pieces of a text file, about 128 tokens each, cut between lines."""
    tokenizer = Tokenizer.gpt2()
    splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    number = 0
    for document in documents(read_text(path)):
        piece: list[str] = []
        lines = document.splitlines(keepends=True)
        lengths = [len(ids) for ids in tokenizer.encode_batch(lines)]
        room = WINDOW_TOKENS
        for line, length in [*zip(lines, lengths, strict=True), ("", WINDOW_TOKENS + 1)]:
            if length > room and piece:
                number += 1
                text = "".join(piece)
                splits[_split_of({}, text, "")].append(Example("", text, f"piece {number} of {path}"))
                piece, room = [], WINDOW_TOKENS
            piece.append(line)
            room -= length
    for split in splits:
        if not splits[split]:
            raise DataError(f"{path}: no text falls into the {split} split; it is too short to learn from.")
    return Task(name=path.stem, splits={split: tuple(examples) for split, examples in splits.items()})


def _rows_of_folder(folder: Path, named: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of the one file of each split."""
    firsts = []
    for split in SPLITS:
        found = sorted(path for path in folder.iterdir() if path.stem == split and path.suffix in KINDS)
        if len(found) != 1:
            what = f"has {' and '.join(path.name for path in found)}" if found else "has no file"
            raise DataError(f"{folder} {what} for the {split} split; it needs one, such as {split}.tsv.")
        for number, (where, row) in enumerate(_rows(found[0], named)):
            firsts += [row] if number == 0 else []
            if firsts == [row] * len(SPLITS):
                raise DataError(
                    f"the files of {folder} all begin with the row {', '.join(row.values())}; if it is their header, "
                    "name columns by it and not by number."
                )
            yield where, {**row, "split": split}


def _rows(path: Path, named: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its fields, of which `named` are wanted."""
    text = read_text(path)
    if path.suffix == ".jsonl":
        yield from _json_rows(path, text)
    elif path.suffix in (".tsv", ".csv"):
        yield from _delimited_rows(path, io.StringIO(text.removeprefix("\ufeff"), newline=""), named)
    else:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'}; data files end in .tsv, .csv, .jsonl or .txt.")


def _delimited_rows(path: Path, file: io.StringIO, named: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """A .tsv has no quotes, as most published ones; a .csv may quote its fields."""
    csv.field_size_limit(2**31 - 1)
    reader = (
        csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if path.suffix == ".tsv"
        else csv.reader(file, strict=True)
    )
    try:
        header, numbered = next(reader, []), all(name.isdecimal() for name in named)
        if header and numbered and not set(named) <= set(header):
            yield f"line {reader.line_num} of {path}", _numbered(header)
            header = []
        for row in reader:
            if row:
                if header and len(row) != len(header):
                    quoting = "; a field that holds a comma needs quotes" if path.suffix == ".csv" else ""
                    where = f"line {reader.line_num} of {path}"
                    raise DataError(f"{where} has {len(row)} fields, and its header {len(header)}{quoting}.")
                fields = dict(zip(header, row, strict=True)) if header else _numbered(row)
                yield f"line {reader.line_num} of {path}", fields
    except csv.Error as error:
        raise DataError(f"line {reader.line_num} of {path} cannot be read: {error}.") from None


def _numbered(row: list[str]) -> dict[str, str]:
    return {str(place): field for place, field in enumerate(row, start=1)}


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"line {number} of {path} is not JSON.") from None
        if not isinstance(row, dict):
            raise DataError(f"line {number} of {path} must be a JSON object, but is a {type(row).__name__}.")
        yield (
            f"line {number} of {path}",
            {key: _as_text(value) for key, value in row.items()},
        )


def _as_text(value: object) -> str:
    """A value of JSON as a field of a table; null is an empty one."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _field(row: dict[str, str], column: str, where: str) -> str:
    value = row.get(column)
    if value is None or not value.strip():
        raise DataError(f"{where} has nothing in column {column!r}.")
    return value.strip()


def _split_of(row: dict[str, str], text: str, where: str) -> str:
    given = row.get("split")
    if given is None:
        letters = "".join(letter for letter in text.casefold() if letter.isalnum())  # of any script
        share = share_of(letters or text)
        return "test" if share < TEST_SHARE else "dev" if share < TEST_SHARE + DEV_SHARE else "train"
    if given not in ("train", "dev", "test"):
        raise DataError(f"{where}: split is {given!r}; it can be train, dev or test.")
    return given


def _tell_of_known(splits: dict[str, list[Example]], path: Path) -> None:
    """Say so where texts that are to be measured on stand among those that are learned from."""
    learned = {example.text for example in splits["train"]}
    for split in ("dev", "test"):
        known = sum(example.text in learned for example in splits[split])
        if known:
            print(
                f"minipeft: {known} of {len(splits[split])} {split} texts of {path} stand in train, too; what is "
                "measured on them is memory.",
                file=sys.stderr,
            )


def _labels(path: Path, splits: dict[str, list[Example]], kind: str, has_input: bool) -> tuple[str, ...]:
    """The different targets, if they are labels. Raises DataError if one of them cannot be learned."""
    counts = Counter(example.target for examples in splits.values() for example in examples)
    few = len(counts) <= MOST_LABELS and len(counts) <= counts.total() / 2
    if kind == "text" or not has_input or (kind == "auto" and not few):
        return ()
    if len(counts) < 2:
        raise DataError(f"{path}: every row has the same label, {next(iter(counts))!r}; there is nothing to learn.")
    once = [label for label, count in counts.items() if count == 1]
    if once:
        raise DataError(f"{path}: the label {once[0]!r} occurs once; it cannot be both learned and tested.")
    untaught = counts.keys() - {example.target for example in splits["train"]}
    if untaught:
        raise DataError(f"{path}: the label {min(untaught)!r} does not occur in the train split; it cannot be learned.")
    return tuple(sorted(counts))
