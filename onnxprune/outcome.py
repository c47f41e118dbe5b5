"""Facts of a pruned model for the results file and the report."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxprune.model import OnnxModel
from onnxprune.tensors import find_tensors
from onnxprune.validate.layer_costs import model_cost

_HISTOGRAM_BINS = 60


def tensor_table(source: OnnxModel, proto: Any, pruned: set[str]) -> Iterator[dict[str, Any]]:
    """Facts of every weight before and after, with histograms of those that were pruned.

    Args:
        source: The dense model.
        proto: The pruned model's `ModelProto`.
        pruned: Names of the tensors in scope.
    """
    before, after = find_tensors(source.proto), find_tensors(proto)
    for name, tensor in after.items():
        if not (tensor.prunable or name in pruned):
            continue
        old, new = before[name].array(), tensor.array()
        entry: dict[str, Any] = {
            "name": name,
            "op_type": tensor.op_type,
            "shape": list(tensor.shape),
            "size": tensor.size,
            "nonzeros_before": int(np.count_nonzero(old)),
            "nonzeros": int(np.count_nonzero(new)),
            "sparsity_before": 1 - float(np.count_nonzero(old)) / max(1, old.size),
            "sparsity": 1 - float(np.count_nonzero(new)) / max(1, new.size),
            "prunable": name in pruned,
        }
        if name in pruned:
            entry["histogram"] = _histogram(old, new)
        yield entry


def layer_costs(source: Any, proto: Any, latency: dict[str, Any] | None) -> dict[str, Any]:
    """What each layer of both models costs, with times where the bench profiled them.

    Args:
        source: The dense model's `ModelProto`.
        proto: The pruned model's.
        latency: The result of the bench of both; its costs move from there, and distributions,
            which its samples give as well, are dropped.
    """
    protos = {"dense": source, "pruned": proto}
    benched = latency["models"] if latency else [{}, {}]
    found = {}
    for (side, graph), model in zip(protos.items(), benched, strict=True):
        found[side] = model.pop("cost", None) or model_cost(graph).to_json()
        for repeated in ("quantiles_ms", "ratio_quantiles"):
            model.pop(repeated, None)
    return found


def _histogram(before: np.ndarray, after: np.ndarray) -> dict[str, list[float]]:
    """Counts of non-zero values in common bins, before and after."""
    before, after = before[before != 0].astype(np.float64), after[after != 0].astype(np.float64)
    both = np.concatenate([before.ravel(), after.ravel()])
    limit = float(np.quantile(np.abs(both), 0.999)) if both.size else 1.0
    edges = np.linspace(-limit, limit, _HISTOGRAM_BINS + 1) if limit > 0 else np.linspace(-1, 1, 3)
    return {
        "edges": edges.tolist(),
        "before": np.histogram(before, edges)[0].tolist(),
        "after": np.histogram(after, edges)[0].tolist(),
    }
