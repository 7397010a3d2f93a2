"""Tokenising: tokens a second of `prepare_tokens`, from text files to token files, and of tiktoken alone, in memory.

    python benchmarks/tokenising.py --corpus ../shared/corpus

`prepare_tokens` reads and checks the files, tokenises, writes and opens the token files; all of it is timed. tiktoken
is given the same pieces of text as strings and keeps its lists of numbers. Every run is a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resident import resident

REPEATS = 3
CORPUS = Path("../shared/corpus")
WAYS = {
    "one": "tiktoken `encode_ordinary`, one thread",
    "batch": "tiktoken `encode_ordinary_batch`, {cores} threads",
    "prepare": "`prepare_tokens`, {cores} workers",
    "prepare-1": "`prepare_tokens`, one worker",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder with text files, at any depth")
    parser.add_argument("--vocab-size", type=int, default=50257)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = sorted(options.corpus.rglob("*.txt"))
    if not files:
        parser.error(f"there are no .txt files in {options.corpus}; name a folder that has some with --corpus.")
    if options.one:
        print(json.dumps(run_once(options.one, files, options.vocab_size)))
        return
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, found in runs.items():
            command = [sys.executable, __file__, "--one", way, "--corpus", str(options.corpus)]
            output = subprocess.check_output([*command, "--vocab-size", str(options.vocab_size)])
            found.append(json.loads(output.splitlines()[-1]))
    median = {way: statistics.median(run["rate"] for run in found) for way, found in runs.items()}
    size = sum(file.stat().st_size for file in files)
    print(
        f"{len(files)} files, {size / 1e6:.1f} MB, {runs['batch'][0]['tokens']:,.0f} tokens of {options.vocab_size:,}\n"
    )
    print("| | tokens a second | ratio to the batch | peak memory, MB |")
    print("|---|---:|---:|---:|")
    for way, name in WAYS.items():
        memory = statistics.median(run["memory"] for run in runs[way]) / 1e6
        ratio = median[way] / median["batch"]
        print(f"| {name.format(cores=os.cpu_count())} | {median[way]:,.0f} | {ratio:.2f} | {memory:,.0f} |")


def run_once(way: str, files: list[Path], vocab_size: int) -> dict[str, float]:
    """Tokens, tokens a second, and the growth of the peak resident set in bytes (Linux; else NaN)."""
    from minipeft.corpus import documents, pieces, read_text
    from minipeft.token_files import prepare_tokens
    from minipeft.tokenizer import Tokenizer

    tokenizer, cores = Tokenizer.for_vocab_size(vocab_size), os.cpu_count() or 1
    before = resident("VmHWM")
    if way.startswith("prepare"):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            made = prepare_tokens(files, tokenizer, folder, workers=1 if way == "prepare-1" else cores)
            seconds = time.perf_counter() - start
            tokens = len(made.train) + sum(map(len, made.held_out.values()))
    else:
        texts = [piece for file in files for document in documents(read_text(file)) for piece in pieces(document)]
        encoding = tokenizer._encoding
        start = time.perf_counter()
        if way == "one":
            ids = [encoding.encode_ordinary(text) for text in texts]
        else:
            ids = encoding.encode_ordinary_batch(texts, num_threads=cores)
        seconds = time.perf_counter() - start
        tokens = sum(map(len, ids))
    return {"tokens": tokens, "rate": tokens / seconds, "memory": resident("VmHWM") - before}


if __name__ == "__main__":
    main()
