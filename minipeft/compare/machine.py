"""What a run took of which machine, and which code it was."""

import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import torch

from minipeft.kernels.machine import CPU_NAME


class Meter:
    """From here on: seconds and the highest memory, and the memory that was taken already.

    On a CPU the seconds are the processor's, of all cores, and the memory is the process's, with PyTorch, data and
    model in it, where it can be told (Linux). On CUDA the seconds are those that pass until the device has done its
    work, so that runs beside this one lengthen them, and the memory is what PyTorch took there.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._cuda = torch.device(device) if torch.device(device).type == "cuda" else None
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before: int | None = torch.cuda.memory_allocated(self._cuda)
            self._started = time.perf_counter()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
            self._forgot = True
        except OSError:
            self._forgot = False
        self._before = _status_bytes("VmRSS") if self._forgot else None
        self._started = time.process_time()

    def row(self) -> dict[str, float | int | None]:
        """What it took until now, as results have it; None for what cannot be told."""
        peak: int | None
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            seconds, peak = time.perf_counter() - self._started, torch.cuda.max_memory_allocated(self._cuda)
        else:
            seconds, peak = time.process_time() - self._started, _status_bytes("VmHWM") if self._forgot else None
        return {"seconds": round(seconds, 2), "peak_bytes": peak, "bytes_before": self._before}


def commit() -> str:
    """The commit of the checkout that runs, with a + if files differ from it; else the version of the package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return version("minipeft")
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def machine(device: str) -> str:
    """What it ran on, in words: processor or GPU, PyTorch, threads."""
    if torch.device(device).type == "cuda":
        products = ", TF32" if torch.get_float32_matmul_precision() != "highest" else ""
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}{products}"
    name = CPU_NAME or platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, PyTorch {torch.__version__}, {threads} thread{'s' * (threads != 1)}"


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
