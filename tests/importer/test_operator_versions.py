"""Every version of every operator that has several, from operator set 7 on."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from onnxprune.importer import load, supported_operators

from .helpers import normal, outputs, runtime_outputs, text_model
from .operator_forms import FORMS, form_model, versions


def _all_versions() -> Iterator[tuple[str, int]]:
    for op_type in sorted(FORMS):
        yield from ((op_type, version) for version in versions(op_type))


TESTED_ELSEWHERE = frozenset(
    {"Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
    | {"QuantizeLinear", "DequantizeLinear", "QLinearMatMul", "DeformConv", "Multinomial"}
    | {"If", "Loop", "Scan", "Optional", "OptionalGetElement", "OptionalHasElement"}
    | {"SplitToSequence"}
)
ONLY_IN_OLD_VERSIONS = {"GlobalLpPool", "MaxRoiPool"}
"""Operators that nothing else computes in the newest version, which only allows more types."""


def _expected(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Results of ONNX Runtime, or of ONNX's reference where the former lacks the version."""
    if model.graph.node[0].op_type in ONLY_IN_OLD_VERSIONS:
        model.opset_import[0].version = 13
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    except Exception:
        return ReferenceEvaluator(model).run(None, feed)
    return session.run(None, feed)


def _compare(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [a.shape for a in actual] == [np.shape(e) for e in expected]
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_no_operator_with_several_versions_is_left_out() -> None:
    history = Counter(
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and not schema.deprecated
    )
    supported = {entry.op_type for entry in supported_operators() if entry.domain == ""}
    several = {name for name, count in history.items() if count > 1}
    assert (supported & several) - FORMS.keys() <= TESTED_ELSEWHERE


@pytest.mark.parametrize(("op_type", "version"), list(_all_versions()))
def test_each_version_computes_what_it_says(op_type: str, version: int) -> None:
    model, feed = form_model(op_type, version)
    _compare(outputs(load(model).eval(), feed), _expected(model, feed))


@pytest.mark.parametrize("op_type", sorted(FORMS))
def test_ranks_need_not_be_stated(op_type: str) -> None:
    version = max(versions(op_type))
    model, feed = form_model(op_type, version, with_shapes=False)
    _compare(outputs(load(model).eval(), feed), _expected(form_model(op_type, version)[0], feed))


BATCH_NORM = "BatchNormalization<epsilon = 0.01"
BEFORE_VERSION_7 = {
    "Add<broadcast = 1, axis = 1>(x, c)": (6, "Add(x, column)"),
    "Mul<broadcast = 1>(x, row)": (6, "Mul(x, row)"),
    "Div<broadcast = 1, axis = -3>(x, c)": (1, "Div(x, column)"),
    "PRelu(x, c)": (6, "PRelu(x, column)"),
    "Pow<broadcast = 1, axis = 0>(x, n)": (1, "Pow(x, batch)"),
    f"{BATCH_NORM}, is_test = 1>(x, c, c2, c3, v)": (6, f"{BATCH_NORM}>(x, c, c2, c3, v)"),
    "Dropout<is_test = 1, ratio = 0.5>(x)": (6, "Identity(x)"),
    "Reshape<shape = [0, -1, 5]>(x)": (1, "Reshape(x, shape)"),
    'Cast<to = "INT32">(x)': (1, "Cast<to = 6>(x)"),
    'Cast<to = "DOUBLE">(x)': (1, "Cast<to = 11>(x)"),
    "Concat(x, x)": (1, "Concat<axis = 1>(x, x)"),
    "Pad<paddings = [0, 0, 1, 2, 0, 0, 0, 1], value = 3.0>(x)": (1, "Pad(x, pads, three)"),
    "Tile(x, repeats, axis)": (1, "Tile(x, all_repeats)"),
    "Clip<min = -0.5, max = 0.5>(x)": (6, "Clip(x, low, high)"),
    "Upsample<height_scale = 2.0, width_scale = 3.0>(x)": (
        1,
        'Resize<nearest_mode = "floor", '
        'coordinate_transformation_mode = "asymmetric">(x, , scales)',
    ),
    "Max(x, x)": (1, "Max(x, x)"),
    "Selu(x)": (1, "Selu<alpha = 1.6732, gamma = 1.0507>(x)"),
    "InstanceNormalization(x, c, c2)": (1, "InstanceNormalization(x, c, c2)"),
    "GlobalLpPool(x)": (1, "GlobalLpPool(x)"),
}
"""Old forms with the operator set version that they are for, and what they mean in version 13."""

ARRAYS = {
    "c": normal(4, seed=1),
    "c2": normal(4, seed=2),
    "c3": normal(4, seed=3),
    "v": np.abs(normal(4, seed=4)),
    "column": normal(4, seed=1).reshape(4, 1, 1),
    "row": normal(5, seed=5),
    "n": np.array([2, 3], dtype=np.float32),
    "batch": np.array([2, 3], dtype=np.float32).reshape(2, 1, 1, 1),
    "shape": np.array([0, -1, 5]),
    "pads": np.array([0, 0, 1, 2, 0, 0, 0, 1]),
    "three": np.array(3, dtype=np.float32),
    "repeats": np.array([2], dtype=np.float32),
    "axis": np.array([1], dtype=np.float32),
    "all_repeats": np.array([1, 2, 1, 1]),
    "low": np.array(-0.5, dtype=np.float32),
    "high": np.array(0.5, dtype=np.float32),
    "scales": np.array([1, 1, 2, 3], dtype=np.float32),
}


CASTS = {"6": "int32", "11": "double", '"INT32"': "int32", '"DOUBLE"': "double"}


def _one_node(call: str, opset: int) -> onnx.ModelProto:
    names = call[call.rindex("(") :].strip("()").split(", ")
    used = {name: ARRAYS[name] for name in names if name in ARRAYS}
    kind = next((CASTS[target] for target in CASTS if f"to = {target}>" in call), "float")
    graph = f"g (float[2,4,6,5] x) => ({kind}[] y) {{ y = {call} }}"
    model = text_model(graph, used, opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("old", BEFORE_VERSION_7)
def test_forms_before_version_7_mean_what_newer_ones_do(old: str) -> None:
    version, new = BEFORE_VERSION_7[old]
    feed = {"x": np.abs(normal(2, 4, 6, 5))}
    actual = outputs(load(_one_node(old, version)).eval(), feed)
    _compare(actual, runtime_outputs(_one_node(new, 13), feed))
