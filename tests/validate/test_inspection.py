import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import model
from onnxprune.errors import ModelFileError
from onnxprune.export.metadata import (
    KEY,
    SparsityMetadata,
    describe_tensors,
    overall_sparsity,
    write_metadata,
)
from onnxprune.graph_shapes import infer_shapes
from onnxprune.recipe import Recipe, SparsityTable, pattern_sparsity
from onnxprune.tensors import find_tensors
from onnxprune.validate.flops import count_flops
from onnxprune.validate.inspection import Inspection, inspect_model
from onnxprune.validate.observed_pattern import observed_pattern


def small_model(**weights: np.ndarray) -> onnx.ModelProto:
    """Conv, BatchNormalization, depthwise Conv, pooling, Gemm; weights can be replaced by name."""
    rng = np.random.default_rng(0)
    arrays = {
        "conv.weight": rng.normal(size=(8, 4, 3, 3)),
        "conv.bias": rng.normal(size=8),
        "bn.scale": np.ones(8),
        "bn.shift": np.zeros(8),
        "bn.mean": np.zeros(8),
        "bn.var": np.ones(8),
        "depthwise.weight": rng.normal(size=(8, 1, 3, 3)),
        "fc.weight": rng.normal(size=(10, 8)),
    }
    assert weights.keys() <= arrays.keys()
    arrays |= weights
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], "conv", pads=[1] * 4),
        helper.make_node(
            "BatchNormalization", ["a", "bn.scale", "bn.shift", "bn.mean", "bn.var"], ["b"], "bn"
        ),
        helper.make_node("Conv", ["b", "depthwise.weight"], ["c"], "depthwise", group=8),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("Gemm", ["e", "fc.weight"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def one_product(weight: np.ndarray, *, trans_b: bool = False) -> onnx.ModelProto:
    """`y = x @ weight`, or with the weight transposed."""
    rows, columns = weight.shape[::-1] if trans_b else weight.shape
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "gemm", transB=int(trans_b))
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def with_metadata(proto: onnx.ModelProto, pattern: str = "unstructured") -> onnx.ModelProto:
    prunable = [tensor for tensor in find_tensors(proto).values() if tensor.prunable]
    entries = describe_tensors(prunable, {tensor.name: pattern for tensor in prunable})
    target = pattern_sparsity(pattern)
    settings = SparsityTable(target=target, pattern=pattern, method="gmp")
    write_metadata(
        proto,
        SparsityMetadata(
            schema_version=1,
            tool_version="0",
            method="gmp",
            target_sparsity=settings.resolved_target,
            sparsity=overall_sparsity(entries),
            pattern=pattern,
            source_sha256="0" * 64,
            payload_sha256=model.payload_sha256(proto),
            recipe=Recipe(sparsity=settings).portable(),
            data={},
            tensors=entries,
        ),
    )
    return proto


def keep_n_of_m(shape: tuple[int, ...], axis: int, n: int, m: int, seed: int = 0) -> np.ndarray:
    """Values with exactly `n` non-zeros in each group of `m` along `axis`."""
    rng = np.random.default_rng(seed)
    moved = np.moveaxis(np.zeros(shape), axis, -1)
    groups = moved.size // m
    order = rng.permuted(np.tile(np.arange(m), (groups, 1)), axis=1)
    values = np.where(order < n, rng.uniform(0.1, 1, (groups, m)), 0.0)
    return np.moveaxis(values.reshape(moved.shape), -1, axis)


def pattern_of(weight: np.ndarray, *, trans_b: bool = False) -> str:
    tensors = find_tensors(one_product(weight, trans_b=trans_b))
    values = tensors["w"].array()
    return observed_pattern(tensors["w"], values, int(np.count_nonzero(values)))


def by_name(inspection: Inspection) -> dict[str, dict]:
    return {tensor["name"]: tensor for tensor in inspection.to_json()["tensors"]}


def test_json_has_the_agreed_keys_and_counts(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).normal(size=(8, 4, 3, 3))
    weight.ravel()[:72] = 0
    path = tmp_path / "m.onnx"
    model.write(small_model(**{"conv.weight": weight}), path)
    inspection = inspect_model(path)
    value = json.loads(json.dumps(inspection.to_json()))
    assert value["path"] == str(path)
    assert (value["opset"], value["ir_version"]) == (17, 10)
    assert value["parameters"] == 288 + 8 + 8 + 8 + 72 + 80
    assert value["prunable_parameters"] == 288 + 80
    assert value["sparsity"] == 72 / 368
    assert value["size_bytes"] == path.stat().st_size
    assert value["metadata"] is None
    assert value["metadata_true"] is None
    assert value["domains"] == {"ai.onnx": 17}
    assert value["nodes"] == 6
    assert next(iter(value["operators"].items())) == ("Conv", 2)
    assert value["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 4, 6, 6]}]
    tensors = by_name(inspection)
    assert tensors["conv.weight"] | {"flops": 0} == {
        "name": "conv.weight",
        "op_type": "Conv",
        "role": "weight",
        "dtype": "float32",
        "shape": [8, 4, 3, 3],
        "size": 288,
        "zeros": 72,
        "sparsity": 0.25,
        "prunable": True,
        "trainable": True,
        "pattern": "channel",
        "reduction_axis": 1,
        "output_axis": 0,
        "flops": 0,
        "aliases": [],
    }
    assert not tensors["depthwise.weight"]["prunable"]
    assert not tensors["bn.mean"]["trainable"]
    assert tensors["bn.shift"]["pattern"] == "unstructured"
    assert tensors["fc.weight"]["pattern"] == "dense"


def test_flops_are_two_per_multiply_add() -> None:
    proto = small_model()
    flops = count_flops(proto, find_tensors(proto))
    conv = 2 * (8 * 6 * 6) * (4 * 3 * 3)
    depthwise = 2 * (8 * 4 * 4) * 9
    assert flops.by_tensor == {
        "conv.weight": conv,
        "depthwise.weight": depthwise,
        "fc.weight": 2 * 80,
    }
    assert flops.total == conv + depthwise + 160


def test_flops_of_the_other_operators() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "t": rng.normal(size=(4, 6, 2, 2)),
        "w": rng.normal(size=(1, 20, 6)),
        "r": rng.normal(size=(1, 20, 5)),
        "m": rng.normal(size=(5, 7)),
    }
    nodes = [
        helper.make_node("ConvTranspose", ["x", "t"], ["a"], "up", strides=[2, 2]),
        helper.make_node("LSTM", ["s", "w", "r"], ["b"], "lstm", hidden_size=5),
        helper.make_node("MatMul", ["b", "m"], ["c"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "others",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 3, 3]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [11, "N", 6]),
        ],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    flops = count_flops(proto, find_tensors(proto))
    assert flops.by_tensor == {
        "t": 2 * (4 * 3 * 3) * (6 * 2 * 2),
        "w": 2 * 11 * 120,
        "r": 2 * 11 * 100,
        "m": 2 * 11 * 5 * 7,
    }
    assert flops.total == sum(flops.by_tensor.values())


def test_flops_are_unknown_where_shapes_are() -> None:
    proto = small_model()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    flops = count_flops(proto, find_tensors(proto))
    assert flops.total is None
    assert flops.by_tensor == {"fc.weight": 160}


def test_shape_inference_neither_changes_nor_copies_large_tensors() -> None:
    proto = one_product(np.ones((256, 64)))
    before = proto.SerializeToString(deterministic=True)
    assert infer_shapes(proto)["y"] == (1, 64)
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8)])
@pytest.mark.parametrize("trans_b", [False, True])
def test_nm_patterns_are_found_along_the_reduction_axis(n: int, m: int, trans_b: bool) -> None:
    axis = 1 if trans_b else 0
    weight = keep_n_of_m((32, 32), axis, n, m)
    assert pattern_of(weight, trans_b=trans_b) == f"{n}:{m}"
    assert pattern_of(weight, trans_b=not trans_b) == "unstructured"


def keep_blocks(
    shape: tuple[int, int], rows: int, columns: int, share: float, seed: int = 0
) -> np.ndarray:
    """Outputs by inputs, of which a share of the blocks is not zero."""
    rng = np.random.default_rng(seed)
    grid = rng.random((shape[0] // rows, shape[1] // columns)) < share
    kept = grid.repeat(rows, axis=0).repeat(columns, axis=1)
    return np.where(kept, rng.uniform(0.1, 1, shape), 0.0)


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (1, 4), (16, 1), (4, 4), (1, 2)])
def test_blocks_are_found_along_outputs_and_inputs(rows: int, columns: int, trans_b: bool) -> None:
    weight = keep_blocks((32, 48), rows, columns, 0.3)
    stored = weight if trans_b else weight.T
    assert pattern_of(stored, trans_b=trans_b) == f"block:{rows}x{columns}"
    turned = "unstructured" if rows != columns else f"block:{rows}x{columns}"
    if columns != 2:
        assert pattern_of(stored, trans_b=not trans_b) in (turned, f"block:{columns}x{rows}")


def test_blocks_that_are_no_squares_or_lines_are_found_by_what_they_consist_of() -> None:
    assert pattern_of(keep_blocks((32, 48), 8, 4, 0.3), trans_b=True) == "block:4x4"


def test_a_part_of_a_block_is_allowed_and_more_is_not() -> None:
    weight = keep_blocks((32, 16), 4, 1, 0.5)
    first = np.argwhere(weight[::4] != 0)[:2]
    for number, (row, column) in enumerate(first):
        weight[4 * row : 4 * row + 3 : 1 + number, column] = 0
        assert pattern_of(weight, trans_b=True) == ("unstructured" if number else "block:4x1")


def test_a_few_zeros_are_no_blocks() -> None:
    """They keep to any block that is larger than their number, which says nothing."""
    weight = np.random.default_rng(0).uniform(0.1, 1, (32, 32))
    weight[3, 5] = weight[20, 7] = 0
    assert pattern_of(weight) == "unstructured"
    claimed = with_metadata(one_product(weight), "block:4x1")
    assert by_name(inspect_model(claimed))["w"]["pattern"] == "block:4x1"


@pytest.mark.parametrize("group", [3, 100, -2])
def test_groups_that_make_no_sense_do_no_harm(group: int) -> None:
    weight = keep_blocks((10, 36), 2, 1, 0.5).reshape(10, 4, 3, 3)
    proto = small_model(**{"conv.weight": weight})
    proto.graph.node[0].attribute.add(name="group", i=group, type=onnx.AttributeProto.INT)
    expected = "block:2x1" if group < 0 else "unstructured"
    assert by_name(inspect_model(proto))["conv.weight"]["pattern"] == expected


def test_dead_inputs_are_no_blocks() -> None:
    weight = np.random.default_rng(0).uniform(0.1, 1, (32, 32))
    weight[[3, 9, 21, 30]] = 0
    assert pattern_of(weight) == "unstructured"
    assert pattern_of(weight.T.copy()) == "channel"


def test_a_claim_of_blocks_is_compared_with_the_file() -> None:
    weight = keep_blocks((32, 16), 4, 2, 0.5)
    honest = inspect_model(with_metadata(one_product(weight.T), "block:4x2"))
    assert (honest.metadata.true, by_name(honest)["w"]["pattern"]) == (True, "block:4x2")
    lying = inspect_model(with_metadata(one_product(weight.T), "block:8x2"))
    assert lying.metadata.true is False
    assert any("block:8x2 does not hold" in problem for problem in lying.metadata.problems)
    assert by_name(lying)["w"]["pattern"] == "block:4x1"


def test_one_value_too_many_breaks_the_pattern() -> None:
    weight = keep_n_of_m((32, 32), 0, 2, 4)
    column = weight[:4, 5]
    column[np.flatnonzero(column == 0)[0]] = 0.5
    assert pattern_of(weight) == "unstructured"


def test_tiny_tensors_with_full_groups_keep_their_pattern() -> None:
    weight = np.tile(np.array([[1.0], [0.0], [1.0], [0.0]]), (1, 2))
    weight[1, 1], weight[0, 1] = 1.0, 0.0
    assert pattern_of(weight) == "2:4"


def test_chance_is_no_pattern() -> None:
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((64, 64)) < 0.01, rng.normal(size=(64, 64)), 0.0)
    weight[:, 0] = weight[:, 0] + (np.arange(64) % 16 == 0)
    groups = (weight != 0).reshape(8, 8, 64).sum(axis=1)
    assert groups.max() <= 4
    assert pattern_of(weight) == "unstructured"


@pytest.mark.parametrize(
    ("rows", "trans_b", "pattern"),
    [(True, True, "channel"), (False, False, "channel"), (True, False, "unstructured")],
)
def test_whole_output_channels(rows: bool, trans_b: bool, pattern: str) -> None:
    weight = np.random.default_rng(0).uniform(0.5, 1, (30, 30))
    if rows:
        weight[[1, 7, 8]] = 0
    else:
        weight[:, [1, 7, 8]] = 0
    assert pattern_of(weight, trans_b=trans_b) == pattern
    weight[0, 0] = 0
    assert pattern_of(weight, trans_b=trans_b) == "unstructured"


def test_negative_zero_is_zero_and_dense_is_dense() -> None:
    weight = np.ones((6, 6))
    assert pattern_of(weight) == "dense"
    weight[2, 3] = -0.0
    assert pattern_of(weight) == "unstructured"
    assert by_name(inspect_model(one_product(weight)))["w"]["zeros"] == 1


def test_a_claimed_pattern_that_holds_is_reported() -> None:
    weight = keep_n_of_m((16, 16), 0, 2, 8)
    assert pattern_of(weight) != "2:8"
    claimed = inspect_model(with_metadata(one_product(weight), "2:8"))
    assert by_name(claimed)["w"]["pattern"] == "2:8"
    assert claimed.metadata.true is True
    false = inspect_model(with_metadata(one_product(np.ones((16, 16))), "2:8"))
    assert by_name(false)["w"]["pattern"] == "dense"
    assert false.metadata.true is False


def test_metadata_are_compared_with_the_file() -> None:
    weight = keep_n_of_m((16, 16), 0, 2, 4)
    proto = with_metadata(one_product(weight), "2:4")
    honest = inspect_model(proto).to_json()
    assert honest["metadata_true"] is True
    assert honest["metadata_problems"] == []
    assert honest["metadata"]["sparsity"] == 0.5
    changed = weight.copy()
    changed[np.nonzero(changed)[0][0], np.nonzero(changed)[1][0]] = 0
    tampered = numpy_helper.from_array(changed.astype(np.float32), "w")
    proto.graph.initializer[0].raw_data = tampered.raw_data
    lying = inspect_model(proto).to_json()
    assert lying["metadata_true"] is False
    assert any("nonzeros" in problem for problem in lying["metadata_problems"])
    assert lying["tensors"][0]["zeros"] == 129


@pytest.mark.parametrize(
    "text",
    ["no json", "[]", '{"tensors": 3}', '{"tensors": [1, {"name": "w", "pattern": "0:0"}]}'],
)
def test_damaged_metadata_are_untrue_and_harmless(text: str) -> None:
    proto = one_product(np.eye(8))
    proto.metadata_props.add(key=KEY, value=text)
    inspection = inspect_model(proto)
    assert inspection.metadata.true is False
    assert inspection.metadata.problems
    assert by_name(inspection)["w"]["zeros"] == 56


def test_identity_aliases_are_one_tensor_and_named() -> None:
    weight = np.ones((6, 6), dtype=np.float32)
    nodes = [
        helper.make_node("Identity", ["w"], ["w2"]),
        helper.make_node("Identity", ["w2"], ["w3"]),
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w3"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    inspection = inspect_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    (tensor,) = inspection.tensors
    assert tensor.aliases == ["w2", "w3"]
    assert tensor.flops == 2 * 2 * 36
    assert inspection.parameters == 36


def test_weights_in_constant_nodes() -> None:
    weight = keep_n_of_m((64, 64), 0, 2, 4).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tensor = inspect_model(proto).tensors[0]
    assert (tensor.name, tensor.pattern, tensor.flops) == ("w", "2:4", 2 * 64 * 64)


def test_external_data_count_towards_the_size(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model.write(one_product(np.eye(64)), path, external=True)
    inspection = inspect_model(path)
    files = [file for file in tmp_path.iterdir() if file.is_file()]
    assert len(files) == 2
    assert inspection.size_bytes == sum(file.stat().st_size for file in files)
    assert inspection.tensors[0].zeros == 64 * 63


def test_a_model_without_prunable_tensors_has_no_sparsity() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    value = inspect_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ).to_json()
    assert (value["parameters"], value["sparsity"], value["flops"]) == (0, 0.0, 0)
    assert value["tensors"] == []
    assert value["path"] is None


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        inspect_model(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelFileError):
        inspect_model(tmp_path / "text.onnx")


def test_inspection_and_report_do_not_load_torch() -> None:
    code = (
        "import sys, onnxprune.validate.inspection, onnxprune.validate.report; "
        "print([name for name in ('torch', 'onnxruntime', 'click') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
