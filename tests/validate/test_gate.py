"""The gate: what is not given, not known or not checked is no pass."""

from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxprune.checking import check
from onnxprune.validate.policy import Policy

from .artifacts import Pair
from .gating import RULES, gate, not_passed, rules
from .test_gate_tampering import GRAPH, PATTERN, SIGNATURE, SOURCE, TRUE


def test_a_wrong_baseline_is_noticed(pair: Pair) -> None:
    proto = onnx.load(pair.dense)
    proto.doc_string = "another file"
    onnx.save(proto, pair.dense)
    assert set(not_passed(gate(pair))) == {TRUE, SOURCE}


def test_a_digest_in_the_policy(pair: Pair) -> None:
    digest = pair.source_sha256
    right = Policy.from_dict({"metadata": {"source_sha256": digest}})
    wrong = Policy.from_dict({"metadata": {"source_sha256": "ab" * 32}})
    assert check(pair.pruned, right).passed
    assert check(pair.pruned, right, baseline=pair.dense).passed
    assert check(pair.pruned, wrong).exit_code == 1
    other = check(pair.pruned, right, baseline=pair.pruned)
    assert "another file" in not_passed(other)[SOURCE]


def test_what_is_not_given_is_skipped_and_no_pass(pair: Pair) -> None:
    policy = Policy.from_dict(RULES | {"latency": {"min_speedup": 0.5}})
    result = check(pair.pruned, policy)
    assert {name for name, text in not_passed(result).items() if "skipped" in text} == {
        *(SOURCE, SIGNATURE, GRAPH, "size.max_ratio", "latency.min_speedup"),
        *("accuracy.min", "accuracy.max_drop"),
        *("agreement.min", "agreement.min_cosine", "agreement.min_sqnr_db"),
        *("agreement.max_mean_abs_error", "agreement.max_abs_error"),
    }
    assert (result.passed, result.exit_code) == (False, 1)
    assert "--baseline" in not_passed(result)["latency.min_speedup"]
    assert "--data" in not_passed(result)["accuracy.min"]


def test_a_baseline_or_data_that_cannot_be_read(pair: Pair, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = check(pair.pruned, rules(), baseline=missing, data=str(pair.data))
    assert (result.checks[0].name, result.exit_code) == ("baseline", 3)
    assert "baseline cannot be read" in not_passed(result)[SIGNATURE]
    result = check(pair.pruned, rules(), baseline=pair.dense, data=str(missing))
    assert (result.checks[0].name, result.exit_code) == ("data", 4)
    assert "data cannot be read" in not_passed(result)["agreement.min"]
    broken = check(pair.dense, rules(), baseline=pair.dense, data=str(missing))
    assert broken.exit_code == 1


def test_per_tensor_globs(original: Pair) -> None:
    def verdict(least: dict[str, float], **settings: Any) -> str:
        policy = Policy.from_dict({"sparsity": {"per_tensor_min": least, **settings}})
        return not_passed(check(original.pruned, policy)).get("sparsity.per_tensor_min", "")

    assert verdict({"*.weight": 0.5}) == ""
    assert "fc.weight: 50.0000%, demanded 60.0000%" in verdict({"*": 0.5, "op:Gemm": 0.6})
    assert verdict({"*": 0.6, "op:*": 0.5}) == ""
    assert "'head.*' matches no tensor" in verdict({"*": 0.1, "head.*": 0.1})
    assert "'fc.bias' matches no tensor" in verdict({"fc.bias": 0.0})
    assert "fc.bias: 0.0000%" in verdict({"fc.bias": 0.1}, include=["*", "fc.bias"])
    assert "'fc.weight' matches no tensor" in verdict({"fc.weight": 0.1}, exclude=["fc.*"])


def test_a_pattern_has_to_be_there_at_all(original: Pair) -> None:
    def verdict(pattern: str, **settings: Any) -> str:
        policy = Policy.from_dict({"sparsity": {"pattern": pattern, **settings}})
        return not_passed(check(original.dense, policy)).get(PATTERN, "")

    assert "no weight is zero" in verdict("block:2x2")
    assert "the size of no tensor" in verdict("block:3x1")
    assert "stem.weight: 72 of 72 groups of 4 have more than 2" in verdict("2:4")
    assert "in scope" in verdict("2:4", include=["nothing"])


def test_a_provider_that_is_not_there(original: Pair) -> None:
    policy = Policy.from_dict({"outputs": {"providers": ["cpu", "QuantumExecutionProvider"]}})
    result = check(original.pruned, policy)
    assert "QuantumExecutionProvider" in not_passed(result)["outputs.providers"]
    assert result.checks[0].measured["cpu"] >= 1
    assert result.exit_code == 1


def test_a_provider_that_does_nothing_is_no_provider(
    original: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a GPU session leaves every node to the CPU, which ONNX Runtime does not say."""
    from onnxprune.validate import output_checks

    monkeypatch.setattr(
        output_checks, "nodes_by_provider", lambda *_: {"AzureExecutionProvider": 5}
    )
    policy = Policy.from_dict({"outputs": {"providers": ["cpu"]}})
    text = not_passed(check(original.pruned, policy))["outputs.providers"]
    assert "no node" in text
    assert "5 on AzureExecutionProvider" in text
