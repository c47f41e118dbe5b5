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
ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("onnxprune", "numpy", "onnx", "torch", "accelerate", "onnxruntime-gpu", "onnxruntime")


def write_results(
    name: str, settings: dict[str, Any], results: Any, folder: Path = RESULTS
) -> Path:
    """Write `FOLDER/NAME.json` with settings, versions, machine, command line and date."""
    path = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "command": command_line(sys.argv),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version(), **_versions()},
        "settings": settings,
        "results": results,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    return path


def command_line(arguments: list[str]) -> str:
    """The command as anyone would type it: files outside of the repository by name alone."""
    script, here = Path(arguments[0]).resolve(), Path(__file__).resolve().parent
    inside = script.relative_to(here) if script.is_relative_to(here) else Path(script.name)
    script_name = f"benchmarks/{inside.as_posix()}"
    return " ".join(["python", script_name, *map(_portable, arguments[1:])])


def _portable(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    path = Path(value)
    if not (path.is_absolute() or path.exists()):
        return argument
    path = path.resolve()
    inside = path.is_relative_to(ROOT)
    return f"{option}{equals}{path.relative_to(ROOT).as_posix() if inside else path.name}"


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
