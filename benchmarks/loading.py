"""Loading GPT-2 small: our time and memory against `transformers`, on a random checkpoint that `transformers` wrote.

    python benchmarks/loading.py

Every load is a process of its own that has imported everything before. Memory is what the peak of the process's
resident set grew by, over the bytes of the model in the type that it is loaded as.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from resident import resident

REPEATS = 5
DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, help="write the result there as JSON, too")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(load_once(*options.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder)
        result = {dtype: compare(folder, dtype, options.repeats) for dtype in DTYPES}
    for dtype, row in result.items():
        print(f"{dtype}: {row['time_ratio']:.2f} of transformers' time;")
        print(f"  peak memory over size: ours {row['ours']['memory']:.2f}, theirs {row['theirs']['memory']:.2f}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def compare(folder: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Medians of alternating loads; the first of each is a warm-up."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(repeats + 1):
        for who, found in runs.items():
            command = [sys.executable, __file__, "--one", who, folder, dtype]
            found.append(json.loads(subprocess.check_output(command).splitlines()[-1]))
    row: dict[str, Any] = {
        who: {key: statistics.median(run[key] for run in found[1:]) for key in ("seconds", "memory")}
        for who, found in runs.items()
    }
    row["time_ratio"] = row["ours"]["seconds"] / row["theirs"]["seconds"]
    return row


def load_once(who: str, folder: str, dtype: str) -> dict[str, float]:
    """Seconds of one load, and the growth of the peak resident set over the model's bytes (Linux; else NaN)."""
    import torch
    from transformers import GPT2LMHeadModel

    import minipeft as mp
    import minipeft.checkpoint  # not to be timed

    kind = getattr(torch, dtype)
    gc.collect()
    before, started = resident("VmHWM"), time.perf_counter()
    if who == "ours":
        model: torch.nn.Module = mp.GPT2.from_pretrained(folder, dtype=kind)
    else:
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=kind)
    seconds = time.perf_counter() - started
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"seconds": seconds, "memory": (resident("VmHWM") - before) / size}


def write_checkpoint(folder: str) -> None:
    """GPT-2 small with random weights, as `transformers` saves it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)


if __name__ == "__main__":
    main()
