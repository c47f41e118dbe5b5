"""The machine that measurements were made on, and who else used it meanwhile."""

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from onnxprune.runtime.library import import_runtime


def describe_machine() -> dict[str, Any]:
    """Processor, cores, governor, load, system, and the versions of Python and ONNX Runtime.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "governor": _governor(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": import_runtime().__version__,
    }


def describe_gpus() -> list[str] | None:
    """Names and drivers of the NVIDIA GPUs; None where `nvidia-smi` is not there or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


class Neighbours:
    """How many cores other programs keep busy, from the kernel's counters (Linux).

    Starts to count when it is made.
    """

    def __init__(self) -> None:
        self._start = self._now()

    def busy_cores(self, elsewhere_s: float = 0.0) -> float | None:
        """Cores that others kept busy on average since the start; None where it is not known.

        Args:
            elsewhere_s: Processor time of our own other processes in between, in seconds.
        """
        now = self._now()
        if now is None or self._start is None:
            return None
        wall, busy, own = (a - b for a, b in zip(now, self._start, strict=True))
        return round(max(busy - own - elsewhere_s, 0.0) / max(wall, 1e-9), 2)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds: wall clock, busy time of all cores, processor time of this process."""
        try:
            fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
            user, nice, system, _idle, _wait, irq, softirq = (int(field) for field in fields[1:8])
            tick = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return None
        busy = (user + nice + system + irq + softirq) / tick
        return time.monotonic(), busy, time.process_time()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _governor() -> str | None:
    try:
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
