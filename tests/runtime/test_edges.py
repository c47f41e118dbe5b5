"""Inputs and settings at the edge of what models are run with."""

import math

import numpy as np
import onnxruntime
import pytest

from onnxprune.runtime import register

from .helpers import check_equal, compiled, net, normal, runtime_outputs, sparse

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
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = count
            register(options)
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
