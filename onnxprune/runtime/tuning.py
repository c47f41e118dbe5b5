"""Choosing by measurement: what is fastest on this machine."""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.errors import OnnxpruneError
from onnxprune.files import atomic_write_text
from onnxprune.random_inputs import random_inputs
from onnxprune.runtime.compiler import CompiledModel, Source, read_plain, replaced
from onnxprune.runtime.cost import Thresholds
from onnxprune.runtime.front import optimized
from onnxprune.runtime.layers import Layer
from onnxprune.runtime.library import import_runtime, instruction_set, library_path
from onnxprune.runtime.plan import CompileOptions, Plan, SampleRule
from onnxprune.runtime.rewriting import layer_models
from onnxprune.runtime.sessions import open_proto
from onnxprune.runtime.sizes import shapes_at
from onnxprune.version import __version__

LEAST_GAIN = 1.02
"""A compiled model that is not faster than its source by this factor is not worth a library."""

_CANDIDATES = (1.0, 1.25, 1.6, 2.2, 3.5)
"""Least speedups of a layer: what a layer gains alone, its neighbours may lose by other layouts."""

_OTHER_WAY: dict[str, SampleRule] = {"together": "split", "split": "together"}
_ANYTHING_SPARSE = Thresholds.any_size(0.01)
_LAYER_SHARE = 0.6
_ROUNDS = 15
_MOST_ROUNDS = 0.75
"""Share of the rounds in which a model is the faster one that takes another's place."""


class OutOfTime(Exception):
    """The time for measuring is used up."""


def tune(
    source: Source,
    options: CompileOptions | None = None,
    *,
    threads: int | None = None,
    seconds: float = 20.0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
    clock: Callable[[], float] = time.perf_counter,
) -> CompiledModel:
    """Compile a model so that it is as fast as possible on this machine.

    Each layer with zeros is timed dense and sparse. Then whole models are timed in turn: the
    source, what `options` choose, and what the layers' speedups suggest, for several least
    speedups. What `options` choose is kept unless another is faster in most of the rounds. Times of
    layers are kept in the user's cache folder, by machine and layer.

    Args:
        source: The model, usually a pruned one.
        options: What may be replaced, and the rule for layers that time does not suffice for.
        threads: Threads within an operator; None leaves it to ONNX Runtime.
        seconds: Longest time to measure.
        shapes: Input name -> whole shape, for axes that the model leaves open.
        on_progress: Called with the share of the time that is used up.
        clock: Seconds of a clock that does not go back.

    Raises:
        ModelFileError: The file is missing, damaged or not ONNX.
        UnsupportedModelError: It is compiled already, or ONNX Runtime cannot load it.
        UsageError: An open axis has no size.
        MissingKernelsError: The library of sparse kernels is not there.
    """
    options = replace(options or CompileOptions(), threads=threads)
    loaded = read_plain(source)
    feeds = random_inputs(loaded.inputs, shapes=shapes)
    front = optimized(loaded)
    deadline = _Deadline(seconds, clock, on_progress)
    timer = _LayerTimer(threads or 0, deadline)
    times = timer.measure(front, options, {name: array.shape for name, array in feeds.items()})

    def planned(least: float | None, samples: SampleRule) -> Plan:
        return Plan(_copy(front), replace(options, samples=samples), times, least)

    plans = [(planned(least, options.samples), least) for least in (None, *_CANDIDATES)]
    distinct: dict[frozenset[tuple[int, str]], tuple[Plan, float | None]] = {}
    for plan, least in plans:  # that of the options first
        key = frozenset((number, layer.kind) for number, layer in plan.chosen.items())
        if key:
            distinct.setdefault(key, (plan, least))
    leasts = [least for _, least in distinct.values()]
    candidates = [replaced(loaded, plan) for plan, _ in distinct.values()]
    best = _fastest([loaded.proto, *(c.proto for c in candidates)], feeds, threads or 0, deadline)
    if best == 0:
        plan = Plan(front, options, times)
        plan.leave_dense("the whole model is not faster with sparse kernels")
        return replaced(loaded, plan)
    found = candidates[best - 1]
    if options.samples != "auto" or all(array.shape[:1] in ((), (1,)) for array in feeds.values()):
        return found
    other = replaced(loaded, planned(leasts[best - 1], _OTHER_WAY[found.record.samples]))
    if found.record.samples == other.record.samples:
        return found
    ways = [found, other]
    chosen = ways[_fastest([way.proto for way in ways], feeds, threads or 0, deadline, plain=0)]
    if chosen.record.samples == "split":
        return chosen
    return chosen.with_samples_reason("one after the other, they were measured to be no faster")


class _Deadline:
    """How much time is left."""

    def __init__(
        self, seconds: float, clock: Callable[[], float], on_progress: Callable[[float], None]
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._start = clock()
        self._on_progress = on_progress

    def check(self, share: float = 1.0) -> None:
        """Go on, if less than this share of the time is used up."""
        used = (self._clock() - self._start) / self._seconds
        self._on_progress(min(used, 1.0))
        if used >= share:
            raise OutOfTime


def _copy(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _fastest(
    protos: Sequence[ModelProto],
    feeds: Mapping[str, np.ndarray],
    threads: int,
    deadline: _Deadline,
    plain: int = 1,
) -> int:
    """Index of the fastest model; an earlier one unless a later one is clearly faster.

    The first `plain` models need no sparse kernels.
    """
    sessions = [
        open_proto(proto, kernels=index >= plain, threads=threads)
        for index, proto in enumerate(protos)
    ]
    times = _times([partial(s.run, None, dict(feeds)) for s in sessions], deadline, 1.0)
    later = np.argsort(np.median(times[:, 2:], axis=0), kind="stable") + 2
    best = 0
    for index in (*range(1, min(2, len(protos))), *later.tolist()):
        gains = times[:, best] / times[:, index]
        if np.median(gains) > LEAST_GAIN and np.mean(gains > 1) >= _MOST_ROUNDS:
            best = index
    return best


def _times(calls: Sequence[Callable[[], object]], deadline: _Deadline, share: float) -> np.ndarray:
    """Times in milliseconds, in turn, `(rounds, calls)`; three rounds at least."""
    elapsed: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for done in range(_ROUNDS):
        for times, call in zip(elapsed, calls, strict=True):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        if done >= 2:
            try:
                deadline.check(share)
            except OutOfTime:
                break
    return np.array(elapsed).T


class _LayerTimer:
    """Times single layers, and remembers what it found.

    Args:
        threads: Threads within an operator; 0 leaves it to ONNX Runtime.
        deadline: When to stop.
    """

    def __init__(self, threads: int, deadline: _Deadline) -> None:
        self._threads = threads
        self._deadline = deadline
        self._file = cache_folder() / f"layers-{_machine(threads)}.json"
        self._known = _read_cache(self._file)

    def measure(
        self, front: ModelProto, options: CompileOptions, inputs: Mapping[str, Sequence[int]]
    ) -> dict[int, tuple[float, float]]:
        """Times of layers in milliseconds, dense and sparse, by node.

        Args:
            front: The optimised model.
            options: Which layers may be replaced.
            inputs: Shapes of the model's inputs.
        """
        every = CompileOptions(_ANYTHING_SPARSE, "plain", options.include, options.exclude)
        plan = Plan(front, every)
        shapes = shapes_at(front, inputs)
        found = {}
        before = len(self._known)
        try:
            for number, layer in plan.chosen.items():
                times = self._layer(plan, layer, shapes)
                if times is not None:
                    found[number] = times
        except OutOfTime:
            pass
        if len(self._known) > before:
            _write_cache(self._file, self._known)
        return found

    def _layer(
        self, plan: Plan, layer: Layer, shapes: Mapping[str, tuple[int | None, ...]]
    ) -> tuple[float, float] | None:
        read = {name: shapes.get(name) for name in (layer.x, layer.residual) if name}
        sizes = {name: [s for s in shape or () if s is not None] for name, shape in read.items()}
        if any(shape is None or None in shape for shape in read.values()):
            return None
        weight = plan.weight(layer)
        key = _layer_key(layer, weight.nonzeros, weight.block, list(sizes.values()))
        if key not in self._known:
            self._deadline.check(_LAYER_SHARE)
            models = layer_models(plan, layer, weight, sizes)
            rng = np.random.default_rng(0)
            feeds = {
                name: rng.standard_normal(size, dtype=np.float32) for name, size in sizes.items()
            }
            sessions = [
                open_proto(model, kernels=index == 1, threads=self._threads)
                for index, model in enumerate(models)
            ]
            calls = [partial(s.run, None, feeds) for s in sessions]
            dense, sparse = np.median(_times(calls, self._deadline, _LAYER_SHARE), axis=0)
            self._known[key] = (float(dense), float(sparse))
        return self._known[key]


def cache_folder() -> Path:
    """The user's folder for what can be measured again."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "onnxprune"


def _machine(threads: int) -> str:
    """What times depend on beside the layer."""
    build = library_path().stat()
    facts = [
        *(platform.machine(), platform.processor(), _cpu_model(), str(os.cpu_count())),
        *(instruction_set(), str(threads), import_runtime().__version__, __version__),
        f"{build.st_size}:{build.st_mtime_ns}",
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("model name")), "")


def _layer_key(layer: Layer, nonzeros: int, block: int, shapes: list[list[int]]) -> str:
    facts: list[Any] = [layer.kind, list(layer.weight_shape), nonzeros, block, shapes]
    facts += [layer.attributes, layer.activation.name, layer.residual is not None]
    if layer.depthwise is not None:
        facts += [layer.depthwise.attributes, layer.depthwise.activation.name]
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _read_cache(file: Path) -> dict[str, tuple[float, float]]:
    """What was measured before; nothing where the file is not there or damaged."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): (float(dense), float(sparse)) for key, (dense, sparse) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_cache(file: Path, known: Mapping[str, tuple[float, float]]) -> None:
    """Remember times; a cache that cannot be written is measured again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(known, indent=0, sort_keys=True))
    except (OSError, OnnxpruneError):
        return
