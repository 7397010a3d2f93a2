"""Training steps, timed: what `train.py` and `pretrain.py` measure of either side."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from resident import resident

WARM_UP = 2


def measured(
    losses: Iterable[Callable[[], Any]], parameters: Sequence[Any], before: float, clip: float | None = None
) -> dict[str, Any]:
    """Seconds of a step (the median of those after the warm-up), memory in bytes beyond `before`, and every loss."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set counts from here
    seconds, values = [], []
    for loss_of in losses:
        start = time.perf_counter()
        loss = loss_of()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        values.append(loss.item())
        del loss
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "memory": resident("VmHWM") - before,
        "losses": values,
    }
