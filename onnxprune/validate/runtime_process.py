"""An ONNX Runtime session and the timing of its calls, here or in a process of its own.

This file imports nothing of the package, so that `python -P runtime_process.py` starts in a
fraction of a second and holds no memory but ONNX Runtime's and the model's. It then speaks JSON, a
line each way: first what to load, then how often to run it.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

CPU = "CPUExecutionProvider"

CLOCKS: dict[str, Callable[[], int]] = {
    "wall": time.perf_counter_ns,
    "cpu": time.process_time_ns,
}
"""Nanoseconds that have passed, or that this process had a processor core for."""

Burst = Callable[[int], list[int]]
"""Runs a model once untimed and then so many times; nanoseconds of each timed call."""


@dataclass(frozen=True)
class SessionSettings:
    """How a session is opened; all of it can be written as JSON.

    Attributes:
        provider: Full name of the execution provider.
        threads: Threads within an operator; None leaves it to ONNX Runtime.
        graph_level: Name of the level in `onnxruntime.GraphOptimizationLevel`.
        provider_options: Options of the provider, as text.
        config: Session configuration entries of ONNX Runtime.
        libraries: Files of custom operators that the model needs.
    """

    provider: str = CPU
    threads: int | None = None
    graph_level: str = "ORT_ENABLE_ALL"
    provider_options: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    libraries: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The keyword arguments of this object."""
        return asdict(self)


def open_raw(
    runtime: Any, model: str | bytes, settings: SessionSettings, *, profile_prefix: str = ""
) -> Any:
    """An `onnxruntime.InferenceSession`; operators run one after another.

    Args:
        runtime: The onnxruntime module.
        model: Path or serialised model.
        settings: How it is opened.
        profile_prefix: Where ONNX Runtime's profile is to be written; empty for no profile.
    """
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, settings.graph_level)
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = settings.threads or 0
    options.log_severity_level = 4
    for key, value in settings.config.items():
        options.add_session_config_entry(key, value)
    for library in settings.libraries:
        options.register_custom_ops_library(library)
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    named: list[Any] = [
        (settings.provider, settings.provider_options)
        if settings.provider_options
        else settings.provider
    ]
    providers = named if settings.provider == CPU else [*named, CPU]
    return runtime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def host_burst(
    raw: Any, output_names: Sequence[str], feeds: Mapping[str, np.ndarray], clock: str = "wall"
) -> Burst:
    """Bursts of bare calls: inputs from host memory, outputs back in it.

    Args:
        raw: The session.
        output_names: Its outputs.
        feeds: Input name -> array.
        clock: One of `CLOCKS`.
    """
    run, names, values, now = raw.run, list(output_names), dict(feeds), CLOCKS[clock]

    def burst(calls: int) -> list[int]:
        run(names, values)
        elapsed = []
        for _ in range(calls):
            start = now()
            run(names, values)
            elapsed.append(now() - start)
        return elapsed

    return burst


def resident_bytes(key: str) -> int | None:
    """`VmRSS` (memory in use now) or `VmHWM` (its peak) of this process; None where not known."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def serve(requests: TextIO, answers: TextIO) -> None:
    """Load the model of the first line, then answer each further line with the times of a burst.

    Lines: `{model, outputs, names, arrays, settings, cores, clock}`, answered by `{load_ms}` or
    `{error}`; `{calls}`, answered by `{ns, cpu_s, peak_bytes}`. Ends with the requests.
    """
    import onnxruntime

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    request = json.loads(requests.readline())
    try:
        if request["cores"] is not None:
            os.sched_setaffinity(0, request["cores"])
        settings = SessionSettings(**request["settings"])
        if settings.provider != CPU and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        with np.load(request["arrays"], allow_pickle=False) as arrays:
            feeds = {name: arrays[f"arr_{i}"] for i, name in enumerate(request["names"])}
        before = resident_bytes("VmRSS")
        start = time.perf_counter()
        raw = open_raw(onnxruntime, request["model"], settings)
        load_ms = (time.perf_counter() - start) * 1e3
        burst = host_burst(raw, request["outputs"], feeds, request["clock"])
    except Exception as error:
        say(error=str(error))
        return
    say(load_ms=load_ms)
    for line in requests:
        try:
            elapsed = burst(json.loads(line)["calls"])
        except Exception as error:
            say(error=str(error))
            return
        peak = resident_bytes("VmHWM")
        say(
            ns=elapsed,
            cpu_s=time.process_time(),
            peak_bytes=None if peak is None or before is None else max(peak - before, 0),
        )


def main() -> None:
    """Serve on standard input and output; whatever else is printed goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        with contextlib.suppress(BrokenPipeError):
            serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
