"""Attention of ragged texts behind a learned prefix, forward and backward, in every way that PyTorch has here.

    python benchmarks/attention.py

GPT-2 small's twelve heads of 64. `explicit` writes the softmax out, `fused` is PyTorch's kernel with a mask, both on
padded texts; `rows` is the kernel once for each text, which has the prefix copied before its keys; `split` is what
training uses: the kernel on the text alone, the prefix by itself, joined by the log-sum-exp. Each is a process of its
own. FlexAttention has no backward pass on a CPU, so it is not among them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

CASES = {
    "8 texts of 85 to 128, prefix 20": ([128, 120, 114, 108, 106, 102, 99, 85], 20),
    "8 texts of 32 to 64, prefix 10": ([64, 58, 52, 48, 46, 44, 40, 32], 10),
    "4 texts of 512, prefix 20": ([512] * 4, 20),
    "1 text of 1,000, prefix 20": ([1000], 20),
}
WAYS = ("explicit", "fused", "rows", "split")
H, DH = 12, 64
REPEATS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    print("| texts | type | " + " | ".join(f"{way}, ms" for way in WAYS) + " | split / fused |")
    print("|---|---|" + "---:|" * (len(WAYS) + 1))
    for case in CASES:
        for dtype in ("float32", "bfloat16"):
            found = {way: run(way, case, dtype) for way in WAYS}
            cells = " | ".join(f"{1000 * found[way]:.1f}" for way in WAYS)
            print(f"| {case} | {dtype} | {cells} | {found['split'] / found['fused']:.2f} |", flush=True)


def run(way: str, case: str, dtype: str) -> float:
    done = subprocess.run([sys.executable, __file__, "--one", way, case, dtype], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


def measure(way: str, case: str, dtype: str) -> float:
    """Seconds of one forward and backward pass, the median."""
    import torch

    from minipeft.attention import ATTENTION, FixedMemory, Rows, attend_row_by_row, lower_right_mask
    from minipeft.kernels.split_attention import split_attention

    lengths, P = CASES[case]
    kind = getattr(torch, dtype)
    B, T, N = len(lengths), max(lengths), sum(lengths)
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, 1, H, P, DH, generator=draw).requires_grad_() for _ in range(2))
    memory = FixedMemory(keys, values)
    packed = way in ("rows", "split")
    shape = (1, N, 3 * H * DH) if packed else (B, T, 3 * H * DH)
    qkv = torch.randn(shape, generator=draw).to(kind).requires_grad_()
    real = torch.arange(T) < torch.tensor(lengths)[:, None]
    mask = lower_right_mask(T, P + T, torch.cat([torch.ones(B, P, dtype=torch.bool), real], dim=1))

    def once() -> Any:
        if way == "split":
            return split_attention(qkv, H, tuple(lengths), 0, memory.of(0))
        q, k, v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        k, v = memory.extend(0, k, v)
        if way == "rows":
            return attend_row_by_row(ATTENTION["fused"], q, k, v, Rows(tuple(lengths), 0, False), 0.0)
        return ATTENTION[way](q, k, v, mask, 0.0)

    slope = torch.ones_like(once())
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        once().backward(slope)
        taken.append(time.perf_counter() - start)
        qkv.grad = keys.grad = values.grad = None
    return statistics.median(taken[2:])


if __name__ == "__main__":
    main()
