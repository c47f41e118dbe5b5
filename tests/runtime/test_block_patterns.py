"""Weights that the main job pruned in blocks of any size become sparse operators."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.runtime import compile_model

from .helpers import ANY, attributes, check_equal, compiled, net, normal, sparse_nodes

BLOCKS = {
    "4x1": 4,
    "8x1": 4,
    "16x1": 4,
    "4x4": 4,
    "12x2": 4,
    "1x4": 1,
    "2x1": 1,
    "2x2": 1,
    "6x1": 1,
}


def network() -> onnx.ModelProto:
    """Weights of all orientations; 30 outputs are no multiple of four."""
    return net(
        "g (float[N, 16, 9, 9] x) => (float[N, 30] y)"
        " { a = Conv<pads = [1, 1, 1, 1]>(x, conv) r = Relu(a) p = GlobalAveragePool(r)"
        " f = Flatten(p) m = MatMul(f, matmul) s = Relu(m) g = Gemm<transB = 1>(s, gemm)"
        " t = Relu(g) y = Gemm(t, odd) }",
        conv=normal(48, 16, 3, 3),
        matmul=normal(48, 96),
        gemm=normal(48, 96, seed=2),
        odd=normal(48, 30, seed=3),
    )


def pruned(pattern: str, sparsity: float, folder: Path) -> onnx.ModelProto:
    """As `onnxprune prune --epochs 0` writes it."""
    dense, output = folder / "dense.onnx", folder / "pruned.onnx"
    onnx.save(network(), dense)
    recipe = onnxprune.Recipe.from_dict(
        {
            "sparsity": {"target": sparsity, "pattern": pattern},
            "finetune": {"epochs": 0, "device": "cpu", "threads": 1},
            "validate": {"latency": False},
        }
    )
    onnxprune.prune(dense, output, recipe)
    return onnx.load(output)


@pytest.mark.parametrize("sides", BLOCKS)
def test_blocks_of_any_size(sides: str, tmp_path: Path, kernels: bool):
    proto = pruned(f"block:{sides}", 0.75, tmp_path)
    result = compiled(proto)
    fits = 30 % int(sides.split("x")[0]) == 0  # else the pruner leaves that layer dense
    check_equal(proto, result, {"x": normal(3, 16, 9, 9)}, kernels, replaced=3 + fits)
    assert [layer.block for layer in result.record.layers] == [BLOCKS[sides]] * 3 + [1]
    found = [attributes(node).get("block", 1) for node in sparse_nodes(result.proto)]
    assert found == [BLOCKS[sides]] * 3 + [1] * fits


def test_the_rule_asks_less_of_blocks_whose_rows_are_a_multiple_of_four(tmp_path: Path):
    rule = replace(ANY, unstructured=0.7, block=0.55, vector=0.99)
    replaced = {}
    for sides in ("8x1", "1x8"):
        proto = pruned(f"block:{sides}", 0.6, tmp_path)
        result = compile_model(proto, onnxprune.runtime.CompileOptions(rule))
        replaced[sides] = [layer.name for layer in result.record.layers if layer.sparse]
    assert replaced["1x8"] == []
    assert len(replaced["8x1"]) == 1


def test_a_group_of_rows_that_differ_is_no_block(kernels: bool):
    """Groups begin at row 0: blocks of four that begin at row 2 are read row by row."""
    weight = np.roll(np.repeat(normal(4, 32) * (normal(4, 32, seed=5) > 0.8), 4, axis=0), 2, axis=0)
    proto = net("g (float[N, 32] x) => (float[N, 16] y) { y = MatMul(x, k) }", k=weight.T)
    result = compiled(proto, thresholds=ANY)
    assert [layer.block for layer in result.record.layers] == [1]
    check_equal(proto, result, {"x": normal(9, 32)}, kernels, replaced=1)
    (values,) = [t for t in result.proto.graph.initializer if t.name.endswith(".values")]
    assert len(numpy_helper.to_array(values)) == np.count_nonzero(weight)
