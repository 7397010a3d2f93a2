"""How much memory a process holds."""

from pathlib import Path


def resident(which: str) -> float:
    """Bytes of this process's resident set now ("VmRSS") or at its highest so far ("VmHWM"); NaN where not on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(which))
    return 1024 * float(line.split()[1])
