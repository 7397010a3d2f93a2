"""The loss of labelled tokens over GPT-2's vocabulary, forward and backward: plain, chunked, and PyTorch's own.

    python benchmarks/loss.py

Every measurement is a process of its own; seconds are medians, memory is what the highest resident set grew by.
Cases: a frozen head, as in tuning, and a trained one; fp32 and bfloat16; 432 labels, half of a batch of 862 tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from resident import resident

REPEATS = 7
LABELS, WIDTH, VOCABULARY = 432, 768, 50257
WAYS = ("plain", "chunked", "linear_cross_entropy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=LABELS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, dtype, head = options.one
        print(json.dumps(measure(way, dtype, head == "trained", options.labels)))
        return
    for head in ("frozen", "trained"):
        for dtype in ("float32", "bfloat16"):
            found = {way: run(way, dtype, head, options.labels) for way in WAYS}
            plain = found["plain"]
            told = (
                f"{way} {one['seconds'] / plain['seconds']:.2f} of the time, {one['memory'] / plain['memory']:.2f} of "
                f"the memory ({one['seconds']:.3f} s, {one['memory'] / 1e6:.0f} MB)"
                for way, one in found.items()
            )
            print(f"{head} head, {dtype}: " + "; ".join(told), flush=True)


def run(way: str, dtype: str, head: str, labels: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--labels", str(labels), "--one", way, dtype, head]
    return dict(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))


def measure(way: str, dtype: str, trained: bool, labels: int) -> dict[str, float]:
    import torch

    from minipeft.kernels import LOSSES
    from minipeft.kernels.allocator import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(labels, WIDTH, dtype=kind, requires_grad=True)
    weight = torch.empty(VOCABULARY, WIDTH, dtype=kind).normal_(0, 0.02).requires_grad_(trained)
    targets = torch.randint(VOCABULARY, (labels,))
    loss_of: Any = LOSSES.get(way)
    if loss_of is None:
        options = torch.nn.LinearCrossEntropyOptions()

        def loss_of(hidden: Any, weight: Any, targets: Any) -> Any:
            return torch.nn.functional.linear_cross_entropy(hidden, weight, targets, options=options)

    before, seconds = resident("VmRSS"), []
    for _ in range(REPEATS):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        loss_of(hidden, weight, targets).backward()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[2:]), "memory": resident("VmHWM") - before}


if __name__ == "__main__":
    main()
