"""Files that nobody should trust: an error of ours, soon, without allocating what they claim."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
    parser,
)

import onnxprune
from onnxprune.cli import run
from onnxprune.errors import ModelError, ModelFileError, UnsupportedModelError
from onnxprune.model import read
from onnxprune.tensors import find_tensors
from onnxprune.validate import inspect_model
from tests.importer.helpers import normal, text_model

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '
LINE = "g (float[N,4] x) => (float[N,4] y) "
LIMIT_BYTES = 512 * 2**20
LIMIT_S = 60


@pytest.fixture
def frugal() -> Iterator[None]:
    """Little time and memory, so that neither a hang nor an allocation goes unnoticed."""
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _expire)
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT_BYTES, before[1]))
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def _expire(*_: object) -> None:
    raise AssertionError("this takes too long")


def refusal(source: Any) -> str:
    """What `load` says; `inspect_model` must not fail in any other way than with a `ModelError`."""
    with contextlib.suppress(ModelError):
        inspect_model(source)
    with pytest.raises(ModelError) as caught:
        onnxprune.load(source)
    return str(caught.value)


# --- graphs ---------------------------------------------------------------------------------------


def model(body: str, head: str = HEAD, line: str = LINE) -> ModelProto:
    return parser.parse_model(f"{head}{line}{{ {body} }}")


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (model("a = Add(x, b) b = Relu(a) y = Relu(b)"), "nothing before it produces"),
        (model("y = Add(x, y)"), "nothing before it produces"),
        (model("y = Relu(x) y = Neg(x)"), "a second 'y'"),
        (model("x = Relu(x) y = Neg(x)"), "a second 'x'"),
        (model("z = Relu(x)"), "nothing produces"),
        (model("y = nobody.Op(x)"), "domain 'nobody'"),
        (model("y = NoSuchOperator(x)"), "NoSuchOperator"),
        (model("y = Relu(x)", HEAD.replace("17", "0")), "ai.onnx 0"),
        (model("y = Relu(x)", HEAD.replace("17", "1000000000")), "ai.onnx 1000000000"),
        (model("y = LeakyRelu<alpha: float = @slope>(x)"), "outside of a function"),
        (model("y, , , , , , , = Relu(x)"), "Relu"),
        (model("y = Concat(x, x)"), "Concat"),
        (model('y = Flatten<axis="text">(x)'), "Flatten"),
    ],
)
@pytest.mark.usefixtures("frugal")
def test_graphs_that_make_no_sense(proto: ModelProto, message: str) -> None:
    text = refusal(proto)
    assert message in text
    assert "where: the model in memory" in text


def test_empty_graphs_and_graphs_without_outputs_or_operator_sets() -> None:
    sound = model("y = Relu(x)")
    for field in ("node", "output"):
        proto = ModelProto.FromString(sound.SerializeToString())
        proto.graph.ClearField(field)
        assert "not an ONNX model" in refusal(proto)
    sound.ClearField("opset_import")
    assert "0 operator sets" in refusal(sound)
    assert "not an ONNX model" in refusal(ModelProto())


@pytest.mark.parametrize("version", [-1, -(2**63), 2**63 - 1])
def test_operator_set_versions_that_cannot_be(version: int) -> None:
    proto = model("y = Relu(x)")
    proto.opset_import[0].version = version
    assert f"ai.onnx {version}" in refusal(proto)


def test_two_initializers_or_inputs_of_one_name() -> None:
    proto = text_model(LINE + "{ y = Add(x, w) }", {"w": normal(4)})
    proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
    assert "initializers" in refusal(proto)
    proto = model("y = Relu(x)")
    proto.graph.input.add().CopyFrom(proto.graph.input[0])
    assert "graph inputs" in refusal(proto)


def test_attributes_of_wrong_types() -> None:
    for value in ("text", 2.5, [1, 2], numpy_helper.from_array(normal(2))):
        proto = model("y = Softmax<axis=1>(x)")
        proto.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("axis", value))
        assert "Softmax" in refusal(proto)


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ('h = Concat<axis="text">(w, w) y = MatMul(x, h)', "MatMul"),
        ("h = Concat<axis=[1, 2]>(w, w) y = MatMul(x, h)", "MatMul"),
        ("h = Gather(w) y = MatMul(x, h)", "MatMul"),
        ("h = Transpose<perm=1>(w) y = MatMul(x, h)", "MatMul"),
    ],
)
def test_damaged_nodes_between_a_tensor_and_its_use(body: str, operator: str) -> None:
    proto = text_model(f"{LINE}{{ {body} }}", {"w": normal(4, 4)})
    with pytest.raises(ModelFileError) as caught:
        find_tensors(proto)
    assert f"a {operator} node, or one that it reads from" in str(caught.value)
    assert "node ['y']" in str(caught.value)
    refusal(proto)


@pytest.mark.parametrize("word", ["Relu", "NNNN", "wwww", "own1", "name"])
def test_text_that_is_not_utf_8(word: str) -> None:
    proto = text_model(
        "name (float[NNNN,4] x) => (float[NNNN,4] y) { h = Relu(x) y = Add(h, wwww) }",
        {"wwww": normal(4)},
        extra=', "own1" : 1',
    )
    data = proto.SerializeToString()
    assert data.count(word.encode()) > 0
    assert "not UTF-8" in refusal(data.replace(word.encode(), b"\xff\xfe\xff\xfe"))


def test_names_of_attributes_that_hold_tensors_are_text() -> None:
    """They are read before the graph is checked, when external data are looked for."""
    held = numpy_helper.from_array(np.ones(2, np.float32))
    proto = model("y = Relu(x)")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=held))
    assert "not UTF-8" in refusal(
        proto.SerializeToString().replace(b"value", b"\xff\xfe\xff\xfe\xff")
    )


# --- sub-graphs and functions ---------------------------------------------------------------------


def nested(depth: int) -> ModelProto:
    """`If` in `If`, `depth` times."""
    proto = model("y = Relu(x)")
    inner = proto.graph
    for _ in range(depth):
        graph = GraphProto(name="b")
        graph.output.add().CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
        node = inner.node[0]
        node.op_type = "If"
        for name in ("then_branch", "else_branch"):
            attribute = node.attribute.add(name=name, type=AttributeProto.GRAPH)
            attribute.g.CopyFrom(graph)
            attribute.g.node.add(op_type="Relu", input=["x"], output=["y"])
        inner = node.attribute[0].g
    return proto


@pytest.mark.usefixtures("frugal")
def test_sub_graphs_that_are_nested_without_end(tmp_path: Path) -> None:
    assert "nested without end" in refusal(nested(1000))
    assert "nested without end" in refusal(nested(40))
    shallow = nested(8)
    shallow.graph.input[0].type.tensor_type.elem_type = TensorProto.BOOL
    assert "Relu" in refusal(shallow)
    # A file that is nested so deep can only be written by hand: protobuf refuses to.
    data = b"\x0a\x01y"
    for _ in range(1000):
        data = _field(3, _field(1, _field(5, _field(6, data))))[2:]
    (tmp_path / "deep.onnx").write_bytes(_field(7, data))
    refusal(tmp_path / "deep.onnx")


def _field(number: int, data: bytes) -> bytes:
    length, encoded = len(data), bytearray()
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes([*encoded, length]) + data


def functions(count: int, call: Callable[[int], list[str]]) -> ModelProto:
    """A model whose function `f<i>` calls, one after the other, what `call` names."""
    proto = model("y = own.f0(x)", head=HEAD.replace("17]", '17, "own" : 1]'))
    for index in range(count):
        function = proto.functions.add(domain="own", name=f"f{index}", input=["a"])
        function.opset_import.extend(proto.opset_import)
        value = "a"
        for step, callee in enumerate(call(index)):
            domain = "" if callee == "Relu" else "own"
            function.node.append(
                NodeProto(op_type=callee, domain=domain, input=[value], output=[f"v{step}"])
            )
            value = f"v{step}"
        function.output.append(value)
    return proto


@pytest.mark.usefixtures("frugal")
def test_functions_that_go_on_without_end() -> None:
    assert "without end" in refusal(functions(1, lambda i: ["f0"]))
    assert "own::f0, own::f1" in refusal(functions(2, lambda i: [f"f{1 - i}"]))
    chain = functions(1000, lambda i: [f"f{i + 1}" if i < 999 else "Relu"])
    assert "at most 32" in refusal(chain)
    laughs = functions(25, lambda i: [f"f{i + 1}"] * 2 if i < 24 else ["Relu"])
    assert "too often" in refusal(laughs)
    assert "defines a function twice" in refusal(_twice(functions(1, lambda i: ["Relu"])))
    assert onnxprune.load(functions(8, lambda i: [f"f{i + 1}"] * 2 if i < 7 else ["Relu"]))


def _twice(proto: ModelProto) -> ModelProto:
    proto.functions.add().CopyFrom(proto.functions[0])
    return proto


def test_a_function_that_is_called_in_its_own_sub_graph() -> None:
    proto = functions(1, lambda i: ["Relu"])
    branch = GraphProto(name="b", output=[helper.make_tensor_value_info("q", 1, None)])
    branch.node.add(op_type="f0", domain="own", input=["a"], output=["q"])
    node = proto.functions[0].node[0]
    node.op_type = "If"
    for name in ("then_branch", "else_branch"):
        node.attribute.append(helper.make_attribute(name, branch))
    assert "call each other without end" in refusal(proto)


# --- shapes that nobody can hold ------------------------------------------------------------------

HUGE = 10**12


@pytest.mark.parametrize(
    ("body", "arrays"),
    [
        ("h = ConstantOfShape(s) y = Add(x, h)", {"s": np.array([HUGE])}),
        ("h = ConstantOfShape(s) y = Add(x, h)", {"s": np.array([2**40, 2**40])}),
        ("y = Expand(x, s)", {"s": np.array([HUGE, 1, 4])}),
        ("y = Tile(x, s)", {"s": np.array([HUGE, 1])}),
        ("h = Tile(c, s) y = Add(x, h)", {"s": np.array([HUGE]), "c": np.float32([1])}),
        ("h = Expand(c, s) y = Add(x, h)", {"s": np.array([HUGE]), "c": np.float32([1])}),
        (
            "h = Range(zero, s, one) i = Cast<to=1>(h) y = Add(x, i)",
            {"zero": np.array(0), "one": np.array(1), "s": np.array(HUGE)},
        ),
        ("y = Pad(x, s)", {"s": np.array([0, 0, HUGE, 0])}),
        ("h = Pad(c, s) y = Add(x, h)", {"s": np.array([0, HUGE]), "c": np.float32([1])}),
        ('y = Resize<mode="nearest">(x, , s)', {"s": np.float32([1, 1e12])}),
        ('y = Upsample<mode="nearest">(x, s)', {"s": np.float32([1, 1e12])}),
        (
            "i = Cast<to=7>(x) h = OneHot(i, s, v) y = ReduceSum<keepdims=0>(h, a)",
            {"s": np.array(HUGE), "v": np.float32([0, 1]), "a": np.array([-1])},
        ),
        ("h = EyeLike(c) y = MatMul(x, h)", {"c": np.zeros((0, 2**20), np.float32)}),
        ("h = HannWindow(s) y = Add(x, h)", {"s": np.array(HUGE)}),
        ("y = Reshape(x, s)", {"s": np.array([HUGE, HUGE])}),
        ("h = RandomNormal<shape=[1000000, 1000000]>() y = Add(x, h)", {}),
    ],
)
@pytest.mark.usefixtures("frugal")
def test_huge_claimed_shapes_are_not_allocated_by_the_import(
    body: str, arrays: dict[str, np.ndarray]
) -> None:
    proto = text_model(LINE + f"{{ {body} }}", arrays, opset=9 if "Upsample" in body else 17)
    for function in (inspect_model, onnxprune.load):
        caught = None
        try:
            function(proto)
        except ModelError as error:
            caught = error
        assert "MemoryError" not in str(caught)


# --- what ends the process in ONNX's own shape inference ------------------------------------------

LINE_8 = "g (float[1,1,8,8] x) => (float[N,M] y) "
FATAL = {
    "a size below 0": (
        "h = Conv(x, w) y = Slice(h, one, two, three)",
        {"w": np.ones((1, 1, 3, 20))},
    ),
    "a size below 0 in a branch": (
        "c = Cast<to=9>(one) y = If(c) <then_branch = a () => (float[A] p) {"
        " h = Conv(x, w) p = Slice(h, one, two, three) },"
        " else_branch = b () => (float[B] q) { q = Identity(x) }>",
        {"w": np.ones((1, 1, 20, 20))},
    ),
    "batch axes below 0": ("y = GatherND<batch_dims=-7>(x, i)", {"i": np.array([0, 0, 0])}),
    "an axis of 63 bits": (
        "y, mean, deviation = LayerNormalization<axis=9223372036854775807>(x, w)",
        {"w": np.ones(8)},
    ),
    "more parts than outputs are counted": ("y, z, v, u = Split<num_outputs=3>(x)", {}),
}


def fatal(name: str) -> ModelProto:
    body, arrays = FATAL[name]
    numbers = {"one": np.array([1]), "two": np.array([2]), "three": np.array([3])}
    stored = {
        key: array if array.dtype.kind == "i" else array.astype(np.float32)
        for key, array in {**numbers, **arrays}.items()
    }
    return text_model(f"{LINE_8}{{ {body} }}", stored, opset=18)


def survive() -> None:
    """Inspect and load each of those models; runs in a process that they may end."""
    for name in FATAL:
        print(name, flush=True)
        for function in (inspect_model, onnxprune.load):
            with contextlib.suppress(ModelError):
                function(fatal(name))


def test_no_file_ends_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {__name__} as t; t.survive()"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, list(FATAL)), done.stderr[-2000:]


# --- tensors --------------------------------------------------------------------------------------


def test_string_tensors_are_no_weights() -> None:
    proto = model("y = Add(x, w)")
    proto.graph.initializer.append(numpy_helper.from_array(np.array(["a"], object), "w"))
    assert "Add" in refusal(proto) or "w" in refusal(proto)


@pytest.mark.parametrize("dims", [[2**32, 2**32], [2**62, 4], [-1, -4], [2**63 - 1]])
@pytest.mark.usefixtures("frugal")
def test_sizes_beyond_64_bits(dims: list[int]) -> None:
    proto = model("y = Add(x, w)")
    for place in (proto.graph.initializer, proto.graph.node[0].attribute):
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
        if place is proto.graph.initializer:
            place.append(tensor)
        else:
            proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(4), "w"))
            place.append(helper.make_attribute("value", tensor))
        assert "'w'" in refusal(proto)


def test_data_in_two_places_or_in_pieces() -> None:
    for field, word in (("float_data", "float_data"), ("segment", "a segment")):
        proto = model("y = Add(x, w)")
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(normal(4), "w"))
        if field == "segment":
            tensor.segment.begin, tensor.segment.end = 0, 4
        else:
            tensor.float_data.extend([1.0, 2.0, 3.0, 4.0])
        assert word in refusal(proto)


# --- external data --------------------------------------------------------------------------------


def outside(folder: Path, location: str, **entries: str) -> Path:
    """A model whose weight of 16 bytes lies at `location`."""
    proto = model("y = Add(x, w)")
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.usefixtures("frugal")
def test_external_data_that_are_no_files_of_the_model(tmp_path: Path) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "data").write_bytes(bytes(16))
    (folder / "good").write_bytes(bytes(16))
    (folder / "link").symlink_to(other / "data")
    (folder / "folder").symlink_to(other)
    (folder / "device").symlink_to("/dev/zero")
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to("../..")
    os.mkfifo(folder / "pipe")
    assert onnxprune.load(outside(folder, "good"))
    for location in ("../other/data", str(other / "data"), "link", "folder/data", "device"):
        assert "outside the model's folder" in refusal(outside(folder, location))
    assert "outside the model's folder" in refusal(outside(folder, "sub/up/other/data"))
    for location in ("pipe", "sub", "none"):
        assert "missing" in refusal(outside(folder, location))
    assert "outside the model's folder" in refusal(outside(folder, "/dev/zero"))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "-1"},
        {"offset": "17"},
        {"offset": str(2**63)},
        {"offset": "1e3"},
        {"length": "-16"},
        {"length": "15"},
        {"length": str(2**62)},
    ],
)
@pytest.mark.usefixtures("frugal")
def test_places_in_external_data_that_do_not_exist(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "data").write_bytes(bytes(32))
    text = refusal(outside(tmp_path, "data", **entries))
    assert str(tmp_path / "m.onnx") in text
    assert "tensor 'w'" in text


def test_a_mark_of_mapped_tensors_cannot_be_forged(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    path = outside(tmp_path, str(tmp_path / "secret"), **{"onnxprune.mapped": ":0", "length": "16"})
    assert "outside the model's folder" in refusal(path)
    assert "data lie in a file" in refusal(onnx.load(path, load_external_data=False))


# --- the command line -----------------------------------------------------------------------------


def bad_files(folder: Path) -> dict[str, Path]:
    sound = model("y = Relu(x)").SerializeToString()
    contents = {
        "empty": b"",
        "text": b"hello, I am a text file\n" * 40,
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle": b"\x80\x04\x95\x1a\x00\x00\x00",
        "truncated": sound[:-3],
        "cycle": model("a = Add(x, b) b = Relu(a) y = Relu(b)").SerializeToString(),
        "recursion": functions(1, lambda i: ["f0"]).SerializeToString(),
        "laughs": functions(25, lambda i: [f"f{i + 1}"] * 2 if i < 24 else ["Relu"])
        .SerializeToString(),
        "names": sound.replace(b"\x04Relu", b"\x04\xff\xfe\xff\xfe"),
    }  # fmt: skip
    for name, data in contents.items():
        (folder / f"{name}.onnx").write_bytes(data)
    outside(folder, "/dev/zero")
    (folder / "folder.onnx").mkdir()
    names = [*contents, "m", "folder", "missing"]
    return {name: folder / f"{name}.onnx" for name in names}


@pytest.mark.parametrize("command", ["inspect", "prune"])
def test_every_bad_file_ends_in_exit_code_3_and_no_traceback(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["-o", str(tmp_path / "out.onnx"), "--dry-run", "--epochs", "0"]
    for name, path in bad_files(tmp_path).items():
        code = run([command, str(path), *(more if command == "prune" else [])])
        captured = capsys.readouterr()
        assert code == 3, (name, captured.err)
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert str(path) in captured.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model("y = Relu(x)").SerializeToString())
    path.chmod(0)
    assert "cannot be read" in refusal(path)


def test_import_survives_its_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise errors[-1]

    monkeypatch.setattr("onnxprune.importer.converter.Converter.run", fail)
    errors: list[BaseException] = []
    for error in (RecursionError("deep"), MemoryError("large")):
        errors.append(error)
        with pytest.raises(UnsupportedModelError, match="too large or too deep"):
            onnxprune.load(model("y = Relu(x)"))


# --- fuzz -----------------------------------------------------------------------------------------


@pytest.fixture
def mutations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import mutations

    return mutations


def test_damaged_models_end_in_a_model_or_in_an_error_of_ours(mutations: ModuleType) -> None:
    """A sample of what `benchmarks/fuzz.py` does, which has thousands of cases and real models."""
    bases = mutations.base_models()
    counts = {"loaded": 0, "refused": 0}
    for index in range(240):
        what, data = mutations.damaged(bases, 0, index)
        for function in (inspect_model, onnxprune.load):
            outcome = "loaded"
            try:
                with warnings.catch_warnings(action="ignore"):
                    function(data)
            except ModelError:
                outcome = "refused"
            except Exception as error:
                pytest.fail(f"case {index} ({what}): {function.__name__} raises {error!r}")
        counts[outcome] += 1
    assert min(counts.values()) > 20, json.dumps(counts)


def test_the_undamaged_models_load(mutations: ModuleType) -> None:
    for data in mutations.base_models().values():
        assert read(data)
        onnxprune.load(data)
    with pytest.raises(ModelFileError):
        read(b"damaged")


CLAIMS = {
    "ConstantOfShape": "n = Constant<value = int64[2] {200000, 200000}>() m = ConstantOfShape(n)",
    "Range": "n = Constant<value_int = 100000000000>() m = Range(zero, n, one)",
    "Tile": "n = Constant<value = int64[2] {200000, 200000}>() m = Tile(x, n)",
    "OneHot": "n = Constant<value_int = 100000000000>() m = OneHot(i, n, pair)",
    "Pad": "n = Constant<value = int64[4] {0, 0, 200000, 200000}>() m = Pad(x, n)",
    "Expand": "n = Constant<value = int64[2] {200000, 200000}>() k = ReduceSum(x) m = Expand(k, n)",
    "HannWindow": "n = Constant<value_int = 100000000000>() m = HannWindow(n)",
    "Resize": "n = Constant<value = float[2] {200000.0, 200000.0}>() m = Resize(x, none, n)",
}


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("op_type", CLAIMS)
def test_a_graph_that_makes_what_no_machine_holds(op_type: str) -> None:
    """From constants alone, so that it is known before anything is computed."""
    body = CLAIMS[op_type]
    head = LINE.replace("float[N,4] x", "float[3,4] x, int64[5] i").replace(
        "float[N,4] y", "float y"
    )
    proto = parser.parse_model(
        HEAD + head + "{ zero = Constant<value_int = 0>() one = Constant<value_int = 1>() "
        "pair = Constant<value = float[2] {0.0, 1.0}>() none = Constant<value = float[0] {}>() "
        + body
        + " f = Cast<to = 1>(m) y = ReduceSum<keepdims = 0>(f) }"
    )
    with pytest.raises(ModelFileError, match=f"a {op_type} node.*(?s:.*)GiB"):
        onnxprune.load(proto)


def test_sizes_of_which_some_are_known_only_later() -> None:
    """The known ones count: a result with a batch axis is no smaller."""
    proto = parser.parse_model(
        HEAD
        + LINE
        + """{
            s = Shape<end = 1>(x)
            n = Constant<value = int64[2] {200000, 200000}>()
            t = Concat<axis = 0>(s, n)
            m = ConstantOfShape(t)
            k = Constant<value = int64[2] {1, 2}>()
            z = ReduceSum<keepdims = 0>(m, k)
            o = Constant<value = int64[1] {1}>()
            u = Unsqueeze(z, o)
            y = Add(x, u)
        }"""
    )
    with pytest.raises(ModelFileError, match="ConstantOfShape"):
        onnxprune.load(proto)


@pytest.mark.parametrize(
    "node",
    [
        *("Softmax<axis = 99>(x)", "Concat<axis = 2>(x, x)", "Transpose<perm = [0, 0]>(x)"),
        *(
            "Transpose<perm = [0]>(x)",
            "Flatten<axis = 3>(x)",
            "LayerNormalization<axis = -3>(x, w)",
        ),
    ],
)
def test_axes_that_are_not_there(node: str) -> None:
    weights = "<float[4] w = {1, 1, 1, 1}>"
    proto = parser.parse_model(f"{HEAD} {LINE} {weights} {{ y = {node} }}")
    with pytest.raises(ModelFileError, match=node.split("<")[0]):
        onnxprune.load(proto)
