"""The machine that measurements were made on."""

import os
import platform
from pathlib import Path
from typing import Any

from onnxprune.validate.session import import_runtime


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
