"""Where the time of a model goes, from ONNX Runtime's own profiler."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.validate.session import PreparedModel

_CALLS = 20
_WARM_CALLS = 3
_MOST_SECONDS = 10.0
_KERNEL = "_kernel_time"
_CONTROL = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class KernelTime:
    """Time of one node in a call.

    Attributes:
        name: The node's name after ONNX Runtime's optimisation.
        op_type: Its operator, likewise.
        ms: Milliseconds in a call, the median over calls.
    """

    name: str
    op_type: str
    ms: float


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


def profile_kernels(model: PreparedModel, feeds: Mapping[str, np.ndarray]) -> list[KernelTime]:
    """Profile 20 calls of a model in a session of its own, fewer where they take over 10 seconds.

    The profiler costs time itself, so the sum is more than the latency.

    Args:
        model: The model.
        feeds: Input name -> array.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = model.open(profile_prefix=str(Path(folder) / "profile"))
        begun = time.monotonic()
        for call in range(_WARM_CALLS + _CALLS):
            if call > _WARM_CALLS and time.monotonic() - begun > _MOST_SECONDS:
                break
            session.run(feeds)
            calls = call + 1
        path = session.raw.end_profiling()
        events = json.loads(Path(path).read_text(encoding="utf-8"))
    return summarise_events(events, calls)


def summarise_events(
    events: Sequence[Mapping[str, Any]], calls: int | None = None
) -> list[KernelTime]:
    """Nodes of a profile in Chrome's trace format, whose first calls warmed up, as they ran.

    Nodes that run a graph are left out, since the nodes of that graph are there.

    Args:
        events: The profile; kernels have `dur` in microseconds, and `args.op_name`.
        calls: Number of calls; a node that ran several times in each takes the sum. None if every
            node ran once in each.
    """
    kernels = sorted(
        (
            event
            for event in events
            if str(event.get("name", "")).endswith(_KERNEL)
            and event["args"]["op_name"] not in _CONTROL
        ),
        key=lambda event: event["ts"],
    )
    by_node: dict[tuple[str, str], list[float]] = {}
    for event in kernels:
        key = (event["name"].removesuffix(_KERNEL), event["args"]["op_name"])
        by_node.setdefault(key, []).append(event["dur"] / 1e3)
    found = []
    for (name, op_type), times in by_node.items():
        runs = len(times) // calls if calls and len(times) % calls == 0 else 1
        sums = np.reshape(times, (-1, runs)).sum(axis=1).tolist()
        found.append(KernelTime(name, op_type, float(np.median(sums[_WARM_CALLS:] or sums))))
    return found


def operator_times(kernels: Sequence[KernelTime]) -> list[OperatorTime]:
    """Time by operator; the slowest first.

    Args:
        kernels: What a profile says of each node.
    """
    totals: dict[str, list[float]] = {}
    for kernel in kernels:
        totals.setdefault(kernel.op_type, []).append(kernel.ms)
    whole = sum(kernel.ms for kernel in kernels) or 1.0
    found = [
        OperatorTime(op_type, len(times), sum(times), sum(times) / whole)
        for op_type, times in totals.items()
    ]
    return sorted(found, key=lambda operator: -operator.ms)
