"""What fits, before anything is trained: memory from a rehearsal of the step, time from rates measured here."""

import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minipeft.config import GPT2Config
from minipeft.rehearsal import Need, Work, rehearse

BUFFERS = 7
"""What a process holds over what its tensors need, in tensors of the MLP's width: buffers of products, and freed blocks
that the next tensor does not fit in. This and the next number were fitted to `benchmarks/plan.py`."""
LIBRARIES = 150_000_000
"""Bytes that the libraries take once they multiply: code, and what each thread keeps."""
GPU_LIBRARIES = 500_000_000
"""The same on a GPU, whose driver and libraries live in its own memory; not measured by us."""
SAFE = 0.9
"""The share of the memory that there is which a plan uses."""


def needed_bytes(need: Need, on_cpu: bool = True) -> int:
    """What the process will hold at most for this step, beyond what it holds before it has a model."""
    return need.peak + BUFFERS * need.widest + (LIBRARIES if on_cpu else GPU_LIBRARIES)


@dataclass(frozen=True)
class Plan:
    """Work that fits: so many rows at once, and what had to change for it."""

    work: Work
    need: Need
    """Of that many rows."""
    rows: int
    changed: tuple[str, ...] = ()
    """In words for people; empty where the work is as it was asked for."""

    @property
    def parts(self) -> int:
        """Micro-batches of a step."""
        return math.ceil(self.work.batch_size / self.rows)

    @property
    def needed(self) -> int:
        """Bytes that the process will hold."""
        return needed_bytes(self.need, self.work.on_cpu)


def fit(work: Work, memory: int, whole: Need | None = None) -> Plan | None:
    """As many rows at once, in parts of about one size, as fit in so many bytes; None if not one row does.

    `whole` is what the whole batch needs, where that is known. Between one row and all it goes by the line: what a step
    needs grows with its rows, faster and faster if at all.
    """
    whole = whole or rehearse(work)
    room = SAFE * memory
    if needed_bytes(whole, work.on_cpu) <= room:
        return Plan(work, whole, work.batch_size)
    if work.batch_size == 1:
        return None
    part = replace(work, accumulates=True)
    least, most = (needed_bytes(rehearse(replace(part, batch_size=n)), work.on_cpu) for n in (1, work.batch_size))
    if least > room:
        return None
    fitting = 1 + int((work.batch_size - 1) * min(1.0, (room - least) / max(1, most - least)))
    parts = max(2, math.ceil(work.batch_size / fitting))
    rows = math.ceil(work.batch_size / parts)
    return Plan(work, rehearse(replace(part, batch_size=rows)), rows)


def make_fit(work: Work, memory: int, whole: Need | None = None) -> Plan | None:
    """The plan that changes least: fewer rows at once, then bfloat16, recomputing, both, and last shorter texts."""
    plans = (fit(changed, memory, whole if changed == work else None) for changed in _leaner(work))
    found = next((plan for plan in plans if plan), None)
    return None if found is None else replace(found, changed=tuple(_told(work, found)))


def _leaner(work: Work) -> Iterator[Work]:
    """The same work in less and less memory."""
    ways: list[dict[str, object]] = [{}, {"dtype": torch.bfloat16}, {"checkpointing": True}]
    ways.append({**ways[1], **ways[2]})
    tried = []
    for way in ways:
        changed = replace(work, **way)  # type: ignore[arg-type]
        if changed not in tried:
            tried.append(changed)
            yield changed
    while changed.length > 16:
        changed = replace(changed, length=changed.length // 2, scored=max(1, changed.scored // 2))
        yield changed


def _told(asked: Work, plan: Plan) -> Iterator[str]:
    work = plan.work
    if work.length != asked.length:
        yield f"texts of {work.length} tokens"
    if work.dtype != asked.dtype:
        yield "--dtype bfloat16"
    if work.checkpointing != asked.checkpointing:
        yield "--gradient-checkpointing"
    if plan.rows < work.batch_size:
        yield f"--micro-batch {plan.rows}"


def rows_at_once(setting: int | str, work: Work, device: torch.device, processes: int = 1) -> int:
    """What a `micro_batch` setting means for this work: a number, "whole", or "auto" for as many rows as fit.

    `processes` do such work on this machine; if on its CPU, they share its memory.
    """
    if setting == "auto":
        plan = fit(work, available_memory(device) // (processes if device.type == "cpu" else 1))
        if plan is None:
            print("minipeft: not even one row at a time is expected to fit; trying it.", file=sys.stderr)
        return 1 if plan is None else plan.rows
    return work.batch_size if setting == "whole" else min(int(setting), work.batch_size)


def check_micro_batch(setting: int | str) -> None:
    """Raise ValueError unless `rows_at_once` knows what this means."""
    known = isinstance(setting, int) and not isinstance(setting, bool) and setting >= 1
    if not known and setting not in ("whole", "auto"):
        raise ValueError(f'micro_batch is {setting!r}; it can be a number of rows, "whole" or "auto".')


def available_memory(device: torch.device) -> int:
    """Bytes that are free on the device now; of a CPU those that the system can give without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    told = Path("/proc/meminfo")
    if told.exists():
        lines = dict(line.split(":") for line in told.read_text().splitlines())
        return int(min(int(lines["MemAvailable"].split()[0]) * 1024, _left_in_container()))
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 << 30  # nothing tells it: half of what a small machine has


def _left_in_container(told: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that Linux lets this container take yet (control groups, version 2); infinite where it has no limit."""
    try:
        limit, used = ((told / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        kinds = dict(line.split() for line in (told / "memory.stat").read_text().splitlines())
        return math.inf if limit == "max" else float(int(limit) - int(used) + int(kinds["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return math.inf


def bytes_of(text: str) -> int:
    """What "6GB", "6 GiB" or "800MB" means in bytes; without a unit GB. Raises ValueError if it means nothing."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([gm]?)(i?)b?\s*", text, re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise ValueError(f"{text!r} is no size of memory; write it like 6GB or 800MB.")
    base = 1024 if found[3] else 1000
    return round(float(found[1]) * base ** (2 if found[2].lower() == "m" else 3))


def model_flops(config: GPT2Config, tokens: int | float, labels: int | float, trained: bool = True) -> int | float:
    """The model's own operations in a step: k · 24 L D² a token and k · 2 V D a label, what attention adds left out.

    k: 1 forward, 1 backward and, where the weights are `trained`, 1 more. Source: Chowdhery et al. 2022, appendix B.
    """
    L, D, V = config.n_layer, config.n_embd, config.vocab_size
    return (3 if trained else 2) * (24 * L * D**2 * tokens + 2 * V * D * labels)


@dataclass(frozen=True)
class Rates:
    """What a machine was measured to do in a second: operations of matrix products, bytes read and written by a sum."""

    flops: float
    moved: float

    def seconds(self, plan: Plan) -> float:
        """About how long a step of all its parts takes."""
        need, share = plan.need, plan.work.batch_size / plan.rows
        return share * (need.flops / self.flops + need.moved / self.moved)


def measure_rates(config: GPT2Config, dtype: torch.dtype, device: torch.device, rows: int = 1024) -> Rates:
    """What this machine does in a second, from a second of products and sums as this model has them."""
    from minipeft.kernels.mixed_linear import mixed_linear

    D = config.n_embd
    x, weight = (torch.randn(n, D, device=device).to(dtype) for n in (rows, 4 * D))
    wide = torch.randn(rows, 4 * D, device=device).to(dtype)
    product = _seconds(lambda: mixed_linear(x, weight), device)
    other = _seconds(lambda: torch.add(wide, wide), device)
    return Rates(2 * rows * D * 4 * D / product, 3 * wide.nbytes / other)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of some runs, after two to warm up."""
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])
