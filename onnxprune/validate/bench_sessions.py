"""Loads the models of a bench again and again: in this process, or each in one of its own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import UnsupportedModelError, UsageError
from onnxprune.validate import runtime_process
from onnxprune.validate.runtime_process import Burst, host_burst
from onnxprune.validate.session import PreparedModel, Session

_BALLAST_BYTES = 2**22


class SharedProcess:
    """Opens sessions in this process.

    What is allocated next comes to lie where something of the same size was freed, so memory of a
    random size is taken before each session and held while it is open.

    Args:
        models: The models.
        make_burst: Makes a session's burst.

    Attributes:
        load_ms: Times that each model took to load, in milliseconds.
        cpu_s: Processor time of other processes than this one, in seconds.
    """

    def __init__(
        self, models: Sequence[PreparedModel], make_burst: Callable[[Session], Burst]
    ) -> None:
        self._models = models
        self._make_burst = make_burst
        self.load_ms: list[list[float]] = [[] for _ in models]
        self.cpu_s = 0.0

    @contextlib.contextmanager
    def open_all(self, rng: np.random.Generator) -> Iterator[list[Burst]]:
        """Load all models, in random order; they are released at the end."""
        bursts: dict[int, Burst] = {}
        ballast = []
        for index in rng.permutation(len(self._models)):
            ballast.append(np.ones(int(rng.integers(1, _BALLAST_BYTES)), np.uint8))
            session = self._models[index].open()
            self.load_ms[index].append(session.load_ms)
            bursts[int(index)] = self._make_burst(session)
        yield [bursts[index] for index in range(len(self._models))]


class OwnProcesses:
    """Opens each session in a process of its own; while one works, the others wait for a line.

    Args:
        models: The models.
        feeds: Input name -> array.
        cores: Processor cores that they may use; None for all.
        clock: What times the calls, one of `runtime_process.CLOCKS`.

    Attributes:
        load_ms: Times that each model took to load, in milliseconds.
        peak_bytes: Peak memory of each model's processes, see `Worker.peak_bytes`.
        cpu_s: Processor time of the processes, in seconds.
    """

    def __init__(
        self,
        models: Sequence[PreparedModel],
        feeds: Mapping[str, np.ndarray],
        cores: Sequence[int] | None = None,
        clock: str = "wall",
    ) -> None:
        self._models = models
        self._feeds = feeds
        self._cores = cores
        self._clock = clock
        self.load_ms: list[list[float]] = [[] for _ in models]
        self.peak_bytes: list[list[int]] = [[] for _ in models]
        self.cpu_s = 0.0

    @contextlib.contextmanager
    def open_all(self, rng: np.random.Generator) -> Iterator[list[Burst]]:
        """Start the processes and load the models one after another, in random order."""
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            arrays = Path(folder) / "inputs.npz"
            np.savez(arrays, *self._feeds.values())
            with contextlib.ExitStack() as stack:
                workers = [stack.enter_context(Worker(model.label)) for model in self._models]
                for index in rng.permutation(len(workers)):
                    load_ms = workers[index].load(
                        self._models[index], list(self._feeds), arrays, self._cores, self._clock
                    )
                    self.load_ms[index].append(load_ms)
                yield [worker.burst for worker in workers]
                for index, worker in enumerate(workers):
                    self.cpu_s += worker.cpu_s
                    if worker.peak_bytes is not None:
                        self.peak_bytes[index].append(worker.peak_bytes)


@dataclass
class Worker:
    """A process with one model; see `runtime_process`.

    Attributes:
        label: How messages name the model.
        peak_bytes: Growth of the process's resident memory from before the model was loaded to its
            peak; None before the first burst, and where it is not known.
        cpu_s: Its processor time, in seconds.
    """

    label: str
    peak_bytes: int | None = None
    cpu_s: float = 0.0
    _process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> "Worker":
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(runtime_process.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._process.__exit__(None, None, None)

    def load(
        self,
        model: PreparedModel,
        names: Sequence[str],
        arrays: Path,
        cores: Sequence[int] | None = None,
        clock: str = "wall",
    ) -> float:
        """Load the model; milliseconds that it took.

        Args:
            model: The model.
            names: Names of the inputs.
            arrays: An `.npz` file with them, in this order, as `numpy.savez` names them.
            cores: Processor cores that it may use; None for all.
            clock: What times the calls, one of `runtime_process.CLOCKS`.
        """
        answer = self._ask(
            model=model.path,
            outputs=[spec.name for spec in model.source.outputs],
            names=list(names),
            arrays=str(arrays),
            settings=model.settings.to_json(),
            cores=None if cores is None else list(cores),
            clock=clock,
        )
        return float(answer["load_ms"])

    def burst(self, calls: int) -> list[int]:
        """A burst, see `runtime_process.Burst`."""
        answer = self._ask(calls=calls)
        self.peak_bytes, self.cpu_s = answer["peak_bytes"], answer["cpu_s"]
        return list(answer["ns"])

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise UnsupportedModelError(
                "the model does not run in a process of its own",
                where=self.label,
                got=str(answer["error"]).partition("\n")[0],
            )
        return dict(answer)


def peak_memory(model: PreparedModel, feeds: Mapping[str, np.ndarray]) -> int | None:
    """Memory in bytes that a model takes at most to load and to run, in a process of its own.

    See `Worker.peak_bytes`; None where it cannot be found out.
    """
    alone = OwnProcesses([model], feeds)
    try:
        with alone.open_all(np.random.default_rng(0)) as (burst,):
            burst(1)
    except (OSError, UnsupportedModelError):
        return None
    return max(alone.peak_bytes[0], default=None)


def session_burst(
    feeds: Mapping[str, np.ndarray], clock: str = "wall"
) -> Callable[[Session], Burst]:
    """Makes bursts with inputs from host memory and outputs back in it, see `host_burst`."""
    return lambda session: host_burst(
        session.raw, [spec.name for spec in session.outputs], feeds, clock
    )


def check_cores(cores: Sequence[int]) -> None:
    """Make sure that this process may use these processor cores.

    Raises:
        UsageError: It may not, or this system cannot tie a process to cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("this system cannot tie a process to processor cores")
    allowed = os.sched_getaffinity(0)
    if not cores or not set(cores) <= allowed:
        raise UsageError(
            "these processor cores are not there, or not this process's to use",
            got=", ".join(map(str, cores)) or "none",
            expected=f"of {', '.join(map(str, sorted(allowed)))}",
        )


@contextlib.contextmanager
def pinned(cores: Sequence[int] | None) -> Iterator[None]:
    """Tie this thread, and the threads that it starts meanwhile, to processor cores."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
