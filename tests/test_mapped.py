"""Large files, with the limits lowered from which on they are mapped instead of read."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import external_data, mapped, model
from onnxprune.errors import ModelFileError
from onnxprune.export import write_back
from onnxprune.payload import payload_sha256
from onnxprune.tensors import find_tensors
from onnxprune.validate import inspect_model
from onnxprune.wire import parse_in_place
from tests.conftest import small_classifier


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "READ_AT_ONCE_BYTES", 0)
    monkeypatch.setattr(external_data, "MIN_MAPPED_BYTES", 100)
    mapped._mapping.cache_clear()


@pytest.fixture(params=["inline", "external"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """`small_classifier()` in a file, whose `conv.weight` of 864 bytes is large here."""
    target = tmp_path / "m.onnx"
    proto = small_classifier()
    if request.param == "external":
        onnx.save_model(proto, target, save_as_external_data=True, location="d", size_threshold=0)
    else:
        onnx.save(proto, target)
    return target


def test_large_tensors_stay_in_the_file_and_have_their_values(path: Path) -> None:
    whole, loaded = onnx.load(path), model.read(path)
    sizes = {t.name: len(t.raw_data) for t in loaded.proto.graph.initializer}
    assert sizes["conv.weight"] == sizes["fc.weight"] == 0
    assert sizes["fc.bias"] == 16
    assert payload_sha256(loaded.proto) == payload_sha256(whole)
    assert payload_sha256(ModelProto.FromString(model.serialized(loaded.proto))) == payload_sha256(
        whole
    )
    weight = find_tensors(loaded.proto)["conv.weight"].array()
    assert not weight.flags.writeable
    assert inspect_model(path).prunable_parameters == 248


def test_the_digest_is_that_of_the_files(path: Path) -> None:
    data = path.with_name("d")
    content = path.read_bytes() + (data.read_bytes() if data.exists() else b"")
    loaded = model.read(path)
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.size_bytes == len(content)


def test_a_file_that_changes_after_it_was_read_is_noticed(path: Path) -> None:
    loaded = model.read(path)
    held = path.with_name("d") if path.with_name("d").exists() else path
    os.utime(held, ns=(1, 1))
    with pytest.raises(ModelFileError, match="changed after the model was read"):
        _ = loaded.sha256
    with pytest.raises(ModelFileError, match="changed after the model was read"):
        payload_sha256(loaded.proto)


def test_a_file_that_is_replaced_or_removed_does_no_harm_once_it_is_mapped(path: Path) -> None:
    loaded = model.read(path)
    before = payload_sha256(loaded.proto)
    for file in path.parent.iterdir():
        file.unlink()
    assert payload_sha256(loaded.proto) == before
    mapped._mapping.cache_clear()
    with pytest.raises(ModelFileError, match="cannot be read any more"):
        payload_sha256(loaded.proto)


@pytest.mark.parametrize("external", [False, True])
def test_changed_and_unchanged_tensors_are_written_together(path: Path, external: bool) -> None:
    loaded = model.read(path)
    values = find_tensors(loaded.proto)["conv.weight"].array() + np.float32(1)
    proto = write_back(loaded.proto, {"conv.weight": values})
    target = path.with_name("out.onnx")
    model.write(proto, target, external=external)
    expected = onnx.load(path)
    assert expected.graph.initializer[0].name == "conv.weight"
    expected.graph.initializer[0].raw_data = values.tobytes()
    assert payload_sha256(onnx.load(target)) == payload_sha256(expected)
    assert target.with_name("out.onnx.data").exists() == external


def test_a_mapped_model_in_memory_is_read_again(path: Path) -> None:
    proto = model.read(path).proto
    assert model.read(proto).sha256 == hashlib.sha256(model.serialized(proto)).hexdigest()


@pytest.mark.parametrize("name", ["UINT4", "INT4", "BFLOAT16", "FLOAT16", "BOOL", "INT64"])
def test_every_kind_of_element_is_mapped(tmp_path: Path, name: str) -> None:
    data_type = TensorProto.DataType.Value(name)
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    values = (np.arange(301) % 7).astype(dtype)
    proto = small_classifier()
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = model.read(tmp_path / "m.onnx")
    assert not loaded.proto.graph.initializer[-1].raw_data
    np.testing.assert_array_equal(find_tensors(loaded.proto)["w"].array(), values)


def test_sizes_of_mapped_tensors_are_checked(tmp_path: Path) -> None:
    proto = small_classifier()
    proto.graph.initializer[0].dims[0] = 9
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="864 bytes"):
        model.read(tmp_path / "m.onnx")


def test_a_model_beyond_the_limit_is_not_written_as_one_message(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model.read(path)
    monkeypatch.setattr(model, "PROTOBUF_LIMIT_BYTES", 1500)
    assert not model.fits_in_one_message(loaded.proto)
    monkeypatch.setattr(external_data, "MIN_EXTERNAL_BYTES", 100)
    model.write(loaded.proto, path.with_name("out.onnx"))
    assert path.with_name("out.onnx.data").stat().st_size > 864


def test_truncation_at_every_point_of_a_mapped_file(tmp_path: Path) -> None:
    data = small_classifier().SerializeToString()
    path = tmp_path / "m.onnx"
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(ModelFileError):
            model.read(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + bytes(200),
        b"\x3a\x80\x10" + bytes(200),
        b"\x3b" + bytes(300),
        b"\xff" * 300,
    ],
)
def test_wire_formats_that_make_no_sense(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelFileError, match="not an ONNX"):
        model.read(tmp_path / "m.onnx")


def test_what_is_not_tensors_is_parsed_as_ever(tmp_path: Path) -> None:
    proto = small_classifier()
    proto.doc_string = "long text " * 1000
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert parse_in_place(tmp_path / "m.onnx", 10**6) == proto
    light = parse_in_place(tmp_path / "m.onnx", 100)
    assert light.doc_string == proto.doc_string
    assert light.graph.node == proto.graph.node


def test_what_was_read_lightly_needs_its_file_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is mapped: a file that another process writes into would end this one."""
    monkeypatch.setattr(external_data, "READ_AT_ONCE_BYTES", 2**20)
    path = tmp_path / "m.onnx"
    onnx.save(small_classifier(), path)
    loaded = model.read(path, light=True)
    path.write_bytes(b"")
    assert not find_tensors(loaded.proto)["conv.weight"].proto.raw_data
    whole = ModelProto.FromString(model.serialized(loaded.proto))
    assert whole == small_classifier()


@pytest.mark.parametrize("at_once", [0, 2**20])
def test_messages_that_lie_too_deep_in_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(external_data, "READ_AT_ONCE_BYTES", at_once)
    graph = helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(np.ones(64, np.float32), "w")]
    )
    content = graph.SerializeToString()

    def field(tag: int, inner: bytes) -> bytes:
        size, length = b"", len(inner)
        while length >= 0x80:
            size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
        return bytes([tag << 3 | 2]) + size + bytes([length]) + inner

    for _ in range(2000):  # a graph in an attribute of a node of a graph
        content = field(1, field(5, field(6, content)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(field(7, content))
    with pytest.raises(ModelFileError, match="not an ONNX file, or it is truncated"):
        model.read(path, light=True)
