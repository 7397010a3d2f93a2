"""Which device to compute on."""

import os

import torch


def choose_device(device: str) -> torch.device:
    """The device of that name; "auto" is the fastest there is. Raises ValueError if this machine does not have it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    there += ["cuda"] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    if device not in there:
        raise ValueError(f"device is {device!r}; here it can be auto, {', '.join(there)}.")
    return torch.device(device)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
