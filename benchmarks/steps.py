"""Training steps, timed: what `train.py` and `pretrain.py` measure of either side."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from resident import resident

WARM_UP = 2


def beside(script: str, **one: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `script --one` measures of ours, and how it compares with theirs; a process each.

    Theirs goes first, since it may write the start that ours reads.
    """
    found = {}
    for who in ("theirs", "ours"):
        command = [sys.executable, "-W", "ignore", script, "--one", json.dumps({"who": who, **one})]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found[who] = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = found["ours"], found["theirs"]
    return ours, {
        "faster": theirs["seconds"] / ours["seconds"],
        "memory_ratio": ours["memory"] / theirs["memory"],
        "losses_apart": max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
        "ours": {key: ours[key] for key in ("seconds", "memory")},
        "theirs": {key: theirs[key] for key in ("seconds", "memory")},
    }


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
