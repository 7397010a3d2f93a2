"""What `minipeft.kernels.allocator.keep_freed_memory` brings to a training step of nano, with and without in turn.

python benchmarks/allocator.py
"""

import statistics
import subprocess
import sys
import time

PAIRS, STEPS, WARM_UP = 3, 8, 3


def main() -> None:
    if len(sys.argv) > 1:
        print(median_step(keep=sys.argv[1] == "keep"))
        return
    ratios = []
    for _ in range(PAIRS):
        seconds = [float(subprocess.check_output([sys.executable, __file__, which])) for which in ("usual", "keep")]
        ratios.append(seconds[0] / seconds[1])
        print(f"usual {seconds[0]:.3f} s, keeping {seconds[1]:.3f} s a step: {ratios[-1]:.2f} times faster", flush=True)
    print(f"median of {PAIRS} pairs: {statistics.median(ratios):.2f} times faster")


def median_step(keep: bool) -> float:
    """Seconds of a training step, median after warm-up."""
    import torch

    import minipeft as mp
    from minipeft.kernels.allocator import keep_freed_memory
    from minipeft.pretrain import CONFIGS

    if keep:
        keep_freed_memory()
    model = mp.GPT2(CONFIGS["nano"], seed=0)
    tokens = torch.randint(8257, (16, 256), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    times = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_UP:])


if __name__ == "__main__":
    main()
