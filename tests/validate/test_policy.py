"""Policies: validated as a whole, and never empty."""

from pathlib import Path
from typing import Any

import pytest

from onnxprune.errors import PolicyError, UsageError
from onnxprune.validate.gate import CHECKS
from onnxprune.validate.policy import Policy, table_classes


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict(values)
    return caught.value.problems


def test_every_demand_has_a_check_and_every_check_a_demand() -> None:
    demands = [f"{name}.{key}" for name, table in table_classes() for key in table.DEMANDS]
    assert sorted(demands) == sorted(CHECKS)


def test_a_file_says_what_is_demanded(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        '[sparsity]\nmin = 0\nper_tensor_min = {"fc*" = 0.5}\n'
        "[metadata]\nrequired = false\ntrue_to_file = true\n"
        "[accuracy]\nmax_drop = 0.01\n[latency]\nmin_speedup = 1\nthreads = 2\n"
    )
    policy = Policy.from_toml(path)
    assert list(policy.demands()) == [
        ("sparsity.min", 0),
        ("sparsity.per_tensor_min", {"fc*": 0.5}),
        ("metadata.true_to_file", True),
        ("accuracy.max_drop", 0.01),
        ("latency.min_speedup", 1),
    ]
    assert policy.accuracy is not None
    assert policy.accuracy.confidence == 0.95


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"inputs": {"shapes": {"x": [1, 3]}}},
        {"metadata": {"required": False}, "signature": {"same_as_baseline": False}},
    ],
)
def test_a_policy_that_demands_nothing_is_an_error(values: dict[str, Any]) -> None:
    (problem,) = problems(values)
    assert "set a key of one of these tables: sparsity, metadata" in problem


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"latency": {"threads": 2}}, "latency: demands nothing; set one of: min_speedup"),
        ({"sparsity": {}}, "sparsity: demands nothing; set one of: min, per_tensor_min, pattern"),
        ({"sparsty": {"min": 1}}, "sparsty: unknown key; did you mean 'sparsity'?"),
        ({"size": {"max_byte": 1}}, "did you mean 'max_bytes'? allowed here: max_bytes, max_ratio"),
        ({"sparsity": {"min": 1.5}}, "sparsity.min: Input should be less than or equal to 1"),
        ({"sparsity": {"min": True}}, "sparsity.min: Input should be a valid number"),
        ({"sparsity": {"min": float("nan")}}, "sparsity.min: Input should be a finite number"),
        ({"sparsity": {"min": "80 %"}}, "(got '80 %')"),
        ({"sparsity": {"per_tensor_min": {"a": 2}}}, "'a': a sparsity lies in [0, 1], got 2"),
        ({"sparsity": {"pattern": "unstructured"}}, "every file keeps to it; leave the key out"),
        ({"sparsity": {"pattern": "4:2"}}, "needs N:M with 1 <= N < M"),
        ({"sparsity": {"pattern": "block:1x1"}}, "needs N:M with 1 <= N < M"),
        ({"metadata": {"source_sha256": "AB" * 32}}, "needs 64 hexadecimal digits in lower case"),
        ({"metadata": 3}, "metadata: Input should be a valid dictionary"),
        ({"outputs": {"providers": []}}, "outputs.providers: List should have at least 1 item"),
        (
            {"accuracy": {"min": 0.5, "metric": "top3"}},
            "needs top1, top5, cer, miou, map, map50, or",
        ),
        ({"accuracy": {"min": 0.5, "metric": "map?nms=9"}}, "got: nms=9, expected: a number"),
        ({"agreement": {"min": 0.5, "metric": "miou"}}, "expected: map or map50"),
        ({"agreement": {"min": 0.5, "conf": 0.5}}, "agreement.conf: is about detectors; set"),
        (
            {"accuracy": {"min": 0.5, "metric": "map"}, "agreement": {"min_cosine": 0.9}},
            "agreement.min_cosine: cannot be measured of boxes, which differ in number and order; "
            "demand `min` instead, or put min_cosine into a policy without metric = 'map'",
        ),
        (
            {"accuracy": {"min": 0.5}, "agreement": {"min": 0.9, "metric": "map"}},
            "agreement.metric: 'map' cannot be measured beside [accuracy] metric = 'top1'",
        ),
        ({"accuracy": {"min": 0.5, "metric": "cer"}}, "cer is better the lower it is; `min`"),
        ({"accuracy": {"max": 0.5}}, "top1 is better the higher it is; `max` has no sense"),
        ({"accuracy": {"min": 0.5, "confidence": 95}}, "accuracy.confidence: Input should be less"),
        ({"latency": {"min_speedup": 0}}, "latency.min_speedup: Input should be greater than 0"),
        ({"inputs": {"shapes": {"x": [0]}}}, "'x': sizes are at least 1"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], problem: str) -> None:
    assert any(problem in found for found in problems(values)), problems(values)


def test_all_problems_are_reported_at_once() -> None:
    found = problems({"sparsity": {"min": 2, "mx": 1}, "size": {"max_ratio": -1}, "speed": {}})
    assert len(found) == 4


def test_files_that_are_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with pytest.raises(UsageError, match="no such policy file"):
        Policy.from_toml(path)
    with pytest.raises(UsageError, match=r"cannot be read\n.*\n  got: Is a directory"):
        Policy.from_toml(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf[sparsity]\r\nmin = 0.5\r\n")
    assert list(Policy.from_toml(path).demands()) == [("sparsity.min", 0.5)]
    for content in (b"[sparsity\n", b"\xff", b"a = " + b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(PolicyError, match=r"TOML|nested"):
            Policy.from_toml(path)
