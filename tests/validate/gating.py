"""The rules that gate tests share."""

from typing import Any

from onnxprune.checking import check
from onnxprune.validate.gate import GateResult
from onnxprune.validate.policy import Policy

from .artifacts import Pair

RULES: dict[str, dict[str, Any]] = {
    "sparsity": {"min": 0.5, "per_tensor_min": {"*": 0.4, "fc.*": 0.5}, "pattern": "2:4"},
    "metadata": {"required": True, "true_to_file": True, "source_sha256": "baseline"},
    "signature": {"same_as_baseline": True, "same_graph": True},
    "outputs": {"providers": ["CPUExecutionProvider"], "finite": True},
    "accuracy": {"min": 0.7, "max_drop": 0.3},
    "agreement": {
        "min": 0.7,
        "min_cosine": 0.9,
        "min_sqnr_db": 5.0,
        "max_mean_abs_error": 2.0,
        "max_abs_error": 9.0,
    },
    "size": {"max_bytes": 20_000, "max_ratio": 3.0},
}
TRUE, SOURCE = "metadata.true_to_file", "metadata.source_sha256"
SIGNATURE, GRAPH = "signature.same_as_baseline", "signature.same_graph"
FINITE, PATTERN = "outputs.finite", "sparsity.pattern"


def rules(**changes: dict[str, Any] | None) -> Policy:
    """The rules with some tables replaced, or left out."""
    tables = RULES | changes
    return Policy.from_dict({name: table for name, table in tables.items() if table is not None})


def gate(pair: Pair, policy: Policy | None = None) -> GateResult:
    return check(
        pair.pruned,
        policy or rules(),
        baseline=pair.dense,
        data=str(pair.data),
        threads=1,
        provider="cpu",
    )


def not_passed(result: GateResult) -> dict[str, str]:
    return {c.name: f"{c.status}: {c.message}" for c in result.checks if c.status != "pass"}
