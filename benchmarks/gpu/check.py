"""Everything that needs a GPU, in one call of less than ten minutes.

python benchmarks/gpu/check.py --out build/gpu_check.json [--wheels build/wheels]

Every check is a process of its own, so that one that crashes or hangs does not end the others.
Packages of ours that the machine lacks are installed from `--wheels` into a temporary folder; see
`wheels.py`. Without a GPU every check is skipped and the exit code is 0; it is 1 if one fails.

`--device cpu --tiny` tries the code of the checks without a GPU, except what only CUDA can do.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from rows import CHECKS, Check, Outcome, Row, Settings
from wheels import install_missing

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    *("torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy"),
    *("accelerate", "safetensors", "pydantic", "onnxprune"),
)
_PROBE = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "names": names}))
"""


def main() -> int:
    """Run the checks and return the exit code."""
    arguments = _arguments()
    settings = Settings(arguments.device, arguments.tiny, arguments.seed)
    if arguments.child is not None:
        (check,) = (c for c in _selected(arguments.only) if c.module == arguments.child)
        _run_child(check, settings, arguments.out)
        return 0
    deadline = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory(prefix="onnxprune-gpu-") as folder:
        scratch = Path(folder)
        carried = []
        if arguments.wheels is not None:
            carried = install_missing(arguments.wheels, scratch / "site")
        environment = _environment(scratch / "site")
        gpu = _gpu(environment)
        missing = "" if arguments.device == "cpu" else gpu.get("missing", "")
        if missing:
            print(f"{missing}: every check is skipped")
        rows: list[Row] = []
        for check in _selected(arguments.only):
            if missing:
                rows += _skipped(check, missing)
            else:
                rows += _in_process(check, arguments, environment, scratch, deadline)
            _write(arguments, gpu, carried, rows)
    _print_table(rows)
    return 1 if any(row.status == "fail" for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for packages not here")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the checks")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all checks together")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="items whose name holds one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not _selected(arguments.only):
        parser.error(f"no item holds {' or '.join(arguments.only)}")
    if arguments.wheels is not None and not list(arguments.wheels.glob("*.whl")):
        parser.error(f"{arguments.wheels} holds no wheels; benchmarks/gpu/wheels.py fetches them")
    return arguments


def _selected(words: list[str] | None) -> list[Check]:
    """The checks, with those items alone whose name holds one of the words."""
    selected = []
    for check in CHECKS:
        items = {
            item: required
            for item, required in check.items.items()
            if words is None or any(word in item for word in words)
        }
        if items:
            selected.append(replace(check, items=items))
    return selected


def _skipped(check: Check, reason: str) -> list[Row]:
    return [
        Row(item, "skipped", {}, required, 0.0, reason) for item, required in check.items.items()
    ]


def _environment(site: Path) -> dict[str, str]:
    """The environment of the checks: this copy of onnxprune first, carried packages last."""
    inherited = os.environ.get("PYTHONPATH", "")
    paths = [str(ROOT), str(ROOT / "benchmarks"), str(site), *filter(None, [inherited])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _gpu(environment: dict[str, str]) -> dict[str, Any]:
    """The GPUs and their driver; `missing` says why there is none."""
    command = [sys.executable, "-c", _PROBE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"missing": f"PyTorch cannot be used ({reason})"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not found["names"]:
        found["missing"] = f"no GPU (PyTorch {found['torch']} sees no CUDA device)"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        found["driver"] = answer.stdout.strip().partition("\n")[0]
    return found


def _in_process(
    check: Check,
    arguments: argparse.Namespace,
    environment: dict[str, str],
    scratch: Path,
    deadline: float,
) -> list[Row]:
    """The rows of one check, measured by a process that ends when the time is up."""
    left = deadline - time.monotonic()
    used_up = f"the {arguments.seconds:.0f} seconds for all checks are used up"
    if left <= 0:
        return _skipped(check, used_up)
    rows_file = scratch / f"{check.module}.jsonl"
    rows_file.touch()
    command = [
        *(sys.executable, str(Path(__file__).resolve()), "--child", check.module),
        *("--out", str(rows_file), "--device", arguments.device, "--seed", str(arguments.seed)),
        *(["--tiny"] if arguments.tiny else []),
        *(["--only", *arguments.only] if arguments.only else []),
    ]
    print(f"{check.module} ...", flush=True)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        ended = f"its process ended with exit code {process.wait(left)}"
        timed_out = False
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        if process.poll() is None:  # out of time, or interrupted
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
    rows = [Row(**json.loads(line)) for line in rows_file.read_text().splitlines()]
    for row in _skipped(check, used_up)[len(rows) :]:
        status = "skipped" if timed_out else "fail"
        message = used_up if timed_out else ended
        rows.append(Row(row.check, status, {}, row.required, 0.0, message))
    return rows


def _run_child(check: Check, settings: Settings, rows_file: Path) -> None:
    """Measure the items of one check and write a row as soon as it is known."""
    measure = import_module(check.module).measure
    for item, required in check.items.items():
        started = time.perf_counter()
        try:
            outcome = measure(item, settings)
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[:500]}"
            outcome = Outcome(False, {}, text)
        seconds = round(time.perf_counter() - started, 2)
        status = {True: "pass", False: "fail", None: "skipped"}[outcome.passed]
        row = Row(
            item,
            status,  # type: ignore[arg-type]
            outcome.measured,
            required,
            seconds,
            outcome.message,
            outcome.details,
        )
        with rows_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row.to_json()) + "\n")


def _write(
    arguments: argparse.Namespace, gpu: dict[str, Any], carried: list[str], rows: list[Row]
) -> None:
    """Write the result so far, so that a call that is cut off leaves it."""
    if arguments.out is None:
        return
    record = {
        "benchmark": "gpu_check",
        "command": shlex.join(["python", "benchmarks/gpu/check.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "gpu": gpu,
        "cpu_count": os.cpu_count(),
        "os": platform.platform(),
        "versions": {"python": platform.python_version(), **_versions()},
        "carried_packages": carried,
        "settings": {
            key: getattr(arguments, key) for key in ("device", "tiny", "seconds", "only", "seed")
        },
        "passed": not any(row.status == "fail" for row in rows),
        "checks": [row.to_json() for row in rows],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _print_table(rows: list[Row]) -> None:
    """Columns of plain text; the message of what did not pass stands below its line."""
    lines = [
        (
            row.status,
            row.check,
            ", ".join(f"{name} {value:.4g}" for name, value in row.measured.items()) or "-",
            row.required,
            f"{row.seconds:.1f} s",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for row, line in zip(rows, lines, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
        if row.message and row.status != "skipped":
            print(f"    {row.message}")
    for reason in dict.fromkeys(row.message for row in rows if row.status == "skipped"):
        print(f"skipped: {reason}")
    counts = {s: sum(row.status == s for row in rows) for s in ("pass", "fail", "skipped")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
