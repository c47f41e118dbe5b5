"""How long each node of a model takes, by ONNX Runtime's profiler."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxprune.runtime import is_compiled, register

_WARM = 5
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """Times of one node in many calls.

    Attributes:
        name: Its name after ONNX Runtime's optimisation.
        op_type: Likewise its operator.
        inputs: Shapes of what it reads.
        output: Shape of what it makes.
        times_ms: Of each call.
    """

    name: str
    op_type: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    times_ms: np.ndarray


def node_times(
    paths: Sequence[Path], feeds: Mapping[str, np.ndarray], *, threads: int, calls: int
) -> list[list[NodeTime]]:
    """Times of all nodes of some models, in the order in which they run.

    The models run in turn, so that a machine that is slow for a while is so for all of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for number, path in enumerate(paths):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / f"profile-{number}")
            if is_compiled(onnx.load(path, load_external_data=False)):
                register(options)
            sessions.append(
                onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            )
        for _ in range(_WARM + calls):
            for session in sessions:
                session.run(None, dict(feeds))
        profiles = [
            Path(session.end_profiling()).read_text(encoding="utf-8") for session in sessions
        ]
    return [_nodes(json.loads(profile)) for profile in profiles]


def _nodes(events: list[dict[str, Any]]) -> list[NodeTime]:
    kernels = [event for event in events if event["name"].endswith(_SUFFIX)]
    found = defaultdict(list)
    for event in sorted(kernels, key=lambda event: event["ts"]):
        # Nodes of sub-graphs are counted from 0 again.
        found[event["name"], event["args"]["node_index"]].append(event)
    return [
        NodeTime(
            same[0]["name"].removesuffix(_SUFFIX),
            same[0]["args"]["op_name"],
            _shapes(same[0]["args"]["input_type_shape"]),
            next(iter(_shapes(same[0]["args"]["output_type_shape"])), ()),
            np.array([event["dur"] / 1e3 for event in same[_WARM:]]),
        )
        for same in found.values()
    ]


def _shapes(listed: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for entry in listed for shape in entry.values())
