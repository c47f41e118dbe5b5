"""Does anything but our own errors come out of damaged models?

Each case damages a small or a real model (see `mutations.py`) and hands it to `inspect_model` and
`load`, in a worker process with limits on memory and time. What is expected is success or a
`ModelError`; whatever else happens is listed with its traceback, and fails the run. What the
forward of a model that loads does is counted, but not judged. An interrupt ends the run with the
results so far.

python benchmarks/fuzz.py --cases 5000 --seed 0 MODEL.onnx…
"""

import argparse
import collections
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from mutations import base_models, damaged

_HEADROOM_BYTES = 3 * 2**30
_JUDGED = ("inspect", "load")


def bases(models: list[str]) -> dict[str, bytes]:
    """The models that are damaged, by name."""
    return base_models() | {Path(path).name: Path(path).read_bytes() for path in models}


def work(arguments: argparse.Namespace) -> None:
    """Run cases in this process, with a line of JSON before and after each phase of each."""
    import torch

    import onnxprune
    from onnxprune.errors import ModelError
    from onnxprune.validate import inspect_model

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _limit_memory()
    sources = bases(arguments.models)
    for index in range(arguments.first, arguments.cases):
        _say(index=index, phase="damage", what="")
        what, data = damaged(sources, arguments.seed, index)
        imported = None
        for phase, function in (("inspect", inspect_model), ("load", onnxprune.load)):
            _say(index=index, phase=phase, what=what)
            started = time.perf_counter()
            try:
                result = function(data)
                outcome, detail = "success", None
                imported = result if phase == "load" else None
            except ModelError as error:
                outcome, detail = type(error).__name__, None
            except BaseException as error:
                outcome, detail = f"unexpected {type(error).__name__}", traceback.format_exc()
            seconds = time.perf_counter() - started
            _say(index=index, phase=phase, outcome=outcome, detail=detail, seconds=seconds)
        if imported is not None:
            _say(index=index, phase="forward", what=what)
            _say(index=index, phase="forward", outcome=_forward(imported), detail=None, seconds=0)


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _HEADROOM_BYTES, size + _HEADROOM_BYTES))


def _forward(imported: Any) -> str:
    import torch

    feeds = {}
    for spec in imported.source.inputs:
        shape = [dim if isinstance(dim, int) else 2 for dim in spec.shape or ()]
        if spec.dtype is None or spec.dtype.kind not in "biuf":
            return "no inputs"
        if any(dim > 4096 for dim in shape):
            return "no inputs"
        feeds[spec.name] = torch.ones(shape).to(getattr(torch, spec.dtype.name, torch.float32))
    signal.alarm(5)
    try:
        with torch.no_grad():
            imported.eval()(**feeds)
    except Exception as error:
        return type(error).__name__
    finally:
        signal.alarm(0)
    return "success"


def _expire(*_: object) -> None:
    raise TimeoutError


def _say(**entry: Any) -> None:
    print(json.dumps(entry), flush=True)


class Supervisor:
    """Runs a worker, and starts another one behind a case that kills it or hangs it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.failures: list[dict[str, Any]] = []
        self.slowest: tuple[float, int] = (0.0, -1)

    def run(self) -> None:
        """Run all cases, or those up to an interrupt."""
        first = 0
        try:
            while first < self.arguments.cases:
                first = self._run_worker(first)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)

    def _run_worker(self, first: int) -> int:
        command = [sys.executable, __file__, "--first", str(first)]
        command += ["--cases", str(self.arguments.cases), "--seed", str(self.arguments.seed)]
        worker = subprocess.Popen(
            [*command, *self.arguments.models],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "ONNXPRUNE_FUZZ_WORKER": "1", "OMP_NUM_THREADS": "1"},
        )
        lines: queue.Queue[str | None] = queue.Queue()
        errors: list[str] = []
        threading.Thread(target=_pump, args=(worker.stdout, lines), daemon=True).start()
        threading.Thread(target=lambda: errors.extend(worker.stderr), daemon=True).start()
        current: dict[str, Any] | None = None
        how = None
        while how is None:
            try:
                line = lines.get(timeout=self.arguments.timeout_s + (60 if current is None else 0))
            except KeyboardInterrupt:
                worker.kill()
                raise
            except queue.Empty:
                worker.kill()
                how = "hang"
                break
            if line is None:
                break
            entry = json.loads(line)
            if "what" in entry:
                current = entry
            else:
                self._count({**(current or {}), **entry})
        status = worker.wait()
        if how is None and status == 0:
            return int(self.arguments.cases)
        if current is None:
            raise SystemExit(f"the worker does not start: {''.join(errors)[-2000:]}")
        how = how or (signal.Signals(-status).name if status < 0 else f"exit {status}")
        detail = "".join(errors)[-2000:]
        self._count({**current, "outcome": f"unexpected {how}", "detail": detail, "seconds": 0})
        return int(current["index"]) + 1

    def _count(self, entry: dict[str, Any]) -> None:
        self.counts[entry["phase"]][entry["outcome"]] += 1
        self.slowest = max(self.slowest, (entry["seconds"], entry["index"]))
        if entry["phase"] in _JUDGED and entry["outcome"].startswith("unexpected"):
            self.failures.append(entry)
            print(json.dumps({k: v for k, v in entry.items() if k != "seconds"}), file=sys.stderr)

    def results(self) -> dict[str, Any]:
        """Outcomes by phase, and every failure."""
        return {
            "cases": sum(self.counts["inspect"].values()),
            "seed": self.arguments.seed,
            "outcomes": {phase: dict(c.most_common()) for phase, c in self.counts.items()},
            "slowest": {"seconds": round(self.slowest[0], 2), "index": self.slowest[1]},
            "failures": self.failures,
        }


def _pump(stream: Any, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def main() -> None:
    """Run the cases, and fail if one does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="real models to damage beside the small ones")
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="where to begin")
    parser.add_argument("--timeout-s", type=float, default=30)
    arguments = parser.parse_args()
    if os.environ.get("ONNXPRUNE_FUZZ_WORKER"):
        signal.signal(signal.SIGALRM, _expire)
        work(arguments)
        return
    from record import write_results

    supervisor = Supervisor(arguments)
    supervisor.run()
    settings = {**vars(arguments), "models": [Path(path).name for path in arguments.models]}
    write_results("fuzz", settings, supervisor.results())
    sys.exit(bool(supervisor.failures))


if __name__ == "__main__":
    main()
