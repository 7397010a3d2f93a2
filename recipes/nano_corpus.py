"""Write the text that the small models are pretrained on: `OUT/<source>.txt` and `OUT/manifest.json`.

    python recipes/nano_corpus.py --corpus ../shared/corpus --data ../shared/data --out build/nano-corpus

Source texts are the public files that `SOURCES.tsv` names, and the unlabelled *training* texts of the sentiment
sets that ship. Left out, and counted in the manifest: every paragraph that contains a development or test text of a
task (see `minipeft.corpus.HeldOutTexts`), every paragraph with a word of the blocklist, and the nine plays of which
tinyshakespeare is made, so that style and perplexity can be measured on plays the model has never read.
"""

import argparse
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from minipeft.corpus import HeldOutTexts, WordBlocklist, documents, normalised, read_text, share_of
from minipeft.files import write_atomically, write_json
from minipeft.tasks.sentiment import DOMAINS, rated_texts
from minipeft.tokenizer import END_OF_TEXT

HELD_OUT_PLAYS = [
    *("coriolanus", "richard_ii", "richard_iii", "henry_vi_part_3", "romeo_and_juliet"),
    *("winters_tale", "measure_for_measure", "taming_of_the_shrew", "tempest"),
]
NOT_ENGLISH = ["poemata"]
KEPT_SHARE = {"sgd-dialogues": 0.3, "bible-basic-english": 0.5}
"""Template-like or very repetitive sources are sampled down, by the hash of the document."""
REPEATS = {"movie": 4, "product": 4, "tweet": 4, "news": 2}
"""The short opinion texts are few (8 % of the bytes even so), and what the demo is about."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with SOURCES.tsv and the texts")
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2/, e2e_nlg/, wikitext2/")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    held_out = HeldOutTexts(task_texts(options.data))
    blocklist = WordBlocklist.from_file(Path(__file__).parent / "blocklist.txt")
    manifest: dict[str, object] = {"held_out_texts": len(held_out), "held_out_plays": HELD_OUT_PLAYS}
    options.out.mkdir(parents=True, exist_ok=True)
    for source, found in sources(options.corpus).items():
        dropped = {"held-out text of a task": 0, "word on the blocklist": 0}
        kept: list[str] = []
        for document in found:
            lines = []
            for line in document.split("\n"):
                if held_out.find_in(line):
                    dropped["held-out text of a task"] += 1
                elif blocklist.find_in(line):
                    dropped["word on the blocklist"] += 1
                else:
                    lines.append(line)
            if any(map(str.strip, lines)):
                kept.append("\n".join(lines))
        text = f"\n{END_OF_TEXT}\n".join(kept * REPEATS.get(source, 1)) + "\n"
        write_atomically(options.out / f"{source}.txt", text.encode("utf-8"))
        manifest[source] = {
            "documents": len(kept),
            "repeats": REPEATS.get(source, 1),
            "bytes": len(text.encode("utf-8")),
            "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
            "paragraphs_dropped": dropped,
        }
        print(f"{source:22} {len(kept):6} documents {len(text) / 1e6:6.1f} MB  dropped {dropped}", flush=True)
    write_json(options.out / "manifest.json", manifest)


def sources(corpus: Path) -> dict[str, Iterator[str]]:
    """Source name -> its documents, before filtering."""
    listed = csv.DictReader(io.StringIO(read_text(corpus / "SOURCES.tsv")), delimiter="\t")
    files: dict[str, list[Path]] = {}
    for row in listed:
        files.setdefault(row["path"].split("/")[0], []).append(corpus / row["path"])
    found: dict[str, Iterator[str]] = {name: _documents_of(name, paths) for name, paths in sorted(files.items())}
    for domain in DOMAINS:
        found[domain] = iter([row.text for row in rated_texts(domain) if row.split == "train"])
    return found


def _documents_of(source: str, paths: list[Path]) -> Iterator[str]:
    for path in paths:
        if path.name.removesuffix("_gut.txt") in (*HELD_OUT_PLAYS, *NOT_ENGLISH):
            continue
        for document in documents(read_text(path)):
            if share_of(document) < KEPT_SHARE.get(source, 1.0):
                yield document


def task_texts(data: Path) -> Iterator[str]:
    """Every development and test text of the tasks that are shipped or supported."""
    for domain in DOMAINS:
        yield from (row.text for row in rated_texts(domain) if row.split != "train")
    for name in ("dev", "test"):
        yield from (line.rsplit("\t", 1)[0] for line in read_text(data / "sst2" / f"{name}.tsv").splitlines())
    with zipfile.ZipFile(data / "e2e_nlg" / "e2e-dataset.zip") as archive:
        for name in ("devset.csv", "testset_w_refs.csv"):
            rows = csv.DictReader(io.StringIO(archive.read(f"e2e-dataset/{name}").decode("utf-8-sig")))
            yield from (row["ref"] for row in rows)
    for name in ("valid", "test"):
        lines = read_text(data / "wikitext2" / f"{name}.txt").splitlines()
        yield from (line for line in lines if normalised(line))


if __name__ == "__main__":
    main()
