"""What a run took of the machine, and which code it was."""

import subprocess
import time
from importlib.metadata import version
from pathlib import Path


class Meter:
    """From here on: the processor's seconds, of all cores, and the highest memory, where it can be told (Linux)."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
            self._forgot = True
        except OSError:
            self._forgot = False
        self._started = time.process_time()

    def row(self) -> dict[str, float | int | None]:
        """What it took until now, as results have it; None for what cannot be told."""
        seconds = round(time.process_time() - self._started, 2)
        return {"seconds": seconds, "peak_bytes": _peak_bytes() if self._forgot else None}


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


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
