"""Checks of a policy that the model loads, runs where it shall, and gives finite outputs."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import DataError, ModelError, UnsupportedModelError, UsageError
from onnxprune.model import OnnxModel, ValueSpec
from onnxprune.random_inputs import random_inputs
from onnxprune.validate.bench_sessions import peak_memory
from onnxprune.validate.session import PreparedModel, Session, open_session, session_settings
from onnxprune.validate.subject import Subject, Verdict, counted, listed, runtime_source

EXTREME = 1e4
"""Magnitude of extreme inputs; within the range of half precision, where `HALF_EXTREME` is used."""
HALF_EXTREME = 256.0
"""Magnitude in half precision, whose sums of products end at 65504."""

_DOES_NOT_RUN = (DataError, ModelError, UsageError)

Feeds = Mapping[str, np.ndarray]


def outputs_providers(subject: Subject, providers: Sequence[str]) -> Verdict:
    """The model runs on each provider, and each does at least one node of it."""
    feeds = random_inputs(subject.model.inputs, shapes=subject.input_shapes)
    problems, found = [], {}
    for name in providers:
        try:
            session = open_session(runtime_source(subject.model), name, subject.threads)
            session.run(feeds)
        except _DOES_NOT_RUN as error:
            problems.append(f"{name}: {' '.join(str(error).split())}")
            continue
        with prepared(subject.model, name, subject.threads) as model:
            nodes = nodes_by_provider(model, feeds)
        found[name] = nodes.get(session.provider, 0)
        if not found[name]:
            by = ", ".join(f"{count} on {other}" for other, count in nodes.items())
            problems.append(f"{name}: it ran, but no node of it did ({by})")
    if problems:
        return Verdict(False, listed(problems), found)
    text = ", ".join(f"{name} ({counted(count, 'node')})" for name, count in found.items())
    return Verdict(True, f"it loads and runs on {text}", found)


def nodes_by_provider(model: PreparedModel, feeds: Feeds) -> dict[str, int]:
    """Number of nodes that each execution provider runs, from ONNX Runtime's own profile.

    A session that names a provider gives nodes to the CPU that the provider does not take, all of
    them if need be, and says nothing.

    Args:
        model: The model with the provider that is asked for.
        feeds: Input name -> array.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = model.open(profile_prefix=str(Path(folder) / "profile"))
        session.run(feeds)
        events = json.loads(Path(session.raw.end_profiling()).read_text(encoding="utf-8"))
    ran = {
        (event["name"], event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    return dict(Counter(name for _, name in ran))


def prepared(model: OnnxModel, provider: str | None, threads: int | None) -> PreparedModel:
    """A model that can be opened with these settings."""
    return PreparedModel(runtime_source(model), session_settings(provider, threads))


def outputs_finite(subject: Subject, _: bool) -> Verdict:
    """No trained value and no output is NaN or infinite."""
    settings = subject.policy.outputs
    named = None if settings is None else settings.providers
    problems = _non_finite_tensors(subject)
    notes: list[str] = []
    for provider in named or [subject.provider or "CPUExecutionProvider"]:
        for kind, fault, excused in _faults(subject, provider):
            (notes if excused else problems).append(f"{fault} on {kind} inputs ({provider})")
    as_dense = "; as the dense model is, too: " + listed(notes) if notes else ""
    if problems:
        return Verdict(False, listed(problems) + as_dense, False)
    text = "finite on random, zero and extreme inputs"
    return Verdict(
        True, (text if not notes else "finite where the dense model is") + as_dense, True
    )


def _non_finite_tensors(subject: Subject) -> list[str]:
    """Trained tensors with NaN or infinity, which an input need not bring to light.

    A negative variance is as bad: its root is NaN, which a Clip behind it swallows.
    """
    found = []
    for name, tensor in subject.tensors.items():
        if tensor.trainable or tensor.role in ("running_mean", "running_var"):
            with np.errstate(invalid="ignore"):
                values = tensor.array().astype(np.float64)
                bad = int((~np.isfinite(values)).sum())
                negative = int((values < 0).sum()) if tensor.role == "running_var" else 0
            if bad:
                found.append(f"{name}: {bad} of {tensor.size} values are NaN or infinite")
            if negative:
                found.append(f"{name}: {negative} of {tensor.size} variances are negative")
    return found


def _faults(subject: Subject, provider: str) -> Iterator[tuple[str, str, bool]]:
    """Kind of inputs, what is wrong with the outputs, and whether the dense model does it, too."""
    session = open_session(runtime_source(subject.model), provider, subject.threads)
    dense = None
    for kind, feeds in made_up_inputs(subject.model.inputs, subject.input_shapes):
        fault = _fault(session, feeds)
        if fault is None:
            continue
        excused = False
        if subject.baseline is not None and kind != "random":
            source = runtime_source(subject.baseline)
            dense = dense or open_session(source, provider, subject.threads)
            excused = _fault(dense, feeds) is not None
        yield kind, fault, excused


def _fault(session: Session, feeds: Feeds) -> str | None:
    try:
        outputs = session.run(feeds)
    except (DataError, ModelError) as error:
        return f"does not run ({' '.join(str(error.got).split())})"
    bad = [name for name, value in outputs.items() if not _is_finite(value)]
    return f"output {', '.join(bad)} is not finite" if bad else None


def _is_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_finite(item) for item in value)
    if not isinstance(value, np.ndarray) or value.dtype.kind in "iubOUS":
        return True
    return bool(np.isfinite(value.astype(np.float64)).all())


def made_up_inputs(
    inputs: Sequence[ValueSpec], shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Random, zero and extreme inputs, each with the name of its kind.

    Extreme floats are all `EXTREME`, all -`EXTREME`, and both in turns; integers and booleans,
    which may be indices and masks, are all 1 then, and 0 as the lowest.

    Args:
        inputs: The model's inputs.
        shapes: Input name -> whole shape, for axes that are open.

    Raises:
        UsageError: An open axis has no size.
    """
    random = random_inputs(inputs, shapes=shapes)
    yield "random", random
    yield "zero", {name: np.zeros_like(value) for name, value in random.items()}
    for kind, signs in (("large", (1, 1)), ("large negative", (-1, -1)), ("alternating", (1, -1))):
        yield kind, {name: _extreme(value, signs) for name, value in random.items()}


def _extreme(like: np.ndarray, signs: tuple[int, int]) -> np.ndarray:
    if like.dtype.kind in "iub":
        return np.full_like(like, max(signs) > 0)
    magnitude = HALF_EXTREME if like.dtype == np.float16 else EXTREME
    return (np.resize(signs, like.shape) * magnitude).astype(like.dtype)


def memory_max_bytes(subject: Subject, most: int) -> Verdict:
    """Memory that the model takes at most to load and to run."""
    peak = _peak_bytes(subject, subject.model)
    return Verdict(peak <= most, f"{peak:,} bytes where at most {most:,} are allowed", peak)


def memory_max_ratio(subject: Subject, most: float) -> Verdict:
    """That against what the dense model takes."""
    dense = _peak_bytes(subject, subject.need_baseline())
    peak = _peak_bytes(subject, subject.model)
    ratio = peak / max(dense, 1)
    text = f"{peak:,} bytes of the baseline's {dense:,}, {ratio:.4f} where {most:g} is allowed"
    return Verdict(ratio <= most, text, ratio)


def _peak_bytes(subject: Subject, model: OnnxModel) -> int:
    feeds = random_inputs(model.inputs, shapes=subject.input_shapes)
    with prepared(model, subject.provider, subject.threads) as ready:
        peak = peak_memory(ready, feeds)
    if peak is None:
        raise UnsupportedModelError(
            "the memory of this model cannot be measured here",
            where=model.label,
            expected="Linux, and a model that runs in a process of its own",
        )
    return peak


OUTPUT_CHECKS: dict[str, Any] = {
    "outputs.providers": outputs_providers,
    "outputs.finite": outputs_finite,
    "memory.max_bytes": memory_max_bytes,
    "memory.max_ratio": memory_max_ratio,
}
