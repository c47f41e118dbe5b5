"""Checks that run both models: accuracy, latency, memory."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.checking import check
from onnxprune.validate.gate import CHECKS, CheckResult, GateResult
from onnxprune.validate.policy import Policy

from .artifacts import Pair, dense_model, make_pair
from .gating import not_passed, rules
from .test_gate_tampering import FINITE


def test_labels_are_needed_for_accuracy(pair: Pair, tmp_path: Path) -> None:
    arrays = dict(np.load(pair.data))
    del arrays["label"]
    np.savez(tmp_path / "unlabelled.npz", **arrays)
    policy = rules(agreement={"min": 0.5}, accuracy={"min": 0.5})
    result = check(pair.pruned, policy, baseline=pair.dense, data=str(tmp_path / "unlabelled.npz"))
    assert not_passed(result).keys() == {"accuracy.min"}
    assert result.exit_code == 4


def test_open_axes_take_their_sizes_from_policy_recipe_or_data(tmp_path: Path) -> None:
    dense = dense_model()
    for axis, name in ((2, "H"), (3, "W")):
        dense.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    pair = make_pair(tmp_path, dense)
    outputs = {"outputs": {"finite": True, "providers": ["cpu"]}}
    result = check(pair.pruned, Policy.from_dict(outputs))
    assert "leaves an axis open" in not_passed(result)[FINITE]
    assert result.exit_code == 2
    shapes = {"inputs": {"shapes": {"x": [1, 4, 6, 6]}}}
    assert check(pair.pruned, Policy.from_dict(outputs | shapes)).passed
    assert check(pair.pruned, Policy.from_dict(outputs), shapes={"x": [2, 4, 7, 7]}).passed
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[validate]\nshapes = {x = [1, 4, 5, 5]}\n")
    assert check(pair.pruned, Policy.from_dict(outputs), recipe=recipe).passed
    with_data = Policy.from_dict(outputs | {"accuracy": {"min": 0.5}})
    assert check(pair.pruned, with_data, data=str(pair.data)).passed


def test_latency(original: Pair) -> None:
    def verdict(least: float) -> GateResult:
        policy = Policy.from_dict({"latency": {"min_speedup": least, "seconds": 0.5, "threads": 1}})
        return check(original.pruned, policy, baseline=original.dense)

    assert verdict(0.01).passed
    result = verdict(100)
    assert result.exit_code == 1
    assert 0.05 < result.checks[0].measured < 20


def test_a_defect_in_one_check_is_an_error_of_that_check(
    original: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(CHECKS, "size.max_bytes", broken)
    policy = Policy.from_dict({"size": {"max_bytes": 1_000_000}, "sparsity": {"min": 0.1}})
    result = check(original.pruned, policy)
    assert [c.status for c in result.checks] == ["pass", "error"]
    assert "internal error: ZeroDivisionError: oops" in result.checks[1].message
    assert (result.passed, result.exit_code) == (False, 70)


def test_an_uncertain_speedup_is_no_pass(original: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from onnxprune.validate import Speedup, measured_checks

    models = [None, SimpleNamespace(speedup=Speedup(1.3, 0.9, 1.7))]
    monkeypatch.setattr(measured_checks, "bench", lambda *_, **__: SimpleNamespace(models=models))
    policy = Policy.from_dict({"latency": {"min_speedup": 1.0}})
    result = check(original.pruned, policy, baseline=original.dense)
    assert "inconclusive" in not_passed(result)["latency.min_speedup"]
    assert result.checks[0].measured == 0.9


def test_few_samples_do_not_prove_that_nothing_is_lost(original: Pair, tmp_path: Path) -> None:
    """The dense model against itself loses nothing, which 20 samples are too few to show."""
    arrays = {name: array[:20] for name, array in np.load(original.data).items()}
    np.savez(tmp_path / "few.npz", **arrays)

    def verdict(policy: dict[str, Any], data: Path) -> GateResult:
        rules = Policy.from_dict({"accuracy": policy})
        return check(original.dense, rules, baseline=original.dense, data=str(data))

    few = verdict({"max_drop": 0.05}, tmp_path / "few.npz")
    assert few.checks[0].measured == pytest.approx(0.119, abs=0.001)
    assert "more samples" in few.checks[0].message
    assert verdict({"max_drop": 0.05}, original.data).passed
    assert not verdict({"min": 0.95}, tmp_path / "few.npz").passed
    assert verdict({"min": 0.95}, original.data).passed
    assert verdict({"min": 0.85, "confidence": 0.9}, tmp_path / "few.npz").passed


def test_memory(tmp_path: Path) -> None:
    """A tensor of 40 MB more takes at least that much more to load."""
    pair = make_pair(tmp_path)

    def peak(file: Path, **demands: float) -> tuple[bool, float]:
        result = check(file, Policy.from_dict({"memory": demands}), baseline=pair.dense)
        assert result.checks[0].status in ("pass", "fail"), result.checks[0].message
        return result.passed, result.checks[0].measured

    passed, before = peak(pair.pruned, max_bytes=2**40)
    assert passed
    assert not peak(pair.pruned, max_bytes=1)[0]
    large = np.random.default_rng(0).normal(size=(4, 2_500_000)).astype(np.float32)
    pair.edit(lambda p: p.graph.initializer.append(numpy_helper.from_array(large, "large")))
    pair.edit(
        lambda p: p.graph.node.insert(0, helper.make_node("MatMul", ["shift", "large"], ["m"]))
    )
    pair.edit(
        lambda p: p.graph.output.append(
            helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", 2_500_000])
        )
    )
    passed, after = peak(pair.pruned, max_bytes=2**40)
    assert passed
    assert after - before >= 40_000_000
    assert peak(pair.pruned, max_ratio=1.5)[0] is False


def test_character_errors_and_metrics_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of one character: the dense model reads all, the other loses the rarer class."""
    rng = np.random.default_rng(0)
    classes = np.where(rng.random(400) < 0.1, 2, 1)
    onnx_models = {}
    for name, scale in (("dense", 1.0), ("pruned", 0.0)):
        factor = numpy_helper.from_array(np.array([0.5, 1, scale], np.float32), "factor")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 3])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 3])
        node = helper.make_node("Mul", ["x", "factor"], ["y"])
        graph = helper.make_graph([node], "lines", [x], [y], [factor])
        opsets = [helper.make_opsetid("", 17)]
        onnx_models[name] = tmp_path / f"{name}.onnx"
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.save(model, onnx_models[name])
    scores = np.eye(3, dtype=np.float32)[classes][:, None]
    np.savez(tmp_path / "lines.npz", x=scores, label=classes[:, None])
    (tmp_path / "gate_metric.py").write_text(
        "def first_score(outputs, targets):\n    return outputs['y'].max(axis=(1, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def verdict(model: str, settings: dict[str, Any], **options: Any) -> GateResult:
        policy = Policy.from_dict({"accuracy": settings})
        data = str(tmp_path / "lines.npz")
        dense = onnx_models["dense"]
        return check(onnx_models[model], policy, baseline=dense, data=data, **options)

    cer = {"metric": "cer", "max": 0.2, "max_drop": 0.2}
    assert verdict("dense", cer).passed
    result = verdict("pruned", cer)
    share = (classes == 2).mean()
    assert result.passed
    for found in result.checks:
        assert share + 0.01 < found.measured < share + 0.05
    assert set(not_passed(verdict("pruned", {**cer, "max": share}))) == {"accuracy.max"}
    assert set(not_passed(verdict("pruned", {**cer, "max_drop": share}))) == {"accuracy.max_drop"}
    own = {"metric": "python:gate_metric:first_score", "min": 0.5, "max_drop": share}
    refused = verdict("pruned", own)
    assert (refused.checks[0].name, refused.exit_code) == ("metric", 2)
    assert {c.status for c in refused.checks[1:]} == {"skipped"}
    result = verdict("pruned", own, allow_python=True)
    assert set(not_passed(result)) == {"accuracy.max_drop"}
    assert share < result.checks[1].measured < share + 0.05
    np.savez(tmp_path / "lines.npz", x=scores[:20], label=classes[:20, None])
    assert "too few samples" in not_passed(verdict("dense", cer))["accuracy.max"]


def test_an_unfit_metric_is_an_error(original: Pair) -> None:
    policy = Policy.from_dict({"accuracy": {"metric": "top5", "min": 0.5}})
    result = check(original.pruned, policy, baseline=original.dense, data=str(original.data))
    assert "so few classes" in not_passed(result)["accuracy.min"]
    assert result.exit_code == 2


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dense.onnx` gives two boxes an image, as `worse.onnx`, which doubts the second; 60 images.

    `likely.npz` has the scores 0.9 and 0.5, and `label`; `unlikely.npz` has 0.1, and no label.
    """
    pytest.importorskip("pycocotools")
    folder = tmp_path_factory.mktemp("detectors")
    for name, factor in (("dense", 1), ("worse", 0)):
        text = (
            '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 2, 6] x) => '
            "(float[N, 2, 6] boxes) <float[1, 2, 6] scale = "
            f"{{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, {factor}, 1}}> {{ boxes = Mul (x, scale) }}"
        )
        onnx.save(onnx.parser.parse_model(text), folder / f"{name}.onnx")
    boxes = np.array([[0, 0, 9, 9, 0.9, 1], [20, 0, 29, 9, 0.5, 1]], np.float32)
    rows = np.repeat(boxes[None], 60, axis=0)
    np.savez(folder / "likely.npz", x=rows, label=rows[..., [0, 1, 2, 3, 5]])
    rows[..., 4] = 0.1
    np.savez(folder / "unlikely.npz", x=rows)
    return folder


def gated(folder: Path, model: str, data: str, **tables: Any) -> dict[str, CheckResult]:
    result = check(
        folder / f"{model}.onnx",
        Policy.from_dict(tables),
        baseline=folder / "dense.onnx",
        data=str(folder / f"{data}.npz"),
    )
    return {found.name: found for found in result.checks}


def test_agreement_of_detectors_beside_their_accuracy(detectors: Path) -> None:
    """Half of the dense model's boxes are found, which are 51 of 101 recalls."""
    tables = {"accuracy": {"metric": "map?layout=rows", "max_drop": 0}, "agreement": {"min": 0.51}}
    assert {c.status for c in gated(detectors, "dense", "likely", **tables).values()} == {"pass"}
    worse = gated(detectors, "worse", "likely", **tables)
    assert {name: c.status for name, c in worse.items()} == {
        "accuracy.max_drop": "fail",
        "agreement.min": "fail",
    }
    assert worse["agreement.min"].measured == pytest.approx(51 / 101)
    assert worse["agreement.min"].message == (
        "map 50.4950% on the boxes that the dense model finds with a score of at least 0.25 in "
        "60 samples, where 51.0000% is demanded"
    )
    surer = tables | {"agreement": {"min": 0.51, "conf": 0.6}}
    assert gated(detectors, "worse", "likely", **surer)["agreement.min"].status == "pass"


def test_agreement_of_detectors_needs_no_labels(detectors: Path) -> None:
    tables = {"agreement": {"min": 0.9, "metric": "map50?layout=rows", "conf": 0.05}}
    assert gated(detectors, "dense", "unlikely", **tables)["agreement.min"].measured == 1
    assert gated(detectors, "worse", "unlikely", **tables)["agreement.min"].status == "fail"
    del tables["agreement"]["conf"]
    nothing = gated(detectors, "dense", "unlikely", **tables)["agreement.min"]
    assert (nothing.status, nothing.exit_code) == ("error", 4)
    assert "no box with a score of at least 0.25 in 60 samples" in nothing.message
    assert "a lower [agreement] conf" in nothing.message
