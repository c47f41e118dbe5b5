"""Which values are tiled, and that the operators agree on it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.runtime.compiler import compile_model
from onnxprune.runtime.layouts import LayoutRule
from onnxprune.runtime.plan import CompileOptions

from .helpers import ANY, attributes, check_equal, compiled, net, normal, sparse
from .reference import tiles, to_plain, to_tiled

SIZE = 19
"""361 pixels: five tiles and a last one of 41."""


def tiled(proto) -> set[str]:
    """Values of a compiled model that are tiled; all who read them must agree."""
    made: set[str] = set()
    scalars = {tensor.name for tensor in proto.graph.initializer if not tensor.dims}
    for node in proto.graph.node:
        found = attributes(node)
        if node.op_type == "SparseConv":
            assert (found["x_layout"] == b"tiled") == (node.input[0] in made)
            if len(node.input) > 5:
                assert (node.input[5] in made) == (found["y_layout"] == b"tiled")
            made |= set(node.output) if found["y_layout"] == b"tiled" else set()
        elif made & set(node.input):
            assert node.op_type in {"Mul", "Add", "Tanh", "Relu"}
            assert set(node.input) <= made | scalars
            made |= set(node.output)
    assert not made & {value.name for value in proto.graph.output}
    return made


def weights(count: int, kernel: int = 1) -> dict[str, np.ndarray]:
    return {f"w{i}": sparse(8, 8, kernel, kernel, seed=i) for i in range(count)}


def graph(body: str, outputs: str = "float[N, 8, H, W] y", size: int = SIZE) -> str:
    return f"g (float[N, 8, {size}, {size}] x) => ({outputs}) {{ {body} }}"


@pytest.mark.parametrize(("pixels", "sizes"), [
    (1, [1]), (80, [80]), (81, [64, 17]), (144, [64, 80]), (145, [64, 64, 17]),
])  # fmt: skip
def test_tiles_are_64_pixels_and_the_last_up_to_80(pixels: int, sizes: list[int]):
    assert [end - start for start, end in tiles(pixels)] == sizes


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 300))
def test_tiling_is_a_permutation(count: int, channels: int, pixels: int):
    x = np.arange(count * channels * pixels).reshape(count, channels, pixels)
    np.testing.assert_array_equal(to_plain(to_tiled(x)), x)


def test_the_place_of_a_pixel_in_a_tiled_value():
    x = np.arange(2 * 3 * 200).reshape(2, 3, 10, 20)
    assert to_tiled(x).ravel()[1 * 600 + 64 * 3 + 2 * 64 + 5] == x[1, 2, 3, 9], "pixel 69"


def test_a_chain_of_pointwise_layers(kernels: bool):
    proto = net(
        graph("a = Conv(x, w0) b = Relu(a) c = Conv(b, w1) d = Conv(c, w2) y = Sigmoid(d)"),
        **weights(3),
    )
    result = compiled(proto)
    assert tiled(result.proto) == {"b", "c"}
    feeds = {"x": normal(2, 8, SIZE, SIZE)}
    check_equal(proto, result, feeds, kernels, replaced=3)
    plain = compiled(proto, layouts="plain")
    assert tiled(plain.proto) == set()
    check_equal(proto, plain, feeds, kernels, replaced=3)


RULES: list[tuple[LayoutRule, set[str]]] = [
    ("plain", set()),
    ("pointwise", set()),
    ("strided", {"a"}),
    ("all", {"a", "b"}),
]


@pytest.mark.parametrize(("rule", "expected"), RULES)
def test_who_reads_tiled_values_is_a_matter_of_the_rule(
    rule: LayoutRule, expected: set[str], kernels: bool
):
    proto = net(
        graph(
            "a = Conv(x, w0) b = Conv<strides = [2, 2]>(a, w1)"
            " y = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(b, v)"
        ),
        **weights(2),
        v=sparse(8, 8, 3, 3),
    )
    result = compiled(proto, layouts=rule)
    assert tiled(result.proto) == expected
    check_equal(proto, result, {"x": normal(2, 8, SIZE, SIZE)}, kernels, replaced=3)


RESIDUAL = (
    "a = Conv(x, w0) b = Conv(a, w1) r = Relu(b) c = Conv(r, w2) s = Add(a, c) t = Relu(s)"
    " d = Conv(t, w3) u = Add(d, t) "
)


def test_a_chain_of_residuals_is_tiled_as_a_whole(kernels: bool):
    proto = net(graph(RESIDUAL + "y = Conv(u, w4)"), **weights(5))
    result = compiled(proto)
    assert tiled(result.proto) == {"a", "r", "t", "u"}
    check_equal(proto, result, {"x": normal(2, 8, SIZE, SIZE)}, kernels, replaced=5)


def test_one_reader_at_the_end_makes_the_whole_chain_plain(kernels: bool):
    """A pool reads u, so u is plain, and so are its residual t and t's residual a."""
    proto = net(
        graph(RESIDUAL + "y = GlobalMaxPool(u)", "float[N, 8, 1, 1] y"),
        **weights(4),
    )
    result = compiled(proto)
    assert tiled(result.proto) == {"r"}
    check_equal(proto, result, {"x": normal(2, 8, SIZE, SIZE)}, kernels, replaced=4)


def test_a_residual_from_outside_makes_a_value_plain(kernels: bool):
    proto = net(
        graph("p = Tanh(x) a = Conv(x, w0) s = Add(a, p) b = Conv(s, w1) y = Conv(b, w2)"),
        **weights(3),
    )
    result = compiled(proto)
    assert tiled(result.proto) == {"b"}
    check_equal(proto, result, {"x": normal(1, 8, SIZE, SIZE)}, kernels, replaced=3)


def test_elementwise_operators_keep_the_layout(kernels: bool):
    proto = net(
        graph(
            "a = Conv(x, w0) b = Conv(x, w1) m = Mul(a, b) t = Tanh(m) k = Mul(t, two)"
            " y = Conv(k, w2)"
        ),
        **weights(3),
        two=np.array(2, np.float32),
    )
    result = compiled(proto)
    assert tiled(result.proto) == {"a", "b", "m", "t", "k"}
    check_equal(proto, result, {"x": normal(2, 8, SIZE, SIZE)}, kernels, replaced=3)


def test_elementwise_operators_that_broadcast_do_not(kernels: bool):
    proto = net(
        f"g (float[N, 8, {SIZE}, {SIZE}] x, float[N, 8, 1, 1] gate) => (float[N, 8, H, W] y)"
        " { a = Conv(x, w0) m = Mul(a, gate) y = Conv(m, w1) }",
        **weights(2),
    )
    result = compiled(proto)
    assert tiled(result.proto) == set()
    feeds = {"x": normal(1, 8, SIZE, SIZE), "gate": normal(1, 8, 1, 1)}
    check_equal(proto, result, feeds, kernels, replaced=2)


def test_an_output_of_the_graph_is_plain(kernels: bool):
    proto = net(
        graph("a = Conv(x, w0) y = Conv(a, w1)", "float[N, 8, H, W] y, float[N, 8, H, W] a"),
        **weights(2),
    )
    result = compiled(proto)
    assert tiled(result.proto) == set()
    check_equal(proto, result, {"x": normal(1, 8, SIZE, SIZE)}, kernels, replaced=2)


@given(seed=st.integers(0, 10_000), rule=st.sampled_from(["pointwise", "strided", "all"]))
def test_random_networks_agree_on_their_layouts(kernels: bool, seed: int, rule: LayoutRule):
    """Convolutions, sums and activations at random; every reader knows how its input lies."""
    rng = np.random.default_rng(seed)
    values, nodes = ["x"], []
    for step in range(int(rng.integers(3, 10))):
        one, other = (str(rng.choice(values)) for _ in range(2))
        kind = rng.choice(["Conv", "Conv", "wide", "deep", "Add", "Relu", "Mul"])
        text = {
            "Conv": f"Conv({one}, w{step % 3})",
            "wide": f"Conv<pads = [1, 1, 1, 1]>({one}, v)",
            "deep": f"Conv<group = 8, pads = [1, 1, 1, 1]>({one}, g)",
            "Relu": f"Relu({one})",
        }.get(kind, f"{kind}({one}, {other})")
        nodes.append(f"n{step} = {text}")
        values.append(f"n{step}")
    proto = net(
        graph(" ".join([*nodes, f"y = Neg({values[-1]})"]), size=10),
        **weights(3),
        v=sparse(8, 8, 3, 3),
        g=normal(8, 1, 3, 3),
    )
    result = compiled(proto, layouts=rule)
    check_equal(proto, result, {"x": normal(2, 8, 10, 10)}, kernels)


@pytest.mark.parametrize(("batch", "named"), [("N", "N"), ("?", "onnxprune_batch"), ("3", 3)])
def test_shapes_let_onnx_runtime_write_over_a_residual(batch: str, named: str | int):
    """It does so only where it knows that two values are as large; otherwise each layer with a
    residual writes to memory that no cache holds."""
    proto = net(
        f"g (float[{batch}, 8, {SIZE}, {SIZE}] x) => (float[{batch}, 8, {SIZE}, {SIZE}] y) {{"
        " a = Conv(x, w0) b = Conv(a, w1) c = Add(a, b) y = Conv(c, w2) }",
        **weights(3),
    )
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in compiled(proto).proto.graph.value_info
    }
    assert shapes["a"] == shapes["c"] == [named, 8, SIZE, SIZE]


def test_batches_of_two_names_are_not_taken_for_one():
    proto = net(
        f"g (float[N, 8, {SIZE}, {SIZE}] x, float[M, 8, {SIZE}, {SIZE}] z)"
        f" => (float[N, 8, {SIZE}, {SIZE}] y, float[M, 8, {SIZE}, {SIZE}] v) {{"
        " a = Conv(x, w0) y = Conv(a, w1) b = Conv(z, w0) v = Conv(b, w1) }",
        **weights(2),
    )
    for value in compiled(proto).proto.graph.value_info:
        assert not value.type.tensor_type.shape.dim[0].dim_param


def test_strided_pointwise_layers_do_not_keep_a_stage_plain():
    """As the first blocks of a residual network's stages have them."""
    proto = net(
        graph(
            "a = Conv(x, w0) b = Conv(a, w1) c = Add(a, b) d = Conv<strides = [2, 2]>(c, w2)"
            " e = Conv(c, w3) f = Conv<strides = [2, 2]>(e, w4) y = Add(d, f)"
        ),
        **weights(5),
    )
    result = compile_model(proto, CompileOptions(ANY))
    assert {"a", "c"} <= tiled(result.proto)
