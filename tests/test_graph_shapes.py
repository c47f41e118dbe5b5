"""Shapes for one sample, followed through the shape arithmetic of exporters."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxprune.graph_shapes import infer_shapes
from onnxprune.shapes import find_schema, infer_node, tensor_type, type_shape
from tests.importer.helpers import normal, text_model

LINE = "g (float[N,6,8,H] x) => (float[A,B] y) "


def shapes_of(body: str, arrays: dict[str, np.ndarray], **more: str) -> dict[str, tuple[int, ...]]:
    return infer_shapes(text_model(f"{LINE}{{ {body} }}", arrays, **more))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Shape(x) a = Gather(s, i) b = Div(a, two) t = Concat<axis=0>(m, b) "
         "h = Cast<to=1>(w) y = Reshape(h, t)", (8, 3)),
        ("s = Shape<start=1, end=3>(x) p = ReduceProd<keepdims=1>(s) y = Expand(one, p)", (48,)),
        ("s = Shape(x) a = Slice(s, i, two) b = Mul(a, a) c = Mod(b, five) "
         "y = ConstantOfShape(c)", (1,)),
        ("s = Shape(x) a = Gather(s, i) b = Equal(a, two) c = Where(b, i, a) "
         "y = ConstantOfShape(c)", (6,)),
        ("s = Shape(x) a = Squeeze(i) b = Unsqueeze(a, z) f = Cast<to=1>(b) g = Floor(f) "
         "c = Cast<to=7>(g) d = Gather(s, c) y = ConstantOfShape(d)", (6,)),
    ],
)  # fmt: skip
def test_shape_arithmetic(body: str, expected: tuple[int, ...]) -> None:
    numbers = {"i": [1], "two": [2], "five": [5], "m": [-1], "z": [0]}
    arrays = {name: np.array(value) for name, value in numbers.items()}
    assert shapes_of(body, {**arrays, "w": normal(4, 6), "one": normal(1)})["y"] == expected


def test_sizes_that_are_not_known_stay_so_and_the_others_do_not() -> None:
    body = "s = Shape(x) a = Gather(s, i) t = Concat<axis=0>(a, m, e) y = Reshape(x, t)"
    arrays = {"i": np.array([3]), "m": np.array([-1]), "e": np.array([8]), "zero": np.array([0])}
    shapes = shapes_of(f"{body} z = Transpose(y) q = MatMul(w, z)", {**arrays, "w": normal(5, 8)})
    assert "y" not in shapes
    assert shapes["s"] == (4,)
    body = "s = Shape(x) a = Gather(s, i) t = Concat<axis=0>(a, e) k = ConstantOfShape(t) "
    shapes = shapes_of(
        body + "y = ReduceSum<keepdims=0>(k, zero)", {**arrays, "zero": arrays["i"] * 0}
    )
    assert shapes["y"] == (8,)


def test_functions_of_the_model_are_looked_into() -> None:
    proto = text_model(
        f"{LINE}{{ y = own.f(x, w) }}", {"w": normal(5, 6, 1, 1)}, extra=', "own": 1'
    )
    function = proto.functions.add(domain="own", name="f", input=["a", "b"], output=["r"])
    function.opset_import.add(version=17)
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 7
    function.node.add(op_type="Conv", input=["a", "b"], output=["w"])
    function.node.add(op_type="Relu", input=["w"], output=["r"])
    shapes = infer_shapes(proto)
    assert (shapes["y"], shapes["w"]) == ((1, 5, 8, 7), (5, 6, 1, 1))


def test_numbers_that_grow_without_end_are_not_computed() -> None:
    body = " ".join(f"a{i + 1} = Mul(a{i}, a{i})" for i in range(64))
    shapes = shapes_of(f"{body} y = ConstantOfShape(a64)", {"a0": np.array([9])})
    assert shapes["a64"] == (1,)
    assert "y" not in shapes
    body = " ".join(f"a{i + 1} = Concat<axis=0>(a{i}, a{i})" for i in range(40))
    assert shapes_of(f"{body} y = ConstantOfShape(a40)", {"a0": np.array([9])})["a5"] == (32,)


def test_sizes_below_nothing_are_not_known() -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    types = {"x": tensor_type(TensorProto.FLOAT, (1, 1, 8, 8))}
    types["w"] = tensor_type(TensorProto.FLOAT, (4, 1, 3, 20))
    found = infer_node(find_schema("", "Conv", 17), node, types, {}, {"": 17})
    assert type_shape(found["y"]) == (1, 4, 6, None)
