"""What a folder says of its token files: the index of finished ones, the journal of unfinished ones."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipeft.corpus import CorpusError
from minipeft.files import CheckpointError, read_json
from minipeft.token_files.text import TextFile

FORMAT = "minipeft tokens 1"
INDEX_FILE = "index.json"
JOURNAL_FILE = "unfinished.json"
MOST_BYTES = 500_000_000
"""An index has some 200 bytes for every text file."""
ANEW = "make the tokens anew with `minipeft prepare` and --overwrite."


class TokenFilesError(CorpusError):
    """Files of tokens that cannot be used; the message names the file, what is wrong, and what to do."""


def read_record(path: Path) -> dict[str, Any]:
    """An index or a journal. Raises FileNotFoundError or TokenFilesError."""
    if not path.is_file():
        folder = path.parent
        unfinished = (
            f"the tokens in {folder} are unfinished; the `minipeft prepare` that began them goes on from there."
        )
        missing = f"there is no file {path}; make it with: minipeft prepare TEXTS --out {folder}"
        raise FileNotFoundError(unfinished if (folder / JOURNAL_FILE).is_file() else missing)
    try:
        record = read_json(path, MOST_BYTES)
    except CheckpointError:
        raise TokenFilesError(f"{path} is damaged (it is no JSON object); {ANEW}") from None
    if record.get("format") != FORMAT:
        raise TokenFilesError(f"{path} has the format {record.get('format')!r}, not {FORMAT!r}; {ANEW}")
    return record


def record_in(folder: Path) -> dict[str, Any] | None:
    """The index if the tokens are finished, the journal if they are begun, None if there are none."""
    for name in (INDEX_FILE, JOURNAL_FILE):
        if (folder / name).exists():
            return read_record(folder / name)
    return None


def texts_of(folder: Path, record: Mapping[str, Any]) -> list[TextFile]:
    """The texts that the tokens were made of. Raises TokenFilesError if the record is damaged."""
    try:
        return [TextFile(**text) for text in record["inputs"]]
    except (KeyError, TypeError):
        raise TokenFilesError(f"what {folder} says of its texts is damaged; {ANEW}") from None


def refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise TokenFilesError, and say what differs, unless the same tokens would be made now."""
    changed = list(_changes(before, now))
    if changed:
        raise TokenFilesError(
            f"{folder} holds tokens that were made otherwise ({'; '.join(changed)}); "
            "use another --out, or start anew with --overwrite."
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in ("vocab_size", "tokenizer", "held_out_percent", "shard_tokens"):
        if before.get(name) != now[name]:
            yield f"{name} was {before.get(name)}, is {now[name]}"
    old, new = before["inputs"], now["inputs"]
    if len(old) != len(new):
        yield f"there were {len(old):,} texts, there are {len(new):,}"
        return
    for number, (was, text) in enumerate(zip(old, new, strict=True), 1):
        if was["name"] != text["name"]:
            yield f"text {number:,} was {was['name']}, is {text['name']}"
            return
        if was["sha256"] != text["sha256"]:
            yield f"{text['name']} has changed"
            return
