"""A tuning step with the padding left out, over the same step with it, by the width of the model and the padding.

    python benchmarks/packing.py

A prefix of 10 before 16 rows of up to 96 tokens, two blocks, fp32. Below 1 leaving it out pays:
`computing.PACKING_PAYS` is where it does: a row's padding · D².
"""

import statistics
import time

import torch

import minipeft as mp
from minipeft.kernels.allocator import keep_freed_memory

WIDTHS, PADDINGS = (192, 384, 768), (2, 8, 24, 48)
ROWS, LONGEST, REPEATS = 16, 96, 9


def main() -> None:
    keep_freed_memory()
    print("| width | " + " | ".join(f"{padding} of {LONGEST} are padding" for padding in PADDINGS) + " |")
    print("|---:|" + "---|" * len(PADDINGS))
    for width in WIDTHS:
        config = mp.GPT2Config(n_layer=2, n_head=width // 32, n_embd=width, n_positions=128, vocab_size=1000)
        tuned = mp.attach(mp.GPT2(config, seed=0), mp.Prefix(10, None)).train()
        cells = []
        for padding in PADDINGS:
            ratio = seconds(tuned, padding, packed=True) / seconds(tuned, padding, packed=False)
            cells.append(f"{ratio:.2f} ({padding * width**2 / 1e6:.1f}e6)")
        print(f"| {width} | " + " | ".join(cells) + " |", flush=True)


def seconds(tuned: mp.Tuned, padding: int, packed: bool) -> float:
    """The median of some steps, in which every row has about this much padding, and one has none."""
    tuned.model.use_packing(packed, always=True)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, (ROWS, LONGEST), generator=draw)
    lengths = LONGEST - torch.randint(padding // 2, 3 * padding // 2 + 1, (ROWS,), generator=draw)
    lengths[0] = LONGEST
    mask = torch.arange(LONGEST) < lengths[:, None]
    labels = tokens.masked_fill(~mask, -100)
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        tuned.loss(tokens, labels, mask).backward()
        found.append(time.perf_counter() - start)
    return statistics.median(found[2:])


if __name__ == "__main__":
    main()
