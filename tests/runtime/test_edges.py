"""Inputs and settings at the edge of what models are run with."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxprune.runtime import register

from .helpers import (
    check_equal,
    compiled,
    net,
    normal,
    runtime_outputs,
    sparse,
    sparse_nodes,
)

CONVOLUTION = net(
    "g (float[N, 16, H, W] x) => (float[N, 32, P, Q] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w) }",
    w=sparse(32, 16, 3, 3),
)
PRODUCT = net(
    "g (float[N, T, 24] x) => (float[N, T, 40] y) { y = MatMul(x, k) }", k=sparse(40, 24).T
)
POINTWISE = net(
    "g (float[N, 16, H, W] x) => (float[N, 32, P, Q] y) { y = Conv(x, w) }", w=sparse(32, 16, 1, 1)
)


@pytest.mark.parametrize("shape", [(0, 16, 9, 9), (1, 16, 1, 1), (2, 16, 1, 200)])
def test_images_of_few_pixels_or_none(shape: tuple[int, ...], kernels: bool):
    for proto in (CONVOLUTION, POINTWISE):
        count, _, height, width = shape
        feeds = {"x": normal(*shape)}
        if math.prod(shape):
            check_equal(proto, compiled(proto), feeds, kernels, replaced=1)
        elif kernels:
            (y,) = runtime_outputs(compiled(proto).proto, feeds)
            assert y.shape == (count, 32, height, width)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_products_of_few_vectors_or_none(shape: tuple[int, ...], kernels: bool):
    check_equal(PRODUCT, compiled(PRODUCT), {"x": normal(*shape, 24)}, kernels, replaced=1)


@pytest.mark.parametrize("threads", [65, 100])
def test_more_threads_than_processors(threads: int, need_kernels: None):
    for proto, shape in ((CONVOLUTION, (3, 16, 30, 30)), (PRODUCT, (30, 30, 24))):
        found = []
        for count in (1, threads):
            options = with_kernels(count)
            content = compiled(proto).proto.SerializeToString()
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            found.append(session.run(None, {"x": normal(*shape)})[0])
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("images", [1, 3])
def test_tiles_that_are_left_over_are_shared(images: int, kernels: bool):
    """Three tiles an image: two processors take as many each, and pieces of the last one."""
    proto = net(
        "g (float[N, 16, H, W] x) => (float[N, 256, P, Q] y) "
        "{ y = Conv<pads = [1, 1, 1, 1]>(x, w) }",
        w=sparse(256, 16, 3, 3, density=0.05),
    )
    feeds = {"x": normal(images, 16, 14, 14)}
    check_equal(proto, compiled(proto), feeds, kernels, replaced=1)


def test_what_is_not_finite_reaches_only_outputs_that_have_a_weight_for_it(need_kernels: None):
    """Zeros are left out, so 0 · NaN is not computed, as it is by dense kernels."""
    x = normal(4, 3, 24)
    x[1, 2, 5] = np.nan
    (y,) = runtime_outputs(compiled(PRODUCT).proto, {"x": x})
    expected = np.zeros(y.shape, bool)
    expected[1, 2] = sparse(40, 24)[:, 5] != 0
    assert 0 < expected.sum() < 40
    np.testing.assert_array_equal(np.isnan(y), expected)


ATTRIBUTES = {
    "a number for a name": ({"activation": 3}, "activation has another type; expected a string"),
    "names for a name": ({"activation": ["Relu"]}, "activation has another type"),
    "an integer for a float": (
        {"activation": "LeakyRelu", "alpha": 1},
        "alpha has another type; expected a float",
    ),
    "no number": ({"activation": "LeakyRelu", "alpha": math.nan}, "alpha is not a number"),
    "ends of Clip": ({"activation": "Clip", "alpha": 2.0, "beta": 1.0}, "alpha is above beta"),
    "a float for an integer": ({"block": 4.0}, "block has another type; expected an integer"),
}


@pytest.mark.parametrize("case", ATTRIBUTES)
@pytest.mark.parametrize("proto", [CONVOLUTION, PRODUCT], ids=["SparseConv", "SparseMatMul"])
def test_attributes_that_make_no_sense_are_refused_when_a_session_is_created(
    proto: onnx.ModelProto, case: str, need_kernels: None
):
    """Taken for missing, they would change what is computed without a word."""
    changes, message = ATTRIBUTES[case]
    changed = compiled(proto).proto
    (node,) = sparse_nodes(changed)
    kept = [a for a in node.attribute if a.name not in changes]
    del node.attribute[:]
    node.attribute.extend([*kept, *itertools.starmap(onnx.helper.make_attribute, changes.items())])
    with pytest.raises(Exception, match=rf"onnxprune {node.op_type} .*{message}"):
        onnxruntime.InferenceSession(
            changed.SerializeToString(), with_kernels(1), providers=["CPUExecutionProvider"]
        )


def test_one_session_runs_from_many_threads(need_kernels: None):
    """Each call has memory of its own, and of its thread."""
    session = onnxruntime.InferenceSession(
        compiled(CONVOLUTION).proto.SerializeToString(),
        with_kernels(2),
        providers=["CPUExecutionProvider"],
    )
    feeds = [{"x": normal(1 + n % 3, 16, 20 + n, 31, seed=n)} for n in range(24)]
    alone = [session.run(None, feed)[0] for feed in feeds]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda feed: session.run(None, feed)[0], feeds * 4))
    for expected, found in zip(alone * 4, together, strict=True):
        np.testing.assert_array_equal(found, expected)


def with_kernels(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    register(options)
    return options
