"""What `bench` gives: what was measured of each model, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.model import OnnxModel
from onnxprune.validate.bench_verdict import reason, sentence
from onnxprune.validate.layer_costs import ModelCost, model_cost
from onnxprune.validate.operator_times import KernelTime, OperatorTime, operator_times
from onnxprune.validate.report_format import numbered
from onnxprune.validate.speedup import Speedup, round_ratios, speedup


@dataclass(frozen=True)
class ModelLatency:
    """What was measured of one model.

    Attributes:
        path: The model.
        latency_ms: `median`, `p50`, `p90`, `p99` and `mean` of a call, in milliseconds.
        samples: Milliseconds of the timed calls in the order of the rounds; models of one result
            have equally many, and those at the same place belong to the same round.
        size_bytes: Size of the file with its external data.
        load_ms: Time that ONNX Runtime takes to load it, in milliseconds; the median over openings.
        speedup: Against the first model; of the first itself, 1.
        throughput_per_s: Samples in a second: size of the first axis of the first input / mean.
        peak_memory_bytes: Host memory that it takes at most to load and to run, beyond what ONNX
            Runtime takes without a model; None if not measured.
        reason: Why there is no speedup and what would help; None where there is one.
        operators: Time by operator, if it was asked for.
        cost: What each layer costs, if that was asked for.
        quantiles_ms: The distribution of `samples`: the least, every hundredth and the largest.
        ratio_quantiles: The same of each round's ratio, latency of the first model / of this one.
    """

    path: str
    latency_ms: dict[str, float]
    samples: list[float] = field(repr=False)
    size_bytes: int
    load_ms: float
    speedup: Speedup
    throughput_per_s: float | None = None
    peak_memory_bytes: int | None = None
    reason: str | None = None
    operators: list[OperatorTime] | None = field(default=None, repr=False)
    cost: ModelCost | None = field(default=None, repr=False)
    quantiles_ms: list[float] = field(default_factory=list, repr=False)
    ratio_quantiles: list[float] = field(default_factory=list, repr=False)

    def to_json(self, *, with_samples: bool = False) -> dict[str, Any]:
        """An entry of `models` in what `bench --json` prints."""
        values = asdict(self) | {"verdict": self.speedup.verdict}
        if not with_samples:
            del values["samples"]
        return values


@dataclass(frozen=True)
class BenchResult:
    """What `bench` measured; the first model is the baseline.

    Attributes:
        conclusive: Whether every compared model's interval excludes 1 or is narrower than ±3 %.
        environment: Machine, runtime and settings.
        models: One entry a model.
        verdict: The result in words, a line a model.
    """

    conclusive: bool
    environment: dict[str, Any]
    models: list[ModelLatency]
    verdict: str

    def to_json(self, *, with_samples: bool = False) -> dict[str, Any]:
        """The object that `bench --json` prints, with every timed call if asked for."""
        return {
            "conclusive": self.conclusive,
            "verdict": self.verdict,
            "environment": self.environment,
            "models": [model.to_json(with_samples=with_samples) for model in self.models],
        }


def batches_json(results: Mapping[int, BenchResult]) -> dict[str, Any]:
    """What `bench --json` prints of one or more batch sizes.

    Args:
        results: Batch size -> what was measured, in the order asked for.

    Returns:
        The object of the first; of several with `batches`, each with its size as `batch`.
    """
    objects = [{"batch": size} | result.to_json() for size, result in results.items()]
    first = next(iter(results.values())).to_json()
    return first | ({"batches": objects} if len(objects) > 1 else {})


def summarise(
    paths: Sequence[str],
    openings: Sequence[np.ndarray],
    *,
    size_bytes: Sequence[int],
    load_ms: Sequence[float],
    environment: dict[str, Any],
    samples_a_call: int = 1,
    seed: int,
) -> BenchResult:
    """Turn times into latencies, speedups and a verdict.

    Args:
        paths: The models; the first is the baseline.
        openings: Milliseconds, each `(rounds, len(paths), calls)`.
        size_bytes: Of each model.
        load_ms: Of each model, in milliseconds.
        environment: Goes into the result.
        samples_a_call: Samples that a call processes.
        seed: Seed of the bootstrap.
    """
    models = []
    for index, path in enumerate(paths):
        samples = np.concatenate([times[:, index].ravel() for times in openings])
        latency_ms = _percentiles(samples)
        models.append(
            ModelLatency(
                path,
                latency_ms,
                samples=samples.tolist(),
                size_bytes=size_bytes[index],
                load_ms=load_ms[index],
                speedup=speedup(openings, index, seed) if index else Speedup(1, 1, 1),
                throughput_per_s=samples_a_call * 1e3 / latency_ms["mean"],
                quantiles_ms=_distribution(samples),
                ratio_quantiles=_distribution(round_ratios(openings, index)),
            )
        )
    counts = {
        "rounds": sum(len(times) for times in openings),
        "openings": len(openings),
        "calls_a_round": openings[0].shape[2],
    }
    conclusive = all(model.speedup.conclusive for model in models[1:])
    return BenchResult(conclusive, environment | counts, models, _verdict(models))


def completed(
    result: BenchResult,
    sources: Sequence[OnnxModel],
    memory: Sequence[int | None],
    kernels: Sequence[list[KernelTime] | None],
) -> BenchResult:
    """The result with memory, operators, layers, and the reasons why models are not faster.

    Args:
        result: What `summarise` made of the times.
        sources: The models.
        memory: Peak memory of each, in bytes.
        kernels: The profile of each, where that was asked for.
    """
    models = []
    for index, entry in enumerate(result.models):
        why = None
        if index:
            why = reason(entry.speedup, sources[index], result.environment)
        profile = kernels[index]
        models.append(
            replace(
                entry,
                peak_memory_bytes=memory[index],
                operators=None if profile is None else operator_times(profile),
                cost=None if profile is None else model_cost(sources[index].proto, profile),
                reason=why,
            )
        )
    return replace(result, models=models, verdict=_verdict(models))


def _verdict(models: Sequence[ModelLatency]) -> str:
    labels = numbered([model.path for model in models])
    lines = [
        sentence(label, model.speedup, model.reason)
        for label, model in zip(labels[1:], models[1:], strict=True)
    ]
    return "\n".join(lines) or "one model, nothing to compare"


def _distribution(values: np.ndarray) -> list[float]:
    """The least, every hundredth and the largest value, with six significant digits."""
    return [float(f"{value:.6g}") for value in np.percentile(values, np.arange(101))]


def _percentiles(times: np.ndarray) -> dict[str, float]:
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return {"median": p50, "p50": p50, "p90": p90, "p99": p99, "mean": float(times.mean())}
