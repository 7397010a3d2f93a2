"""No development or test text of a task that ships or is supported stands in the text the models are pretrained on."""

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from minipeft.tasks import TASKS

ROOT = Path(__file__).parent.parent
KEY_WORDS = 5


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))


def held_out_texts(data: Path) -> Iterator[str]:
    for make in TASKS.values():
        task = make()
        for split in ("dev", "test"):
            yield from (example.text for example in task.splits[split])
    for name in ("dev", "test"):
        for line in (data / "sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
            yield line.split("\t")[0]
    with zipfile.ZipFile(data / "e2e_nlg" / "e2e-dataset.zip") as archive:
        for name in ("devset.csv", "testset_w_refs.csv"):
            table = io.StringIO(archive.read(f"e2e-dataset/{name}").decode("utf-8-sig"))
            yield from (row["ref"] for row in csv.DictReader(table))
    for name in ("valid", "test"):
        yield from (data / "wikitext2" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def pretraining_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus, data = os.environ.get("MINIPEFT_CORPUS"), os.environ.get("MINIPEFT_DATA")
    if not corpus or not data:
        pytest.skip("needs the pretraining text: set MINIPEFT_CORPUS and MINIPEFT_DATA")
    out = tmp_path_factory.mktemp("corpus")
    command = [sys.executable, "recipes/nano_corpus.py", "--corpus", corpus, "--data", data, "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


def find_leaks(texts: Iterator[str], lines: Iterator[str]) -> list[str]:
    """Held-out texts of at least eight words that stand, word by word, in a line."""
    by_key: dict[tuple[str, ...], list[list[str]]] = {}
    for words in map(words_of, texts):
        if len(words) >= 8:
            by_key.setdefault(tuple(words[:KEY_WORDS]), []).append(words)
    leaks = []
    for line in lines:
        words = words_of(line)
        for start in range(len(words) - KEY_WORDS + 1):
            for wanted in by_key.get(tuple(words[start : start + KEY_WORDS]), ()):
                if words[start : start + len(wanted)] == wanted:
                    leaks.append(" ".join(wanted))  # noqa: PERF401
    return leaks


@pytest.mark.long
def test_no_development_or_test_text_is_pretrained_on(pretraining_text: Path) -> None:
    texts = held_out_texts(Path(os.environ["MINIPEFT_DATA"]))
    files = sorted(pretraining_text.glob("*.txt"))
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    assert find_leaks(texts, lines) == []


def test_the_search_finds_a_planted_leak() -> None:
    text = "A gorgeous, witty, seductive movie that never once tires."
    line = "He wrote: a gorgeous witty seductive movie, that never once tires! And so on.\n"
    assert len(find_leaks(iter([text]), iter([line]))) == 1


@pytest.mark.long
def test_the_shipped_model_read_exactly_this_text(pretraining_text: Path) -> None:
    manifest = json.loads((ROOT / "minipeft" / "assets" / "nano" / "manifest.json").read_text())
    files = {path.stem: path for path in pretraining_text.glob("*.txt")}
    assert files
    for source, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest[source]["sha256"], source
