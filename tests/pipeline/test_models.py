"""The main job on models of many kinds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError, UnsupportedModelError
from onnxprune.export import training_nodes, verify
from onnxprune.model import read
from onnxprune.pipeline import prune
from onnxprune.validate import open_session

from .helpers import (
    Arrays,
    assert_pruned,
    labels,
    log,
    mlp,
    normal,
    quick,
    save,
    text_model,
    weights,
)

pytestmark = pytest.mark.usefixtures("no_report")


def two_inputs() -> tuple[onnx.ModelProto, Arrays]:
    graph = """g (float[N,6] a, float[N,4,5] b) => (float[N,3] y) {
        flat = Flatten(b)
        both = Concat<axis = 1>(a, flat)
        h = MatMul(both, w1)
        r = Tanh(h)
        y = MatMul(r, w2)
    }"""
    data = {"a": normal(40, 6, seed=5), "b": normal(40, 4, 5, seed=6), "label": labels(40)}
    return text_model(graph, {"w1": normal(26, 16), "w2": normal(16, 3)}), data


def binary() -> tuple[onnx.ModelProto, Arrays]:
    graph = """g (float[N,8] x) => (float[N,1] p) {
        h = Gemm<transB = 1>(x, w1, b1)
        r = Relu(h)
        y = Gemm<transB = 1>(r, w2)
        p = Sigmoid(y)
    }"""
    arrays = {"w1": normal(16, 8), "b1": normal(16), "w2": normal(1, 16)}
    return text_model(graph, arrays), {"x": normal(40, 8, seed=5), "label": np.arange(40) % 2}


def transformer() -> tuple[onnx.ModelProto, Arrays]:
    graph = """g (float[N,6,8] x) => (float[N,3] y)
    <int64[1] axes = {1}> {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        kt = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, kt)
        p = Softmax<axis = -1>(s)
        a = MatMul(p, v)
        o = MatMul(a, wo)
        z = Add(o, x)
        n = LayerNormalization<axis = -1>(z, g1, c1)
        m = ReduceMean<axes = [1], keepdims = 0>(n)
        y = MatMul(m, head)
    }"""
    arrays = {name: normal(8, 8, seed=i) for i, name in enumerate(("wq", "wk", "wv", "wo"))}
    arrays |= {"g1": normal(8), "c1": normal(8), "head": normal(8, 3)}
    proto = text_model(graph.replace("<int64[1] axes = {1}> ", ""), arrays)
    return proto, {"x": normal(40, 6, 8, seed=5), "label": labels(40)}


def channels_last() -> tuple[onnx.ModelProto, Arrays]:
    graph = """g (float[N,6,6,3] x) => (float[N,3] y) {
        t = Transpose<perm = [0, 3, 1, 2]>(x)
        c = Conv<pads = [1, 1, 1, 1]>(t, w)
        r = Relu(c)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        y = MatMul(f, head)
    }"""
    arrays = {"w": normal(8, 3, 3, 3), "head": normal(8, 3)}
    return text_model(graph, arrays), {"x": normal(40, 6, 6, 3, seed=5), "label": labels(40)}


def constants() -> tuple[onnx.ModelProto, Arrays]:
    """Every weight lies in a Constant node."""
    proto, data = mlp()
    tensors = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for tensor in reversed(tensors):
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        proto.graph.node.insert(0, node)
    onnx.checker.check_model(proto)
    return proto, data


def half() -> tuple[onnx.ModelProto, Arrays]:
    proto, data = mlp()
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.checker.check_model(proto)
    return proto, data | {"x": data["x"].astype(np.float16)}


def softmax_end() -> tuple[onnx.ModelProto, Arrays]:
    proto, data = mlp()
    proto.graph.node[-1].output[0] = "logits"
    proto.graph.node.append(helper.make_node("Softmax", ["logits"], ["y"], axis=-1))
    onnx.checker.check_model(proto)
    return proto, data


def recurrent() -> tuple[onnx.ModelProto, Arrays]:
    graph = """g (float[N,5,4] x) => (float[N,3] y) {
        t = Transpose<perm = [1, 0, 2]>(x)
        seq, last = GRU<hidden_size = 6>(t, w, r, b)
        h = Squeeze(last, axis)
        y = MatMul(h, head)
    }"""
    arrays = {
        "w": normal(1, 18, 4),
        "r": normal(1, 18, 6, seed=1),
        "b": normal(1, 36, seed=2),
        "axis": np.array([0]),
        "head": normal(6, 3),
    }
    return text_model(graph, arrays), {"x": normal(40, 5, 4, seed=5), "label": labels(40)}


def embedding() -> tuple[onnx.ModelProto, Arrays]:
    graph = """g (int32[N,7] tokens) => (float[N,3] y) {
        e = Gather(table, tokens)
        m = ReduceMean<axes = [1], keepdims = 0>(e)
        y = MatMul(m, head)
    }"""
    tokens = np.random.default_rng(0).integers(0, 20, (40, 7)).astype(np.int32)
    proto = text_model(graph, {"table": normal(20, 8), "head": normal(8, 3)})
    return proto, {"tokens": tokens, "label": labels(40)}


KINDS: list[Callable[[], tuple[onnx.ModelProto, Arrays]]] = [
    mlp,
    two_inputs,
    binary,
    transformer,
    channels_last,
    constants,
    half,
    softmax_end,
    recurrent,
    embedding,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_prunes_and_trains(
    tmp_path: Path, kind: Callable[[], tuple[onnx.ModelProto, Arrays]], labelled: bool
) -> None:
    proto, data = kind()
    if not labelled:
        del data["label"]
    model, samples, output = save(tmp_path, proto, data)
    settings = {"epochs": 2, "batch_size": 8, "evaluations": 1, "device": "cpu", "threads": 1}
    results = prune(
        model, output, quick(samples, samples, sparsity={"target": 0.5}, finetune=settings)
    )
    assert_pruned(model, output, 0.5)
    # Half a unit in the last place of a half output; weights that were not rounded differ by one.
    tolerance = 4e-3 if kind is half else 1e-4
    assert results["validation"]["torch_vs_runtime_max_abs_error"] < tolerance
    before, after = weights(model), weights(output)
    moved = [bool((after[name] != before[name])[after[name] != 0].any()) for name in after]
    assert all(moved)
    if labelled:
        assert set(results["validation"]["pruned"]) >= {"top1", "loss", "agreement"}
    losses = [entry["loss"] for entry in log(output.with_suffix(".run")) if "loss" in entry]
    assert np.isfinite(losses).all()
    assert len(losses) == 10


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("baked", [False, True], ids=["free-graph", "baked-reshape"])
@pytest.mark.parametrize("batch_size", [8, 6])
def test_fixed_batch_sizes(tmp_path: Path, batch: int, baked: bool, batch_size: int) -> None:
    """Also where a Reshape bakes the batch size in, and where it does not divide the batch."""
    shape = np.array([batch, 8])
    graph = f"""g (float[{batch},2,4,4] x) => (float[{batch},3] y) {{
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        n = BatchNormalization(c, scale, shift, mean, var)
        r = Relu(n)
        p = GlobalAveragePool(r)
        f = {"Reshape(p, shape)" if baked else "Flatten(p)"}
        y = MatMul(f, head)
    }}"""
    arrays = {
        "w": normal(8, 2, 3, 3),
        "scale": np.ones(8, dtype=np.float32),
        "shift": normal(8),
        "mean": normal(8, scale=0.1),
        "var": np.ones(8, dtype=np.float32),
        "head": normal(8, 3),
    }
    proto = text_model(graph, arrays | ({"shape": shape} if baked else {}))
    model, samples, output = save(
        tmp_path, proto, {"x": normal(21, 2, 4, 4, seed=5), "label": labels(21)}
    )
    settings = {
        "batch_size": batch_size,
        "epochs": 2,
        "evaluations": 1,
        "device": "cpu",
        "threads": 1,
    }
    results = prune(
        model, output, quick(samples, samples, sparsity={"target": 0.5}, finetune=settings)
    )
    assert_pruned(model, output, 0.5)
    assert results["validation"]["samples"] == 21
    accumulated = [note for note in results["notes"] if "accumulated" in note]
    assert bool(accumulated) == baked
    statistics = [
        {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}["mean"]
        for path in (model, output)
    ]
    assert np.array_equal(*statistics) == baked


def test_one_sample_a_step(tmp_path: Path) -> None:
    """BatchNorm over `(batch, channels)` has no statistics of a single sample."""
    graph = """g (float[N,8] x) => (float[N,3] y) {
        h = MatMul(x, w)
        n = BatchNormalization(h, scale, shift, mean, var)
        y = MatMul(n, head)
    }"""
    arrays = {
        "w": normal(8, 8),
        "scale": np.ones(8, dtype=np.float32),
        "shift": normal(8),
        "mean": normal(8),
        "var": np.ones(8, dtype=np.float32),
        "head": normal(8, 3),
    }
    data = {"x": normal(6, 8, seed=5), "label": labels(6)}
    model, samples, output = save(tmp_path, text_model(graph, arrays), data)
    prune(model, output, quick(samples, samples, finetune={"batch_size": 1}))
    assert_pruned(model, output, 0.8)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}
    assert np.array_equal(stored["mean"], arrays["mean"])
    assert not np.array_equal(stored["shift"], arrays["shift"])


def test_accumulated_gradients_equal_a_whole_batch(tmp_path: Path) -> None:
    """A graph that takes one sample at a time trains as the same graph that takes them all."""
    files = []
    for name, line in (("free", "f = Flatten(p)"), ("baked", "f = Reshape(p, shape)")):
        graph = f"""g (float[{"N" if name == "free" else 1},2,4,4] x) => (float[M,3] y) {{
            c = Conv<pads = [1, 1, 1, 1]>(x, w)
            r = Relu(c)
            p = GlobalAveragePool(r)
            {line}
            y = MatMul(f, head)
        }}"""
        arrays = {"w": normal(8, 2, 3, 3), "head": normal(8, 3)}
        if name == "baked":
            arrays["shape"] = np.array([1, 8])
        folder = tmp_path / name
        folder.mkdir()
        data = {"x": normal(24, 2, 4, 4, seed=5), "label": labels(24)}
        model, samples, output = save(folder, text_model(graph, arrays), data)
        settings = {"batch_size": 8, "epochs": 3, "evaluations": 0, "device": "cpu", "threads": 1}
        prune(model, output, quick(samples, samples, finetune=settings))
        files.append(weights(output))
    for key, array in files[0].items():
        np.testing.assert_allclose(files[1][key], array, atol=1e-5)


def test_external_data(tmp_path: Path) -> None:
    """Tensors beside the file stay beside it, in a file that belongs to the pruned model."""
    proto, data = mlp()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(64, 8), "w1"))
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(normal(64), "b1"))
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(normal(3, 64), "w2"))
    model, samples, output = save(tmp_path, proto, data)
    onnx.save(proto, model, save_as_external_data=True, location="big.bin", size_threshold=0)
    source = (model.read_bytes(), (tmp_path / "big.bin").read_bytes())
    prune(model, output, quick(samples, samples))
    assert (model.read_bytes(), (tmp_path / "big.bin").read_bytes()) == source
    assert (tmp_path / "pruned.onnx.data").is_file()
    assert_pruned(model, output, 0.8)
    run = open_session(output).run({"x": data["x"]})["y"]
    inline = onnx.load(output)
    assert np.array_equal(run, open_session(inline).run({"x": data["x"]})["y"])


def test_the_source_s_external_data_are_never_overwritten(tmp_path: Path) -> None:
    """The output's data file may have the name of the dense model's."""
    proto, data = mlp()
    model, samples, output = save(tmp_path, proto, data)
    onnx.save(
        proto, model, save_as_external_data=True, location="pruned.onnx.data", size_threshold=0
    )
    before = (tmp_path / "pruned.onnx.data").read_bytes()
    with pytest.raises(Exception, match="overwrite"):
        prune(model, output, quick(samples, samples))
    assert (tmp_path / "pruned.onnx.data").read_bytes() == before
    assert not output.exists()


class TestTrainingFlags:
    @pytest.fixture
    def model(self, tmp_path: Path) -> tuple[Path, Path, Path]:
        graph = """g (float[N,2,4,4] x) => (float[N,3] y) {
            c = Conv<pads = [1, 1, 1, 1]>(x, w)
            n = BatchNormalization<training_mode = 1>(c, scale, shift, mean, var)
            p = GlobalAveragePool(n)
            f = Flatten(p)
            d = Dropout(f, ratio, train)
            y = MatMul(d, head)
        }"""
        arrays = {
            "w": normal(8, 2, 3, 3),
            "scale": np.ones(8, dtype=np.float32),
            "shift": normal(8),
            "mean": normal(8),
            "var": np.ones(8, dtype=np.float32),
            "ratio": np.array(0.5, dtype=np.float32),
            "train": np.array(True),
            "head": normal(8, 3),
        }
        data = {"x": normal(40, 2, 4, 4, seed=5), "label": labels(40)}
        return save(tmp_path, text_model(graph, arrays), data)

    def test_are_refused_by_name(self, model: tuple[Path, Path, Path]) -> None:
        source, samples, output = model
        with pytest.raises(UnsupportedModelError, match="--to-inference") as caught:
            prune(source, output, quick(samples, samples))
        assert "BatchNormalization" in str(caught.value)
        assert "Dropout" in str(caught.value)
        assert not output.exists()

    def test_are_cleared_when_asked(self, model: tuple[Path, Path, Path]) -> None:
        source, samples, output = model
        results = prune(source, output, quick(samples, samples, model={"to_inference": True}))
        pruned = onnx.load(output)
        assert training_nodes(pruned) == []
        onnx.checker.check_model(pruned, full_check=True)
        assert verify(pruned).true
        assert any("training mode is cleared in 2 nodes" in note for note in results["notes"])
        session = open_session(output)
        x = np.load(samples)["x"]
        first, second = (session.run({"x": x})["y"] for _ in range(2))
        assert np.array_equal(first, second)
        single = np.concatenate([session.run({"x": row[None]})["y"] for row in x])
        np.testing.assert_allclose(single, first, atol=1e-5)


def test_the_file_keeps_what_pruning_does_not_touch(tmp_path: Path) -> None:
    """Names, documentation, value infos, metadata, functions' order and unknown entries."""
    proto, data = mlp()
    proto.doc_string = "made by hand"
    proto.graph.doc_string = "a graph"
    proto.metadata_props.add(key="owner", value="team")
    proto.graph.node[0].doc_string = "first"
    proto.graph.node[0].name = "fc1"
    proto.graph.initializer[0].doc_string = "weights"
    proto.graph.value_info.append(
        helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["N", 16])
    )
    proto.graph.input[0].doc_string = "pixels"
    model, samples, output = save(tmp_path, proto, data)
    prune(model, output, quick(samples, samples, sparsity={"target": 0.5}))
    assert_pruned(model, output, 0.5)
    assert onnx.load(output).metadata_props[0].value == "team"


def test_pruning_a_pruned_model_keeps_its_zeros_and_replaces_the_metadata(tmp_path: Path) -> None:
    proto, data = mlp()
    model, samples, output = save(tmp_path, proto, data)
    prune(model, output, quick(samples, samples, sparsity={"target": 0.5}))
    again = tmp_path / "again.onnx"
    prune(output, again, quick(samples, samples, sparsity={"target": 0.8}))
    assert_pruned(output, again, 0.8)
    metadata = verify(onnx.load(again)).metadata
    assert metadata is not None
    assert metadata["source_sha256"] == read(output).sha256
    assert len([p for p in onnx.load(again).metadata_props if p.key.startswith("onnxprune")]) == 1


def test_a_target_below_the_zeros_of_the_model(tmp_path: Path) -> None:
    """A model that is 80 % zeros already stays so, and the metadata say 80 %."""
    model, _, output = save(tmp_path, *mlp())
    prune(model, output, quick(sparsity={"target": 0.8}))
    again = tmp_path / "again.onnx"
    prune(output, again, quick(sparsity={"target": 0.5}))
    assert_pruned(output, again, 0.8)


def test_a_model_without_weights_to_prune(tmp_path: Path) -> None:
    graph = "g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }"
    model = tmp_path / "m.onnx"
    onnx.save(text_model(graph, {}), model)
    with pytest.raises(Exception, match="no tensor is left to prune") as caught:
        prune(model, tmp_path / "pruned.onnx", quick())
    assert not isinstance(caught.value, AssertionError)


def test_the_written_graph_must_compute_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that computes something else is never written."""
    proto, data = mlp()
    model, samples, output = save(tmp_path, proto, data)

    def wrong(source: onnx.ModelProto, tensors: Arrays) -> onnx.ModelProto:
        from onnxprune.export import write_back

        return write_back(source, {name: array * 2 for name, array in tensors.items()})

    monkeypatch.setattr("onnxprune.conclusion.write_back", wrong)
    with pytest.raises(ModelError, match="does not compute what was trained"):
        prune(model, output, quick(samples, samples))
    assert not output.exists()


def test_a_network_that_enlarges_rounding_is_written_with_a_note(tmp_path: Path) -> None:
    """Its graph is right: what differs is only the order in which ONNX Runtime adds.

    The sums are around 1e5, of which BatchNorm makes numbers around 16: no more than one digit of a
    float32 is left, unless the mean is subtracted before, as ONNX Runtime does.
    """
    graph = """g (float[N,8,1,1] x) => (float[N,16] y) {
        c = Conv(x, w, b)
        n = BatchNormalization(c, one, zero, mean, none)
        y = Flatten(n)
    }"""
    arrays = {
        "w": normal(16, 8, 1, 1, scale=0.02),
        "b": np.full(16, 1e5, np.float32),
        "mean": np.full(16, 1e5, np.float32),
        "one": np.ones(16, np.float32),
        "zero": np.zeros(16, np.float32),
        "none": np.zeros(16, np.float32),
    }
    data = {"x": normal(40, 8, 1, 1, seed=5), "label": labels(40)}
    model, samples, output = save(tmp_path, text_model(graph, arrays), data)
    results = prune(model, output, quick(None, samples))
    assert any("output 'y' is sensitive to rounding" in note for note in results["notes"])
    assert_pruned(model, output, results["sparsity"])
