"""Results files: what was measured, with everything that is needed to measure it again."""

import datetime
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxprune.validate import describe_machine

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("onnxprune", "numpy", "onnx", "torch", "accelerate", "onnxruntime-gpu", "onnxruntime")


def write_results(
    name: str, settings: dict[str, Any], results: Any, folder: Path = RESULTS
) -> Path:
    """Write `FOLDER/NAME.json` with settings, versions, machine, command line and date."""
    path = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "command": " ".join(["python", _script(), *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version(), **_versions()},
        "settings": settings,
        "results": results,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    return path


def _script() -> str:
    """The script that runs, as its path in the repository."""
    script, here = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parent
    inside = script.relative_to(here) if script.is_relative_to(here) else Path(script.name)
    return f"benchmarks/{inside.as_posix()}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum of repeated measurements."""
    ordered = sorted(values)
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}
