"""The tasks of `minipeft eval` that need no training: where their data are, and the protocol of each, in words."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minipeft.corpus import read_text
from minipeft.downloads.data import GITHUB, TINYSHAKESPEARE, Source
from minipeft.zero_shot.choices import read_hellaswag, read_lambada, score_hellaswag, score_lambada
from minipeft.zero_shot.scoring import Subject
from minipeft.zero_shot.texts import detokenised, score_text

Bar = Callable[[int], Callable[[str], None]]
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Settings:
    """How to measure: tokens the window moves on by (None: as many as it reads), rows of a batch.

    `limit` takes only the first so many examples, or characters of a text. `as_is` keeps WikiText's own spaces.
    """

    stride: int | None = None
    batch_size: int = 8
    limit: int | None = None
    as_is: bool = False

    def __post_init__(self) -> None:
        for name in ("stride", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class Measured:
    """What was measured, how, and on how much."""

    task: str
    protocol: str
    on: str
    values: dict[str, float]


SOURCES = {
    "wikitext2": Source(
        "wikitext2/test.txt",
        f"{GITHUB}/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/test.txt",
        "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        1_256_449,
    ),
    "tinyshakespeare": TINYSHAKESPEARE,
    "lambada": Source(
        "lambada/lambada_test.jsonl", "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
    ),
    "hellaswag": Source("hellaswag/hellaswag_val.jsonl", f"{GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl"),
}
ZERO_SHOT = (*SOURCES, "text")
PINNED = tuple(task for task, source in SOURCES.items() if source.sha256 is not None)


def measure(
    task: str,
    subject: Subject,
    data: Path | None = None,
    settings: Settings | None = None,
    bar: Bar = lambda total: lambda note: None,
    say: Callable[[str], None] = print,
) -> Measured:
    """The model's score on one of `ZERO_SHOT`; `data` is the file to read instead of the task's own.

    Raises ValueError or FileNotFoundError if there is no such task or file, or nothing in it to measure.
    """
    settings = settings or Settings()
    if task not in ZERO_SHOT:
        raise ValueError(f"there is no task {task!r}; there are {', '.join(ZERO_SHOT)}.")
    if data is None and task == "text":
        raise ValueError("say which text: minipeft eval --task text --data FILE")
    path = data or SOURCES[task].find(task, f"minipeft eval --task {task}", say)
    if task == "lambada":
        return _lambada(subject, path, settings, bar)
    if task == "hellaswag":
        return _hellaswag(subject, path, settings, bar)
    return _text(task, subject, path, settings, bar)


def _text(task: str, subject: Subject, path: Path, settings: Settings, bar: Bar) -> Measured:
    original, part = read_text(path), "the whole file"
    if task == "tinyshakespeare":
        original = original[int((1 - HELD_OUT_SHARE) * len(original)) :]
        part = f"the last {HELD_OUT_SHARE:.0%} of its characters"
    if settings.limit is not None:
        original, part = original[: settings.limit], f"the first {settings.limit:,} characters of {part}"
    detokenise = task == "wikitext2" and not settings.as_is
    text = detokenised(original) if detokenise else original
    stride = settings.stride or subject.room
    found = score_text(subject, text, original, stride, settings.batch_size, bar)
    form = "detokenised (spaces before signs and @-@ removed, <unk> kept)" if detokenise else "as it is"
    protocol = (
        f"{part}, {form}; <|endoftext|> in front; a window of {subject.room} positions moves on by {stride} tokens, "
        "every token is scored once"
    )
    on = f"{found.tokens:,} tokens, {found.words:,} words and ends of lines, {found.utf8_bytes:,} bytes"
    return Measured(task, protocol, on, found.values())


def _lambada(subject: Subject, path: Path, settings: Settings, bar: Bar) -> Measured:
    passages = read_lambada(path)[: settings.limit]
    protocol = (
        "the last word of each passage after all before it, nothing in front; right where every token of the word is "
        "the likeliest; no filter of stop words; a passage that is too long loses its beginning"
    )
    values = score_lambada(subject, passages, settings.batch_size, bar)
    return Measured("lambada", protocol, f"{len(passages):,} passages", values)


def _hellaswag(subject: Subject, path: Path, settings: Settings, bar: Bar) -> Measured:
    examples = read_hellaswag(path)[: settings.limit]
    protocol = (
        "each ending after the context (`ctx`) and a space, nothing in front; the one of least cost wins, in all or, "
        "normalised, for each of its tokens"
    )
    values = score_hellaswag(subject, examples, settings.batch_size, bar)
    return Measured("hellaswag", protocol, f"{len(examples):,} examples", values)
