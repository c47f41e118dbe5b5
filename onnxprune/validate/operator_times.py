"""Which operators take the time of a model, from ONNX Runtime's own profiler."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.validate.session import PreparedModel

_CALLS = 20
_WARM_CALLS = 3
_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class OperatorTime:
    """Time of all nodes of one operator in a call.

    Attributes:
        op_type: Operator as ONNX Runtime runs it: after fusion, so not always as in the file.
        nodes: Number of its nodes.
        ms: Milliseconds in a call, the median over calls.
        share: Of the sum over all operators, in [0, 1].
    """

    op_type: str
    nodes: int
    ms: float
    share: float


def operator_times(model: PreparedModel, feeds: Mapping[str, np.ndarray]) -> list[OperatorTime]:
    """Profile 20 calls of a model in a session of its own; the slowest operator first.

    The profiler costs time itself, so the sum is more than the latency.

    Args:
        model: The model.
        feeds: Input name -> array.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = model.open(profile_prefix=str(Path(folder) / "profile"))
        for _ in range(_WARM_CALLS + _CALLS):
            session.run(feeds)
        path = session.raw.end_profiling()
        events = json.loads(Path(path).read_text(encoding="utf-8"))
    return summarise_events(events)


def summarise_events(events: list[dict[str, Any]]) -> list[OperatorTime]:
    """Operators of a profile in Chrome's trace format, whose first calls warmed up.

    Args:
        events: The profile; kernels have `dur` in microseconds, and `args.op_name`.
    """
    kernels = sorted(
        (event for event in events if str(event.get("name", "")).endswith(_KERNEL)),
        key=lambda event: event["ts"],
    )
    by_node: dict[tuple[str, str], list[float]] = {}
    for event in kernels:
        key = (event["args"]["op_name"], event["name"])
        by_node.setdefault(key, []).append(event["dur"] / 1e3)
    totals: dict[str, list[float]] = {}
    for (op_type, _), times in by_node.items():
        totals.setdefault(op_type, []).append(float(np.median(times[_WARM_CALLS:] or times)))
    whole = sum(sum(times) for times in totals.values()) or 1.0
    found = [
        OperatorTime(op_type, len(times), sum(times), sum(times) / whole)
        for op_type, times in totals.items()
    ]
    return sorted(found, key=lambda operator: -operator.ms)
