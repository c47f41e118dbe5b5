"""Paired, interleaved latency: from models and settings to a result.

How calls are timed is in `timing` and `bench_sessions`, what a speedup is in `speedup`.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.random_inputs import random_inputs
from onnxprune.validate.accuracy import check_same_inputs
from onnxprune.validate.bench_sessions import (
    OwnProcesses,
    SharedProcess,
    check_cores,
    peak_memory,
    pinned,
    session_burst,
)
from onnxprune.validate.device_calls import (
    CudaStopwatch,
    device_burst,
    on_stream,
    open_stopwatch,
)
from onnxprune.validate.environment import Neighbours, describe_gpus, describe_machine
from onnxprune.validate.latency_result import BenchResult, completed, summarise
from onnxprune.validate.operator_times import profile_kernels
from onnxprune.validate.runtime_process import CLOCKS, CPU, SessionSettings
from onnxprune.validate.session import ModelSource, PreparedModel, Session, session_settings
from onnxprune.validate.timing import MIN_ROUNDS, Plan, measure


def bench(
    models: Sequence[ModelSource],
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    provider: str | None = None,
    rounds: int | None = None,
    warmup: int | None = None,
    max_seconds: float = 20.0,
    seed: int = 0,
    inputs: Mapping[str, np.ndarray] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    precision: float = 0.01,
    optimization: str = "all",
    provider_options: Mapping[str, str] | None = None,
    processes: bool = False,
    cores: Sequence[int] | None = None,
    device_io: bool = False,
    clock: str = "wall",
    spinning: bool = True,
    profile: bool = False,
) -> BenchResult:
    """Time models side by side; the first is the baseline.

    A call is timed as an application sees it: inputs from host memory, outputs back in it.

    Args:
        models: One or more, with the same inputs.
        batch: Size of the first axis where the model leaves it open.
        shapes: Input name -> whole shape, for other open axes.
        threads: Threads within an operator; None leaves it to ONNX Runtime, or is the number of
            `cores` where these are given.
        provider: Execution provider; None is the CPU.
        rounds: Rounds, at least 5; None measures until the intervals are narrow or the time is up.
        warmup: Untimed rounds at the start of each opening; None warms up until the times are
            steady.
        max_seconds: Time for loading, warm-up and rounds, in seconds; a few rounds are always made.
            Not heeded where `rounds` says how many to make.
        seed: Seed of the inputs, of the order within rounds, and of the bootstrap.
        inputs: Input name -> array, instead of random ones.
        on_progress: Called with (rounds done, rounds expected) after each round.
        precision: Wanted half-width of the 95 % intervals as a share of the ratio, in (0, 1); with
            one model, of its median.
        optimization: Level of graph optimisation: none, basic, extended or all.
        provider_options: Options of the execution provider, such as `trt_fp16_enable`.
        processes: Run each model in a process of its own.
        cores: Processor cores to use; None for all.
        device_io: Keep inputs and outputs on the CUDA device and time by CUDA events.
        clock: `wall`, the time that passes, or `cpu`, the time for which the call has a processor
            core; that is the same on an idle machine, and much less noisy on a busy one. For one
            thread on the CPU.
        spinning: Whether worker threads spin while a call runs, as ONNX Runtime's do by default.
        profile: Find out the time of each operator and layer, in calls of their own.

    Raises:
        UsageError: Inputs that differ between models, an open axis without a size, or a setting
            that makes no sense or is not possible here.
        ModelError: A model cannot be loaded or run.
    """
    _check(models, batch, rounds, max_seconds, precision, processes and device_io)
    if cores is not None:
        check_cores(cores)
        threads = threads if threads is not None else len(cores)
    settings = session_settings(provider, threads, optimization, provider_options, spinning)
    _check_clock(clock, settings)
    stopwatch = open_stopwatch(settings.provider) if device_io else None
    if stopwatch is not None:
        settings = on_stream(settings, stopwatch)
    with contextlib.ExitStack() as stack:
        prepared = [stack.enter_context(PreparedModel(model, settings)) for model in models]
        feeds = _checked_inputs(prepared, inputs, batch, shapes or {}, seed)
        environment = describe_machine() | _describe_settings(settings, feeds)
        opener = _opener(prepared, feeds, stopwatch, clock, cores, processes)
        neighbours = Neighbours()
        with pinned(cores):
            openings = measure(
                opener.open_all,
                Plan(rounds, warmup, precision, max_seconds, seed),
                on_progress=on_progress,
            )
            busy_cores = neighbours.busy_cores(opener.cpu_s)
            kernels = [profile_kernels(model, feeds) if profile else None for model in prepared]
        result = summarise(
            [model.label for model in prepared],
            openings,
            size_bytes=[model.source.size_bytes for model in prepared],
            load_ms=[float(np.median(times)) for times in opener.load_ms],
            environment=environment
            | {
                "precision": precision,
                "clock": clock,
                "spinning": "while a call runs" if spinning else "off",
                "processes": processes,
                "pinned_cores": None if cores is None else list(cores),
                "device_io": device_io,
                "load_average_after": describe_machine()["load_average"],
                "busy_cores_of_others": busy_cores,
            },
            samples_a_call=_samples_a_call(feeds),
            seed=seed,
        )
        memory = _memory(opener, prepared, feeds)
        return completed(result, [model.source for model in prepared], memory, kernels)


def _opener(
    models: Sequence[PreparedModel],
    feeds: Mapping[str, np.ndarray],
    stopwatch: CudaStopwatch | None,
    clock: str,
    cores: Sequence[int] | None,
    processes: bool,
) -> SharedProcess | OwnProcesses:
    if processes:
        return OwnProcesses(models, feeds, cores, clock)
    if stopwatch is not None:
        return SharedProcess(models, device_burst(feeds, stopwatch))
    return SharedProcess(models, session_burst(feeds, clock))


def _memory(
    opener: SharedProcess | OwnProcesses,
    models: Sequence[PreparedModel],
    feeds: Mapping[str, np.ndarray],
) -> list[int | None]:
    """Peak memory of each model."""
    if isinstance(opener, OwnProcesses):
        return [max(peaks, default=None) for peaks in opener.peak_bytes]
    return [peak_memory(model, feeds) for model in models]


def _check(
    models: Sequence[ModelSource],
    batch: int,
    rounds: int | None,
    max_seconds: float,
    precision: float,
    contradiction: bool,
) -> None:
    if not models:
        raise UsageError("there is no model to measure")
    if batch < 1 or max_seconds <= 0 or (rounds is not None and rounds < MIN_ROUNDS):
        raise UsageError(
            f"the batch must be at least 1, rounds at least {MIN_ROUNDS}, and the time above 0",
            got=f"batch {batch}, rounds {rounds}, {max_seconds} seconds",
        )
    if not 0 < precision < 1:
        raise UsageError(
            "the precision must lie between 0 and 1", got=precision, expected="such as 0.02"
        )
    if contradiction:
        raise UsageError(
            "inputs on the device cannot be measured in separate processes",
            remedy="leave out --processes or --device-io",
        )


def _check_clock(clock: str, settings: SessionSettings) -> None:
    if clock not in CLOCKS:
        raise UsageError("no such clock", got=clock, expected=", ".join(CLOCKS))
    if clock == "cpu" and (settings.provider != CPU or settings.threads != 1):
        raise UsageError(
            "the time of a processor core is the latency only for one thread on the CPU",
            got=f"{settings.provider}, threads: {settings.threads or 'default'}",
            remedy="--threads 1, or --clock wall",
        )


def _checked_inputs(
    models: Sequence[PreparedModel],
    inputs: Mapping[str, np.ndarray] | None,
    batch: int,
    shapes: Mapping[str, Sequence[int]],
    seed: int,
) -> dict[str, np.ndarray]:
    """Inputs on which every model runs; a model that cannot run fails here, with its name."""
    sessions = [model.open() for model in models]
    check_same_inputs(sessions)
    feeds = _inputs(sessions[0], inputs, batch, shapes, seed)
    for session in sessions:
        session.run(feeds)
    return feeds


def _inputs(
    session: Session,
    inputs: Mapping[str, np.ndarray] | None,
    batch: int,
    shapes: Mapping[str, Sequence[int]],
    seed: int,
) -> dict[str, np.ndarray]:
    names = [spec.name for spec in session.inputs]
    unknown = sorted((set(shapes) | set(inputs or {})) - set(names))
    missing = [] if inputs is None else sorted(set(names) - set(inputs))
    if unknown or missing:
        raise UsageError(
            "shapes or inputs do not name the model's inputs",
            where=session.label,
            got=f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}",
            expected=", ".join(names),
        )
    if inputs is not None:
        return dict(inputs)
    return random_inputs(session.inputs, batch=batch, shapes=shapes, seed=seed)


def _samples_a_call(feeds: Mapping[str, np.ndarray]) -> int:
    first = next(iter(feeds.values()), np.empty(1))
    return first.shape[0] if first.ndim else 1


def _describe_settings(
    settings: SessionSettings, feeds: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    levels = {"ORT_DISABLE_ALL": "none", "ORT_ENABLE_ALL": "all"}
    level = levels.get(settings.graph_level, settings.graph_level.rpartition("_")[2].lower())
    options = {k: v for k, v in settings.provider_options.items() if k != "user_compute_stream"}
    return {
        "provider": settings.provider,
        "provider_options": options,
        "threads": settings.threads if settings.threads is not None else "default",
        "graph_optimization": level,
        "inputs": {name: list(array.shape) for name, array in feeds.items()},
    } | ({} if settings.provider == CPU else {"gpus": describe_gpus()})
