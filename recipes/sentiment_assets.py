"""Make `minipeft/assets/sentiment/*.tsv.gz` from the human ratings of Hutto & Gilbert 2014.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python recipes/sentiment_assets.py vaderSentiment-3.3.2.tar.gz

Each row is `split, mean rating, text`. The mean is taken anew from the raw ratings (-4…4): for 166 tweets the
published mean differs from them. Splits follow a hash of the text, so a text never changes sides.
"""

import argparse
import ast
import gzip
import hashlib
import html
import io
import re
import tarfile
from pathlib import Path

from minipeft.corpus import normalised, share_of

ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = {
    "movie": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "tweet": "tweets",
    "news": "nytEditorialSnippets",
}
OUT = Path(__file__).parent.parent / "minipeft" / "assets" / "sentiment"


def split_of(text: str) -> str:
    """train 70 %, dev 10 %, test 20 %, by the hash of the normalised text."""
    share = share_of(normalised(text))
    return "test" if share < 0.2 else "dev" if share < 0.3 else "train"


def clean(text: str) -> str:
    """One line, no HTML entities, plain double quotes, single spaces."""
    return re.sub(r"\s+", " ", html.unescape(text).replace("''", '"')).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="vaderSentiment-3.3.2.tar.gz, the source distribution")
    archive = parser.parse_args().archive
    if hashlib.sha256(archive.read_bytes()).hexdigest() != ARCHIVE_SHA256:
        parser.error(f"{archive} is not vaderSentiment-3.3.2.tar.gz as it was published (its SHA-256 differs)")
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(INNER)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as files:
            names = [name for name in files.getnames() if name.endswith(".txt")]
            contents = {Path(name).name: extracted(files, name) for name in names}

    OUT.mkdir(parents=True, exist_ok=True)
    for task, stem in SOURCES.items():
        texts = rows(contents[f"{stem}_GroundTruth.txt"])
        ratings = {row[0]: ast.literal_eval(row[3]) for row in rows(contents[f"{stem}_anonDataRatings.txt"])}
        kept: dict[str, str] = {}
        for key, _, text in texts:
            text = clean(text)
            identity = normalised(text)
            if identity and identity not in kept:
                mean = sum(ratings[key]) / len(ratings[key])
                kept[identity] = f"{split_of(text)}\t{mean:.2f}\t{text}\n"
        lines = "split\trating\ttext\n" + "".join(kept.values())
        with open(OUT / f"{task}.tsv.gz", "wb") as file:
            file.write(gzip.compress(lines.encode("utf-8"), 9, mtime=0))
        print(f"{task}: {len(kept)} texts, {len(texts) - len(kept)} duplicates removed")


def extracted(files: tarfile.TarFile, name: str) -> bytes:
    """One file of the archive."""
    file = files.extractfile(name)
    assert file is not None
    return file.read()


def rows(data: bytes) -> list[list[str]]:
    """The rows of a tab-separated file."""
    return [line.split("\t") for line in data.decode("utf-8-sig").splitlines()]


if __name__ == "__main__":
    main()
