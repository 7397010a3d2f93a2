"""Write the table of methods into README.md and docs/methods.md, with the numbers that the code trains.

python recipes/method_table.py            # between the lines `methods: begin` and `methods: end` of each file
python recipes/method_table.py --check    # change nothing; fail if a file is not as it would be written
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from marked import between

from minipeft.compare.tables import table
from minipeft.downloads import PUBLIC
from minipeft.files import write_atomically
from minipeft.overview import METHODS_TABLE, Entry, count, size_told

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
SIZES = {"small": "gpt2", "medium": "gpt2-medium", "large": "gpt2-large", "XL": "gpt2-xl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if something would change")
    check = parser.parse_args().check
    for name, text in (("README.md", short_table()), ("docs/methods.md", long_tables())):
        path = ROOT / name
        found = path.read_text(encoding="utf-8")
        wanted = between(found, BEGIN, END, text)
        if found == wanted:
            continue
        if check:
            sys.exit(f"{name} is not as the code is; write it again: python recipes/method_table.py")
        write_atomically(path, wanted.encode("utf-8"))
        print(f"wrote {name}")


def short_table() -> str:
    """One row per method: where it enters, what it trains, what it costs for GPT-2 small."""
    rows = [
        (f"`{e.call}`", f"{e.door}: {e.place}", e.trained, *in_small(e)) for e in METHODS_TABLE if e.call not in FORMS
    ]
    return table(("method", "where it enters", "trained", "numbers, GPT-2 small", "bytes a task"), rows, right=2)


def long_tables() -> str:
    """Two tables: equations and papers; numbers for the four public sizes."""
    told = [(f"`{e.call}`", e.door, e.place, f"`{e.equation}`", source(e)) for e in METHODS_TABLE]
    first = table(("method", "door", "place", "equation", "source"), told)
    second = table(
        ("method", "trained", *(f"GPT-2 {size}" for size in SIZES), "kept (small)", "bytes a task (small)"),
        [tuple(numbers(e)) for e in METHODS_TABLE],
        right=len(SIZES) + 2,
    )
    return f"{first}\n\n{second}"


FORMS = {
    'PTuning(length=20, encoder="mlp")',
    'LoRA(rank=4, targets=("attn.q", "attn.v"))',
    'BottleneckAdapter(width=64, form="lin")',
    "FullFinetuning(top_layers=2)",
}
"""Other forms of a method, which only the long table shows."""


def in_small(entry: Entry) -> tuple[str, str]:
    found = count(entry.method, PUBLIC["gpt2"].config)
    return f"{found.trained:,}", size_told(found.size)


def numbers(entry: Entry) -> Iterator[str]:
    yield f"`{entry.call}`"
    yield entry.trained
    found = [count(entry.method, PUBLIC[name].config) for name in SIZES.values()]
    yield from (f"{size.trained:,}" for size in found)
    yield f"{found[0].kept:,}"
    yield size_told(found[0].size)


def source(entry: Entry) -> str:
    return f"[{entry.source}](https://arxiv.org/abs/{entry.arxiv})" if entry.arxiv else entry.source


if __name__ == "__main__":
    main()
