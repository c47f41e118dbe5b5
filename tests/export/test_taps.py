"""Inner tensors as further outputs: they are the graph's own values, and the graph stays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser

from onnxprune.errors import UsageError
from onnxprune.export import tapped
from onnxprune.importer import load
from onnxprune.model import OnnxModel, read
from onnxprune.validate import open_session

KEY = "[distill] features"
GRAPH = """g (float[N,4] x) => (float[N,3] y) <float hidden> {
    h = Gemm<transB = 1>(x, w, b)
    r = Relu(h)
    k = Constant<value = float[1] {2.0}>()
    s = Mul(r, k)
    y = MatMul(s, head)
}"""


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def text_model(graph: str, **arrays: np.ndarray) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]> {graph}')
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


@pytest.fixture
def model() -> OnnxModel:
    graph = GRAPH.replace(" <float hidden>", "")
    return read(text_model(graph, w=random(5, 4), b=random(5), head=random(5, 3)))


def test_the_original_stays_as_it_is(model: OnnxModel) -> None:
    before = model.proto.SerializeToString(deterministic=True)
    copy = tapped(model, ["r", "h", "y", "r"], KEY)
    assert [spec.name for spec in copy.outputs] == ["y", "r", "h"]
    assert model.proto.SerializeToString(deterministic=True) == before
    assert copy.proto.graph.node == model.proto.graph.node
    assert copy.proto.graph.initializer == model.proto.graph.initializer
    assert tapped(model, ["y"], KEY) is model
    assert tapped(model, [], KEY) is model


def test_values_are_those_of_onnx_runtime(model: OnnxModel) -> None:
    x = random(6, 4, seed=5)
    copy = tapped(model, ["h", "s"], KEY)
    found = open_session(copy).run({"x": x})
    arrays = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    h = x @ arrays["w"].T + arrays["b"]
    np.testing.assert_allclose(found["h"], h, atol=1e-5)
    np.testing.assert_allclose(found["s"], 2 * np.maximum(h, 0), atol=1e-5)


def assert_all_equal_runtime(model: OnnxModel, feeds: dict[str, np.ndarray], every: int) -> int:
    """Tap inner tensors of a graph, all at once, and compare them with ONNX Runtime's."""
    nodes = [node for node in model.proto.graph.node if node.op_type != "Constant"]
    names = [name for node in nodes for name in node.output if name]
    copy = tapped(model, names[::every], KEY)
    session = open_session(copy, threads=1, optimization="none")
    module = load(copy).eval()
    with torch.no_grad():
        values = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    expected = session.run(feeds)
    assert list(expected) == module.output_names
    for name, value in zip(module.output_names, values, strict=True):
        scale = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(
            value.detach().numpy(), expected[name], atol=1e-4 * scale, err_msg=name
        )
    return len(expected)


def test_fusions_leave_every_tensor_readable() -> None:
    """GELU, layer normalisation and attention, of which each inner step is asked for."""
    graph = """g (float[N,6,8] x) => (float[N,6,8] y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        kt = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, kt)
        d = Div(s, root)
        p = Softmax<axis = -1>(d)
        a = MatMul(p, v)
        z = Add(a, x)
        mean = ReduceMean<axes = [2]>(z)
        c = Sub(z, mean)
        c2 = Mul(c, c)
        var = ReduceMean<axes = [2]>(c2)
        e = Add(var, eps)
        sd = Sqrt(e)
        n0 = Div(c, sd)
        n1 = Mul(n0, g1)
        n2 = Add(n1, b1)
        u = MatMul(n2, w1)
        ud = Div(u, root2)
        er = Erf(ud)
        e1 = Add(er, one)
        t = Mul(u, e1)
        y = Mul(t, half)
    }"""
    numbers = {"root": 8**0.5, "root2": 2**0.5, "one": 1.0, "half": 0.5, "eps": 1e-5}
    arrays = {name: np.array(value, np.float32) for name, value in numbers.items()}
    weights = {name: random(8, 8, seed=i) for i, name in enumerate(("wq", "wk", "wv", "w1"))}
    proto = text_model(graph, **arrays, **weights, g1=random(8), b1=random(8, seed=9))
    model = read(proto)
    fused = {node.target for node in load(model).graph.nodes if node.op == "call_function"}
    assert torch.nn.functional.gelu in fused
    assert assert_all_equal_runtime(model, {"x": random(2, 6, 8, seed=4)}, every=1) == 24


def test_of_a_real_model(real_model: Callable[[str], Path]) -> None:
    """The PP-OCR angle classifier: Conv, BatchNorm, HardSwish, squeeze-and-excitation."""
    model = read(real_model("ch_ppocr_mobile_v2.0_cls_infer.onnx"))
    assert assert_all_equal_runtime(model, {"x": random(1, 3, 48, 192)}, every=7) > 20


class TestRefusals:
    def test_an_unknown_name_lists_close_ones(self) -> None:
        graph = "g (float[N,4] x) => (float[N,4] y) { layer1_relu = Relu(x) y = Neg(layer1_relu) }"
        with pytest.raises(UsageError, match=r"got: layer_relu\n(.|\n)*'layer1_relu'") as caught:
            tapped(read(text_model(graph)), ["layer_relu"], KEY)
        assert KEY in str(caught.value)

    @pytest.mark.parametrize("name", ["w", "x", "k"])
    def test_stored_and_fed_tensors(self, model: OnnxModel, name: str) -> None:
        with pytest.raises(UsageError, match="stored or fed"):
            tapped(model, [name], KEY)

    def test_tensors_of_sub_graphs(self) -> None:
        graph = """g (float[N,4] x, bool c) => (float[N,4] y) {
            y = If (c) <
                then_branch = a () => (float[N,4] p) { inner = Relu(x) p = Neg(inner) },
                else_branch = b () => (float[N,4] q) { q = Abs(x) }
            >
        }"""
        with pytest.raises(UsageError, match="inside an If, Loop or Scan"):
            tapped(read(text_model(graph)), ["inner"], KEY)
