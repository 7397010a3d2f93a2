"""Data to text: what a restaurant offers, as a list of fields, is to be told in a sentence.

Source: the E2E challenge, Novikova et al. 2017; CC BY-SA 4.0. Several people wrote a text for each list.
"""

import csv
import io
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from minipeft.downloads.data import GITHUB, Source
from minipeft.tasks.base import Example, Task
from minipeft.tasks.files import DataError

ARCHIVE = Source(
    "e2e_nlg/e2e-dataset.zip",
    f"{GITHUB}/stefan-codes/TransformersNLG/ac97c7059df211131a5766ec43ac9522d6b0551e/data/e2e-dataset.zip",
    "1261064c01907af27e8cc39e0a29a81541f6ab69208c1cbfc1be95afbb49dfac",
    1_528_421,
)
FILES = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}
LARGEST = 2**25
"""Bytes of an unpacked file; the largest has 9.3 MB."""


@lru_cache(maxsize=1)
def e2e() -> Task:
    """Free text; `<|endoftext|>` between the fields and the sentence (Li & Liang 2021, §5.1).

    Train and test have every text that was written for a list, dev the first: it chooses a step, and is read often.
    Raises FileNotFoundError if the archive can neither be found nor brought, DataError if it is not what it should be.
    """
    path = ARCHIVE.find("e2e")
    splits = {split: tuple(_examples(path, name)) for split, name in FILES.items()}
    first = {example.text: example for example in reversed(splits["dev"])}
    splits["dev"] = tuple(reversed(first.values()))
    return Task(name="e2e", splits=splits, joint="<|endoftext|>", hard_prompts=("{text}<|endoftext|>",))


def _examples(path: Path, name: str) -> Iterator[Example]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.getinfo(f"e2e-dataset/{name}")
            if found.file_size > LARGEST:
                raise DataError(
                    f"{path}: {name} would unpack to {found.file_size:,} bytes; it has at most {LARGEST:,}."
                )
            text = archive.read(found).decode("utf-8-sig")
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not the E2E archive: {error}.") from None
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
        if not row.get("mr") or not row.get("ref"):
            raise DataError(f"row {number} of {name} in {path} lacks mr or ref.")
        yield Example(row["mr"].strip(), row["ref"].strip(), f"row {number} of {name}")
