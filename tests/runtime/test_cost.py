"""What layers are expected to cost, and what the rule makes of it."""

from dataclasses import replace

import numpy as np
import pytest

from onnxprune.runtime import CompiledModel, CompileOptions, Thresholds, compile_model
from onnxprune.runtime.compiler import read_plain
from onnxprune.runtime.cost import Work, dense_works, expected_speedup, sparse_works
from onnxprune.runtime.front import optimized
from onnxprune.runtime.plan import Plan

from .helpers import ANY, net, sparse

SHARED = Work("kxk", False, 256, 2304, 58_982, 1, 196, 401_408)
"""A convolution with 3×3 taps in the third stage of a ResNet at 90 %."""


def test_work_is_counted_from_the_graph():
    proto = net(
        "g (float[N, 12, 20, 30] x, float[N, 16, 10, 15] r) => (float[N, 16, 10, 15] y)"
        " { c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w) y = Add(c, r) }",
        w=sparse(16, 12, 3, 3),
    )
    plan = Plan(optimized(read_plain(proto)), CompileOptions(ANY))
    (layer,) = plan.chosen.values()
    nonzeros = int(np.count_nonzero(sparse(16, 12, 3, 3)))
    traffic = 4 * (12 * 600 + 2 * 16 * 150)
    work = plan.work(layer)
    assert work == Work("kxk", True, 16, 108, nonzeros, 1, 150, traffic)
    assert sparse_works(work) == {
        "weights": nonzeros * 10,
        "sums": 16 * 10,
        "kxk, strided copies": 108 * 10,
        "traffic": traffic,
        "calls": 1,
    }


def test_work_with_a_depthwise_layer_leaves_out_what_lies_between():
    proto = net(
        "g (float[N, 12, 64, 32] x, float[N, 40, 32, 16] z) => (float[N, 40, 32, 16] y)"
        " { c = Conv(x, w) r = Relu(c)"
        " d = Conv<group = 40, pads = [1, 1, 1, 1], strides = [2, 2]>(r, v) y = Add(d, z) }",
        w=sparse(40, 12, 1, 1),
        v=sparse(40, 1, 3, 3, density=1.0),
    )
    plan = Plan(optimized(read_plain(proto)), CompileOptions(ANY))
    (layer,) = plan.chosen.values()
    nonzeros = int(np.count_nonzero(sparse(40, 12, 1, 1)))
    traffic, between = 4 * (12 * 2048 + 2 * 40 * 512), 2 * 4 * 40 * 2048
    work = plan.work(layer)
    assert work == Work("1x1", False, 40, 12, nonzeros, 1, 2048, traffic, between)
    assert sparse_works(work) == {
        "weights": 2 * nonzeros * 128,
        "sums": 40 * 128 / 2,
        "traffic": traffic,
        "calls": 1,
    }
    assert dense_works(work) == {
        "1x1 products": 40 * 12 * 2048,
        "traffic": traffic + between,
        "calls": 2,
    }


def test_work_of_a_product_counts_tokens():
    proto = net(
        "g (float[N, 33, 40] x) => (float[N, 33, 24] y) { y = MatMul(x, w) }", w=sparse(24, 40).T
    )
    plan = Plan(optimized(read_plain(proto)), CompileOptions(ANY))
    (layer,) = plan.chosen.values()
    work = plan.work(layer)
    assert (work.kind, work.positions, work.traffic) == ("product", 33, 4 * 33 * 64)


def test_work_is_unknown_where_inputs_decide_on_sizes():
    proto = net(
        "g (float[N, 16, H, W] x) => (float[N, 24, A, B] y) { y = Conv(x, w) }",
        w=sparse(24, 16, 1, 1, density=0.1),
    )
    plan = Plan(optimized(read_plain(proto)), CompileOptions())
    (layer,) = plan.chosen.values()
    assert plan.work(layer) is None


def test_more_zeros_and_blocks_are_expected_to_be_faster():
    speedups = [
        expected_speedup(replace(SHARED, nonzeros=int(256 * 2304 * density)))
        for density in (0.3, 0.2, 0.1, 0.05)
    ]
    assert speedups == sorted(speedups)
    assert 1.25 < speedups[0] < 2.5
    assert 3 < speedups[2] < 6
    assert expected_speedup(replace(SHARED, block=4)) > expected_speedup(SHARED)


@pytest.mark.parametrize(
    ("channels", "pixels"), [(16, 56), (24, 28)], ids=["mobile-stem", "mobile-bottleneck"]
)
def test_narrow_pointwise_layers_stay_dense_where_wide_ones_do_not(channels, pixels):
    def reason(outputs: int, inputs: int, size: int) -> str:
        shape = f"{inputs}, {size}, {size}"
        proto = net(
            f"g (float[N, {shape}] x) => (float[N, {outputs}, {size}, {size}] y)"
            " { y = Conv(x, w) }",
            w=sparse(outputs, inputs, 1, 1, density=0.25),
        )
        (layer,) = compile_model(proto).record.layers
        return layer.reason

    narrow = reason(channels, channels, pixels)
    assert narrow.startswith("expected to be 0.")
    assert narrow.endswith("× as fast")
    assert reason(512, 512, 28) == ""


def mixed(thresholds: Thresholds) -> CompiledModel:
    """A layer that pays, and a dense one with some 60 times its work."""
    proto = net(
        "g (float[N, 64, 20, 20] x) => (float[N, 512, 20, 20] y)"
        " { a = Conv(x, v) b = Relu(a) y = Conv<pads = [1, 1, 1, 1]>(b, w) }",
        v=sparse(512, 64, 1, 1, density=0.05),
        w=np.ones((512, 512, 3, 3), np.float32),
    )
    return compile_model(proto, CompileOptions(thresholds))


def test_a_model_that_gains_too_little_as_a_whole_stays_as_it_is():
    result = mixed(Thresholds())
    assert result.record.replaced == 0
    assert result.record.layers[0].reason == "the whole model is expected to gain too little"
    assert result.record.layers[0].fused == []
    assert mixed(Thresholds(least_gain=0)).record.replaced == 1
