"""Paired, interleaved latency: what a speedup is, with an interval, or that there is none.

How the calls are timed is in `timing`; here are the sessions, the statistics and the verdict.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.validate.accuracy import check_same_inputs
from onnxprune.validate.environment import describe_machine
from onnxprune.validate.inputs import random_inputs
from onnxprune.validate.session import ModelSource, Session, open_session
from onnxprune.validate.timing import measure

EQUAL_WITHIN = 0.03
"""Ratios within this of 1 make no difference worth the name."""

CONFIDENCE = 0.95
_RESAMPLES = 2000
_CHUNK = 2**20


@dataclass(frozen=True)
class Speedup:
    """Latency of the baseline divided by that of a model; above 1 the model is faster.

    Attributes:
        ratio: Median of the rounds' ratios.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
    """

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`same`, `faster`, `slower` or `unclear`.

        The same is what lies within `EQUAL_WITHIN` of 1 with its whole interval, and an interval
        that includes 1 and is narrower than ±`EQUAL_WITHIN`.
        """
        if self.low >= 1 - EQUAL_WITHIN and self.high <= 1 + EQUAL_WITHIN:
            return "same"
        if self.low > 1:
            return "faster"
        if self.high < 1:
            return "slower"
        return "same" if self.conclusive else "unclear"

    @property
    def conclusive(self) -> bool:
        """Whether the interval excludes 1 or is narrower than ±3 %."""
        narrow = self.high - self.low <= 2 * EQUAL_WITHIN
        return self.low > 1 or self.high < 1 or narrow


@dataclass(frozen=True)
class ModelLatency:
    """What was measured of one model.

    Attributes:
        path: The model.
        latency_ms: `median`, `p50`, `p90`, `p99` and `mean` of a call, in milliseconds.
        samples: Milliseconds of each round's call, in the order of the rounds.
        size_bytes: Size of the file with its external data.
        load_ms: Time to read and load it, in milliseconds.
        speedup: Against the first model; of the first itself, 1.
    """

    path: str
    latency_ms: dict[str, float]
    samples: list[float] = field(repr=False)
    size_bytes: int
    load_ms: float
    speedup: Speedup


@dataclass(frozen=True)
class BenchResult:
    """What `bench` measured; the first model is the baseline.

    Attributes:
        conclusive: Whether every compared model's interval excludes 1 or is narrower than ±3 %.
        environment: Machine, runtime and settings.
        models: One entry a model.
        verdict: The result in words, a sentence a model.
    """

    conclusive: bool
    environment: dict[str, Any]
    models: list[ModelLatency]
    verdict: str

    def to_json(self, *, with_samples: bool = False) -> dict[str, Any]:
        """The object that `bench --json` prints, with every round's times if asked for."""
        models = []
        for model in self.models:
            entry: dict[str, Any] = {
                "path": model.path,
                "latency_ms": model.latency_ms,
                "speedup": {
                    "ratio": model.speedup.ratio,
                    "low": model.speedup.low,
                    "high": model.speedup.high,
                },
                "size_bytes": model.size_bytes,
                "load_ms": model.load_ms,
            }
            models.append(entry | ({"samples": model.samples} if with_samples else {}))
        return {
            "conclusive": self.conclusive,
            "verdict": self.verdict,
            "environment": self.environment,
            "models": models,
        }


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
) -> BenchResult:
    """Time models side by side; the first is the baseline.

    A call is timed as an application sees it: inputs from host memory, outputs back in it.

    Args:
        models: One or more, with the same inputs.
        batch: Size of the first axis where the model leaves it open.
        shapes: Input name -> whole shape, for other open axes.
        threads: Threads within an operator; None leaves it to ONNX Runtime.
        provider: Execution provider; None is the CPU.
        rounds: Timed calls of each model; None measures until the intervals are narrow (±0.5 %) or
            the time is up.
        warmup: Untimed calls of each model before; None warms up until the times are steady.
        max_seconds: Time for warm-up and rounds, in seconds; a few rounds are always made. Not
            heeded where `rounds` says how many to make.
        seed: Seed of the inputs, of the order within rounds, and of the bootstrap.
        inputs: Input name -> array, instead of random ones.
        on_progress: Called with (rounds done, rounds expected) after each round.

    Raises:
        UsageError: Inputs that differ between models, or an open axis without a size.
        ModelError: A model cannot be loaded or run.
    """
    if not models:
        raise UsageError("there is no model to measure")
    if min(batch, 1 if rounds is None else rounds) < 1 or max_seconds <= 0:
        raise UsageError(
            "batch and rounds must be at least 1, and the time above 0",
            got=f"batch {batch}, rounds {rounds}, {max_seconds} seconds",
        )
    opened = [_open_timed(model, provider, threads) for model in models]
    sessions = [session for session, _ in opened]
    check_same_inputs(sessions)
    feeds = _checked_inputs(sessions[0], inputs, batch, shapes or {}, seed)
    calls = [_call(session, feeds) for session in sessions]
    for session in sessions:
        session.run(feeds)  # a model that cannot run fails here, with its name
    times = measure(
        calls,
        rounds=rounds,
        warmup=warmup,
        max_seconds=max_seconds,
        seed=seed,
        on_progress=on_progress,
    )
    return summarise(
        [session.label for session in sessions],
        times,
        size_bytes=[session.size_bytes for session in sessions],
        load_ms=[load_ms for _, load_ms in opened],
        environment=describe_machine()
        | {
            "provider": sessions[0].provider,
            "threads": threads if threads is not None else "default",
            "graph_optimization": "all",
            "inputs": {name: list(array.shape) for name, array in feeds.items()},
            "rounds": len(times),
        },
        seed=seed,
    )


def _open_timed(
    model: ModelSource, provider: str | None, threads: int | None
) -> tuple[Session, float]:
    start = time.perf_counter()
    session = open_session(model, provider, threads)
    return session, (time.perf_counter() - start) * 1e3


def _call(session: Session, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """The bare call that is timed: no look-ups, no error handling of ours."""
    run, names, values = session.raw.run, [spec.name for spec in session.outputs], dict(feeds)
    return lambda: run(names, values)


def summarise(
    paths: Sequence[str],
    times: np.ndarray,
    *,
    size_bytes: Sequence[int],
    load_ms: Sequence[float],
    environment: dict[str, Any],
    seed: int,
) -> BenchResult:
    """Turn times into latencies, speedups and a verdict.

    Args:
        paths: The models; the first is the baseline.
        times: Milliseconds, `(rounds, len(paths))`.
        size_bytes: Of each model.
        load_ms: Of each model, in milliseconds.
        environment: Goes into the result.
        seed: Seed of the bootstrap.
    """
    models = [
        ModelLatency(
            path,
            _percentiles(times[:, index]),
            samples=times[:, index].tolist(),
            size_bytes=size_bytes[index],
            load_ms=load_ms[index],
            speedup=speedup(times[:, 0], times[:, index], seed) if index else Speedup(1, 1, 1),
        )
        for index, path in enumerate(paths)
    ]
    return BenchResult(
        all(model.speedup.conclusive for model in models[1:]),
        environment,
        models,
        "\n".join(_sentence(model) for model in models[1:]) or "one model, nothing to compare",
    )


def _percentiles(times: np.ndarray) -> dict[str, float]:
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return {"median": p50, "p50": p50, "p90": p90, "p99": p99, "mean": float(times.mean())}


def speedup(baseline: np.ndarray, model: np.ndarray, seed: int) -> Speedup:
    """Median of the rounds' ratios with a bootstrap interval over rounds.

    The interval is the percentile bootstrap of the median (Efron and Tibshirani 1993, chapter 13).

    Args:
        baseline: Milliseconds of the baseline in each round, `(rounds,)`.
        model: Milliseconds of the model in the same rounds, `(rounds,)`.
        seed: Seed of the resampling.
    """
    ratios = baseline / model
    rng = np.random.default_rng(seed)
    count = len(ratios)
    rows = max(1, _CHUNK // count)
    medians = np.concatenate(
        [
            np.median(ratios[rng.integers(count, size=(min(rows, _RESAMPLES - start), count))], 1)
            for start in range(0, _RESAMPLES, rows)
        ]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Speedup(float(np.median(ratios)), float(low), float(high))


def _sentence(model: ModelLatency) -> str:
    result = model.speedup
    interval = f"{result.ratio:.3f}x, 95 % interval {result.low:.3f} to {result.high:.3f}"
    texts = {
        "same": "no speedup: as fast as the baseline within "
        f"{max(result.high - 1, 1 - result.low):.1%}",
        "faster": "faster than the baseline",
        "slower": "slower than the baseline",
        "unclear": "no speedup shown: the interval includes 1, and the machine is too noisy, or "
        "the time too short, to conclude",
    }
    return f"{model.path}: {texts[result.verdict]} ({interval})"


def _checked_inputs(
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
