"""The gate: tampered artifacts are caught by the check that is for them, honest ones pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.checking import check
from onnxprune.export import KEY, to_sparse
from onnxprune.model import payload_sha256
from onnxprune.validate.gate import CHECKS, GateResult
from onnxprune.validate.policy import Policy

from .artifacts import (
    PRUNED,
    Pair,
    blocks_of_two_outputs,
    dense_model,
    describe,
    make_pair,
    smallest,
)

RULES: dict[str, dict[str, Any]] = {
    "sparsity": {"min": 0.5, "per_tensor_min": {"*": 0.4, "fc.*": 0.5}, "pattern": "2:4"},
    "metadata": {"required": True, "true_to_file": True, "source_sha256": "baseline"},
    "signature": {"same_as_baseline": True, "same_graph": True},
    "outputs": {"providers": ["CPUExecutionProvider"], "finite": True},
    "accuracy": {"min": 0.7, "max_drop": 0.3},
    "agreement": {"min": 0.7, "min_cosine": 0.9, "min_sqnr_db": 5.0},
    "size": {"max_bytes": 20_000, "max_ratio": 3.0},
}


def rules(**changes: dict[str, Any] | None) -> Policy:
    """The rules with some tables replaced, or left out."""
    tables = RULES | changes
    return Policy.from_dict({name: table for name, table in tables.items() if table is not None})


def gate(pair: Pair, policy: Policy | None = None) -> GateResult:
    return check(
        pair.pruned,
        policy or rules(),
        baseline=pair.dense,
        data=str(pair.data),
        threads=1,
        provider="cpu",
    )


def not_passed(result: GateResult) -> dict[str, str]:
    return {c.name: f"{c.status}: {c.message}" for c in result.checks if c.status != "pass"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("original"))


@pytest.fixture
def pair(original: Pair, tmp_path: Path) -> Pair:
    """A copy of the honest artifact, to be spoiled."""
    files = [shutil.copy(path, tmp_path) for path in (original.dense, original.pruned)]
    return Pair(Path(files[0]), Path(files[1]), original.data)


def tensor(proto: onnx.ModelProto, name: str) -> TensorProto:
    (found,) = [item for item in proto.graph.initializer if item.name == name]
    return found


def set_values(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], object]) -> None:
    """Change the values of an initializer; its own metadata stay."""
    stored = tensor(proto, name)
    values = np.array(numpy_helper.to_array(stored))
    change(values)
    stored.raw_data = values.tobytes()


def claims(change: Callable[[Any], object]) -> Callable[[onnx.ModelProto], None]:
    """Change what the metadata say."""

    def apply(proto: onnx.ModelProto) -> None:
        (entry,) = [item for item in proto.metadata_props if item.key == KEY]
        metadata = json.loads(entry.value)
        change(metadata)
        entry.value = json.dumps(metadata)

    return apply


def values(name: str, index: tuple[int, ...], value: float) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: set_values(proto, name, lambda a: a.__setitem__(index, value))


def unzero_one(proto: onnx.ModelProto) -> None:
    set_values(proto, "body.weight", lambda a: a.ravel().__setitem__(np.flatnonzero(a == 0)[0], 1))


def unzero_one_and_cover_it_up(proto: onnx.ModelProto) -> None:
    """With metadata that are true again, but for the zero that is missing."""
    (entry,) = [item for item in proto.metadata_props if item.key == KEY]
    source = json.loads(entry.value)["source_sha256"]
    unzero_one(proto)
    describe(proto, source, PRUNED, "unstructured")


def rename_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "image"
    for node in proto.graph.node:
        node.input[:] = ["image" if name == "x" else name for name in node.input]


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "logits"
    proto.graph.node[-1].output[0] = "logits"


def swap(field: str) -> Callable[[onnx.ModelProto], None]:
    def apply(proto: onnx.ModelProto) -> None:
        values = getattr(proto.graph, field)
        swapped = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in reversed(values)]
        del values[:]
        values.extend(swapped)

    return apply


def set_batch(value: object) -> Callable[[onnx.ModelProto], None]:
    def apply(proto: onnx.ModelProto) -> None:
        for info in (*proto.graph.input, *proto.graph.output):
            dim = info.type.tensor_type.shape.dim[0]
            if isinstance(value, int):
                dim.dim_value = value
            elif value is None:
                dim.Clear()
            else:
                dim.dim_param = str(value)

    return apply


def set_opset(version: int) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: setattr(proto.opset_import[0], "version", version)


def input_through_a_cast(proto: onnx.ModelProto) -> None:
    """The input becomes double, and the graph goes on in float."""
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    cast = helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT)
    proto.graph.node[0].input[0] = "x32"
    proto.graph.node.insert(0, cast)


def store_sparse_and_drop_a_value(proto: onnx.ModelProto) -> None:
    set_values(proto, "body.weight", lambda a: a.__setitem__(slice(1, None), 0))
    describe(proto, "0" * 64)
    assert to_sparse(proto, {"body.weight"}) == ["body.weight"]


def change_a_sparse_value(proto: onnx.ModelProto) -> None:
    store_sparse_and_drop_a_value(proto)
    (sparse,) = proto.graph.sparse_initializer
    held = np.array(numpy_helper.to_array(sparse.values))
    held[0] += 1
    sparse.values.raw_data = held.tobytes()


def move_a_sparse_index(proto: onnx.ModelProto) -> None:
    store_sparse_and_drop_a_value(proto)
    (sparse,) = proto.graph.sparse_initializer
    indices = np.array(numpy_helper.to_array(sparse.indices))
    indices[-1] += 1
    sparse.indices.raw_data = indices.tobytes()


def weight_in_half_precision(proto: onnx.ModelProto) -> None:
    stored = tensor(proto, "fc.weight")
    half = numpy_helper.to_array(stored).astype(np.float16)
    stored.CopyFrom(numpy_helper.from_array(half, "fc.half"))
    node = helper.make_node("Cast", ["fc.half"], ["fc.weight"], to=TensorProto.FLOAT)
    proto.graph.node.insert(0, node)


def drop_the_bias(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.remove(tensor(proto, "stem.bias"))
    del proto.graph.node[0].input[2]


def leave_out_relu(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].input[0] = "s"
    del proto.graph.node[1]


def another_activation(proto: onnx.ModelProto) -> None:
    """Which changes neither shapes nor tensors."""
    proto.graph.node[1].op_type = "Sigmoid"


def zeros_for_nobody(proto: onnx.ModelProto) -> None:
    """A dense weight again, and in its place zeros that no output depends on."""
    (entry,) = [item for item in proto.metadata_props if item.key == KEY]
    source = json.loads(entry.value)["source_sha256"]
    set_values(proto, "body.weight", lambda a: a.__setitem__(a == 0, 1))
    zeros = numpy_helper.from_array(np.zeros((8, 800), np.float32), "nobody.weight")
    proto.graph.initializer.append(zeros)
    proto.graph.node.append(helper.make_node("MatMul", ["pooled", "nobody.weight"], ["nowhere"]))
    describe(proto, source, [*PRUNED, "nobody.weight"])


def reshape_the_bias(proto: onnx.ModelProto) -> None:
    (entry,) = [item for item in proto.metadata_props if item.key == KEY]
    source = json.loads(entry.value)["source_sha256"]
    tensor(proto, "fc.bias").dims.insert(0, 1)
    describe(proto, source, PRUNED, "2:4")


def second_entry(proto: onnx.ModelProto) -> None:
    proto.metadata_props.add(key=KEY, value=proto.metadata_props[0].value)


def own_entry_lies(proto: onnx.ModelProto) -> None:
    (entry,) = tensor(proto, "fc.weight").metadata_props
    entry.value = entry.value.replace('"nonzeros":16', '"nonzeros":8')


def pass_over_the_dense_tensor(metadata: Any) -> None:
    """Leave out the tensors but one, and state the sparsity of that one."""
    metadata["tensors"] = metadata["tensors"][-1:]
    metadata["sparsity"] = metadata["target_sparsity"] = metadata["tensors"][0]["sparsity"]
    metadata["recipe"]["sparsity"]["target"] = metadata["target_sparsity"]


TRUE, SOURCE = "metadata.true_to_file", "metadata.source_sha256"
SIGNATURE, GRAPH = "signature.same_as_baseline", "signature.same_graph"
FINITE, PATTERN = "outputs.finite", "sparsity.pattern"

TAMPERED: dict[str, tuple[Callable[[onnx.ModelProto], object], set[str]]] = {
    "claims more sparsity": (claims(lambda m: m.update(sparsity=0.6)), {TRUE}),
    "claims a higher target": (claims(lambda m: m.update(target_sparsity=0.9)), {TRUE}),
    "claims a lower target": (claims(lambda m: m.update(target_sparsity=0.3)), {TRUE}),
    "claims another method": (claims(lambda m: m.update(method="cascade-gmp")), {TRUE}),
    "claims a sparser pattern": (claims(lambda m: m.update(pattern="1:4")), {TRUE}),
    "claims a pattern of a tensor": (
        claims(lambda m: m["tensors"][0].update(pattern="block:2x2")),
        {TRUE},
    ),
    "claims zeros of a tensor": (claims(lambda m: m["tensors"][1].update(nonzeros=3)), {TRUE}),
    "claims another shape": (claims(lambda m: m["tensors"][2].update(shape=[8, 4])), {TRUE}),
    "claims another mask": (claims(lambda m: m["tensors"][0].update(mask_sha256="0" * 64)), {TRUE}),
    "passes over two tensors": (claims(pass_over_the_dense_tensor), {TRUE}),
    "lists a tensor twice": (claims(lambda m: m["tensors"].append(m["tensors"][0])), {TRUE}),
    "lists a tensor that is not there": (
        claims(lambda m: m["tensors"].append({**m["tensors"][0], "name": "ghost"})),
        {TRUE},
    ),
    "lacks a field": (claims(lambda m: m.pop("payload_sha256")), {TRUE}),
    "has a field too many": (claims(lambda m: m.update(approved=True)), {TRUE}),
    "is of another schema": (claims(lambda m: m.update(schema_version=2)), {TRUE}),
    "names another source": (claims(lambda m: m.update(source_sha256="0" * 64)), {TRUE, SOURCE}),
    "has a stale payload digest": (claims(lambda m: m.update(payload_sha256="1" * 64)), {TRUE}),
    "has two entries": (second_entry, {"metadata.required", TRUE, SOURCE}),
    "has an entry that is no JSON": (
        lambda p: setattr(p.metadata_props[0], "value", "sparse!"),
        {"metadata.required", TRUE, SOURCE},
    ),
    "has an entry that is a list": (
        lambda p: setattr(p.metadata_props[0], "value", "[]"),
        {"metadata.required", TRUE, SOURCE},
    ),
    "has no metadata": (
        lambda p: p.ClearField("metadata_props"),
        {"metadata.required", TRUE, SOURCE},
    ),
    "has a tensor entry that lies": (own_entry_lies, {TRUE}),
    "one weight not zero": (unzero_one, {TRUE, "sparsity.min", PATTERN}),
    "one weight not zero, covered up": (unzero_one_and_cover_it_up, {"sparsity.min", PATTERN}),
    "one kept weight changed": (values("fc.weight", (0, 0), 0.25), {TRUE}),
    "a bias changed": (values("fc.bias", (0,), 1000.0), {TRUE, "agreement.min", "accuracy.min"}),
    "a weight is NaN": (values("body.weight", (0, 0, 0, 0), np.nan), {TRUE, FINITE}),
    "a weight is infinite": (values("stem.weight", (0, 0, 0, 0), -np.inf), {TRUE, FINITE}),
    "a weight overflows": (values("fc.weight", (0, 0), 3e38), {TRUE, FINITE}),
    "an extra tensor": (
        lambda p: p.graph.initializer.append(numpy_helper.from_array(np.ones(3), "extra")),
        {TRUE},
    ),
    "a tensor less": (drop_the_bias, {TRUE}),
    "a weight in another type": (weight_in_half_precision, {TRUE}),
    "sparse storage, a value changed": (change_a_sparse_value, {TRUE, SOURCE}),
    "sparse storage, an index moved": (move_a_sparse_index, {TRUE, SOURCE}),
    "an input renamed": (rename_input, {SIGNATURE, "agreement.min", "accuracy.max_drop"}),
    "an output renamed": (rename_output, {SIGNATURE, "agreement.min"}),
    "inputs swapped": (swap("input"), {SIGNATURE}),
    "outputs swapped": (swap("output"), {SIGNATURE}),
    "an output less": (lambda p: p.graph.output.pop(), {SIGNATURE}),
    "an input of another type": (input_through_a_cast, {SIGNATURE, "agreement.min"}),
    "another opset": (set_opset(18), {SIGNATURE}),
    "one more operator set": (
        lambda p: p.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
        {SIGNATURE},
    ),
    "a newer IR version": (lambda p: setattr(p, "ir_version", 11), {SIGNATURE}),
    "a dynamic axis made static": (set_batch(1), {SIGNATURE}),
    "a dynamic axis renamed": (set_batch("batch"), {SIGNATURE}),
    "a dynamic axis without its name": (set_batch(None), {SIGNATURE}),
    "an operator that no runtime has": (
        lambda p: setattr(p.graph.node[1], "op_type", "Nonsense"),
        {"outputs.providers", FINITE, "accuracy.min"},
    ),
    "zeros for nobody": (zeros_for_nobody, {GRAPH, "sparsity.min"}),
    "a node less": (leave_out_relu, {GRAPH}),
    "another activation": (another_activation, {GRAPH}),
    "another attribute": (
        lambda p: p.graph.node[5].attribute.append(helper.make_attribute("alpha", 1.5)),
        {GRAPH},
    ),
    "a tensor reshaped, and the metadata with it": (reshape_the_bias, {GRAPH}),
    "a default for an input": (
        lambda p: p.graph.input.append(
            helper.make_tensor_value_info("fc.bias", TensorProto.FLOAT, [4])
        ),
        {SIGNATURE},
    ),
    "much larger": (
        lambda p: p.graph.initializer.append(
            numpy_helper.from_array(np.ones(9000, np.float32), "padding")
        ),
        {TRUE, "size.max_bytes", "size.max_ratio"},
    ),
}


def test_the_honest_artifact_passes(original: Pair) -> None:
    result = gate(original)
    assert not_passed(result) == {}
    assert [c.name for c in result.checks] == [name for name, _ in rules().demands()]
    assert (result.passed, result.exit_code) == (True, 0)


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_caught(pair: Pair, case: str) -> None:
    change, caught = TAMPERED[case]
    pair.edit(change)
    result = gate(pair)
    assert caught <= set(not_passed(result)), not_passed(result)
    assert not result.passed
    assert result.exit_code == 1


def constant_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its weights in `Constant` nodes."""
    stored = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for item in reversed(stored):
        proto.graph.node.insert(0, helper.make_node("Constant", [], [item.name], value=item))
    return proto


def tied_weights() -> onnx.ModelProto:
    """Both convolutions' outputs come from one weight, which `Identity` gives a second name."""
    proto = dense_model()
    proto.graph.node.insert(3, helper.make_node("Conv", ["b", "tied"], ["t"], pads=[1] * 4))
    proto.graph.node.insert(0, helper.make_node("Identity", ["body.weight"], ["tied"]))
    pool = next(node for node in proto.graph.node if node.op_type == "GlobalAveragePool")
    pool.input[0] = "t"
    return proto


def masked_softmax() -> onnx.ModelProto:
    """Zero inputs give NaN, as an attention mask that leaves nothing does, and -inf is stored."""
    proto = dense_model()
    proto.graph.initializer.append(
        numpy_helper.from_array(np.array(-np.inf, np.float32), "minus.inf")
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    nodes = [
        helper.make_node("Equal", ["shift", "nothing"], ["is.padding"]),
        helper.make_node("Where", ["is.padding", "minus.inf", "g"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["scores"], axis=-1),
    ]
    proto.graph.node.pop()
    proto.graph.node.extend(nodes)
    return proto


NO_PATTERN = {"min": 0.3, "per_tensor_min": {"*": 0.3}}
HALF = {"min": 0.5, "per_tensor_min": {"*": 0.5}}
HONEST: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any] | None]]] = {
    "unstructured": (
        {"mask": smallest(0.3), "pattern": "unstructured"},
        {"sparsity": NO_PATTERN},
    ),
    "blocks": (
        {"mask": blocks_of_two_outputs, "pattern": "block:2x1"},
        {
            "sparsity": {"min": 0.25, "pattern": "block:2x1"},
            "accuracy": None,
            "agreement": {"min": 0.2},
        },
    ),
    "half precision": ({"dense": dense_model(data_type=TensorProto.FLOAT16)}, {}),
    "opset 18, IR version 9": ({"dense": dense_model(opset=18, ir_version=9)}, {}),
    "stored sparsely": (
        {"mask": smallest(0.75), "pattern": "unstructured", "sparse": True},
        {"sparsity": HALF, "accuracy": None, "agreement": None},
    ),
    "external data": ({"external": True}, {}),
    "opset 13, IR version 7": ({"dense": dense_model(opset=13, ir_version=7)}, {}),
    "opset 21": ({"dense": dense_model(opset=21)}, {}),
    "a fixed batch": ({"dense": dense_model(batch=4)}, {}),
    "weights in Constant nodes": ({"dense": constant_weights(dense_model())}, {}),
    "tied weights": ({"dense": tied_weights()}, {"agreement": {"min": 0.5}, "accuracy": None}),
    "NaN where the dense model has it": ({"dense": masked_softmax()}, {}),
    "one tensor left dense": (
        {"names": PRUNED[:2]},
        {
            "sparsity": {"min": 0.5, "pattern": "2:4", "exclude": ["op:Gemm"]},
            "metadata": {"required": True, "source_sha256": "baseline"},
        },
    ),
}


@pytest.mark.parametrize("case", HONEST)
def test_honest_artifacts_pass(tmp_path: Path, case: str) -> None:
    options, changes = HONEST[case]
    result = gate(make_pair(tmp_path, **options), rules(**changes))
    assert not_passed(result) == {}
    assert result.exit_code == 0
    if case.startswith("NaN"):
        (finite,) = [check for check in result.checks if check.name == FINITE]
        assert "as the dense model is, too" in finite.message
        assert "zero inputs" in finite.message


def test_without_the_dense_model_nan_is_no_excuse(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, masked_softmax())
    result = check(pair.pruned, Policy.from_dict({"outputs": {"finite": True}}))
    assert "on zero inputs" in not_passed(result)[FINITE]


def truncate(pair: Pair) -> None:
    pair.pruned.write_bytes(pair.pruned.read_bytes()[:1000])


def not_onnx(pair: Pair) -> None:
    pair.pruned.write_bytes(b"PK\x03\x04 something else")


def lose_external_data(pair: Pair) -> None:
    make_pair(pair.pruned.parent, external=True)
    pair.pruned.with_name("pruned.onnx.data").unlink()


def shorten_external_data(pair: Pair) -> None:
    make_pair(pair.pruned.parent, external=True)
    data = pair.pruned.with_name("pruned.onnx.data")
    data.write_bytes(data.read_bytes()[:-8])


@pytest.mark.parametrize(
    "spoil",
    [truncate, not_onnx, lose_external_data, shorten_external_data, lambda p: p.pruned.unlink()],
)
def test_a_file_that_cannot_be_read_is_3_and_nothing_is_a_pass(
    pair: Pair, spoil: Callable[[Pair], None]
) -> None:
    spoil(pair)
    result = gate(pair)
    assert (result.checks[0].name, result.checks[0].status) == ("model", "error")
    assert {check.status for check in result.checks[1:]} == {"skipped"}
    assert len(result.checks) == 1 + len(list(rules().demands()))
    assert result.exit_code == 3


def test_external_data_changed_in_place_are_noticed(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, external=True)
    data = pair.pruned.with_name("pruned.onnx.data")
    content = bytearray(data.read_bytes())
    content[100] ^= 0x40
    data.write_bytes(bytes(content))
    assert TRUE in not_passed(gate(pair))


def test_a_wrong_baseline_is_noticed(pair: Pair) -> None:
    proto = onnx.load(pair.dense)
    proto.doc_string = "another file"
    onnx.save(proto, pair.dense)
    assert set(not_passed(gate(pair))) == {TRUE, SOURCE}


def test_a_digest_in_the_policy(pair: Pair) -> None:
    digest = pair.source_sha256
    right = Policy.from_dict({"metadata": {"source_sha256": digest}})
    wrong = Policy.from_dict({"metadata": {"source_sha256": "ab" * 32}})
    assert check(pair.pruned, right).passed
    assert check(pair.pruned, right, baseline=pair.dense).passed
    assert check(pair.pruned, wrong).exit_code == 1
    other = check(pair.pruned, right, baseline=pair.pruned)
    assert "another file" in not_passed(other)[SOURCE]


def test_what_is_not_given_is_skipped_and_no_pass(pair: Pair) -> None:
    policy = Policy.from_dict(RULES | {"latency": {"min_speedup": 0.5}})
    result = check(pair.pruned, policy)
    assert {name for name, text in not_passed(result).items() if "skipped" in text} == {
        *(SOURCE, SIGNATURE, GRAPH, "size.max_ratio", "latency.min_speedup"),
        *("accuracy.min", "accuracy.max_drop"),
        *("agreement.min", "agreement.min_cosine", "agreement.min_sqnr_db"),
    }
    assert (result.passed, result.exit_code) == (False, 1)
    assert "--baseline" in not_passed(result)["latency.min_speedup"]
    assert "--data" in not_passed(result)["accuracy.min"]


def test_a_baseline_or_data_that_cannot_be_read(pair: Pair, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = check(pair.pruned, rules(), baseline=missing, data=str(pair.data))
    assert (result.checks[0].name, result.exit_code) == ("baseline", 3)
    assert "baseline cannot be read" in not_passed(result)[SIGNATURE]
    result = check(pair.pruned, rules(), baseline=pair.dense, data=str(missing))
    assert (result.checks[0].name, result.exit_code) == ("data", 4)
    assert "data cannot be read" in not_passed(result)["agreement.min"]
    broken = check(pair.dense, rules(), baseline=pair.dense, data=str(missing))
    assert broken.exit_code == 1


def test_labels_are_needed_for_accuracy(pair: Pair, tmp_path: Path) -> None:
    arrays = dict(np.load(pair.data))
    del arrays["label"]
    np.savez(tmp_path / "unlabelled.npz", **arrays)
    policy = rules(agreement={"min": 0.5}, accuracy={"min": 0.5})
    result = check(pair.pruned, policy, baseline=pair.dense, data=str(tmp_path / "unlabelled.npz"))
    assert not_passed(result).keys() == {"accuracy.min"}
    assert result.exit_code == 4


def test_per_tensor_globs(original: Pair) -> None:
    def verdict(least: dict[str, float], **settings: Any) -> str:
        policy = Policy.from_dict({"sparsity": {"per_tensor_min": least, **settings}})
        return not_passed(check(original.pruned, policy)).get("sparsity.per_tensor_min", "")

    assert verdict({"*.weight": 0.5}) == ""
    assert "fc.weight: 50.0000%, demanded 60.0000%" in verdict({"*": 0.5, "op:Gemm": 0.6})
    assert verdict({"*": 0.6, "op:*": 0.5}) == ""
    assert "'head.*' matches no tensor" in verdict({"*": 0.1, "head.*": 0.1})
    assert "'fc.bias' matches no tensor" in verdict({"fc.bias": 0.0})
    assert "fc.bias: 0.0000%" in verdict({"fc.bias": 0.1}, include=["*", "fc.bias"])
    assert "'fc.weight' matches no tensor" in verdict({"fc.weight": 0.1}, exclude=["fc.*"])


def test_a_pattern_has_to_be_there_at_all(original: Pair) -> None:
    def verdict(pattern: str, **settings: Any) -> str:
        policy = Policy.from_dict({"sparsity": {"pattern": pattern, **settings}})
        return not_passed(check(original.dense, policy)).get(PATTERN, "")

    assert "no weight is zero" in verdict("block:2x2")
    assert "the size of no tensor" in verdict("block:3x1")
    assert "stem.weight: 72 of 72 groups of 4 have more than 2" in verdict("2:4")
    assert "in scope" in verdict("2:4", include=["nothing"])


def test_a_provider_that_is_not_there(original: Pair) -> None:
    policy = Policy.from_dict({"outputs": {"providers": ["cpu", "QuantumExecutionProvider"]}})
    result = check(original.pruned, policy)
    assert "QuantumExecutionProvider" in not_passed(result)["outputs.providers"]
    assert result.checks[0].measured["cpu"] >= 1
    assert result.exit_code == 1


def test_a_provider_that_does_nothing_is_no_provider(
    original: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a GPU session leaves every node to the CPU, which ONNX Runtime does not say."""
    from onnxprune.validate import output_checks

    monkeypatch.setattr(
        output_checks, "nodes_by_provider", lambda *_: {"AzureExecutionProvider": 5}
    )
    policy = Policy.from_dict({"outputs": {"providers": ["cpu"]}})
    text = not_passed(check(original.pruned, policy))["outputs.providers"]
    assert "no node" in text
    assert "5 on AzureExecutionProvider" in text


def test_open_axes_take_their_sizes_from_policy_recipe_or_data(tmp_path: Path) -> None:
    dense = dense_model()
    for axis, name in ((2, "H"), (3, "W")):
        dense.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    pair = make_pair(tmp_path, dense)
    outputs = {"outputs": {"finite": True, "providers": ["cpu"]}}
    result = check(pair.pruned, Policy.from_dict(outputs))
    assert "leaves an axis open" in not_passed(result)[FINITE]
    assert result.exit_code == 2
    shapes = {"inputs": {"shapes": {"x": [1, 4, 6, 6]}}}
    assert check(pair.pruned, Policy.from_dict(outputs | shapes)).passed
    assert check(pair.pruned, Policy.from_dict(outputs), shapes={"x": [2, 4, 7, 7]}).passed
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[validate]\nshapes = {x = [1, 4, 5, 5]}\n")
    assert check(pair.pruned, Policy.from_dict(outputs), recipe=recipe).passed
    with_data = Policy.from_dict(outputs | {"accuracy": {"min": 0.5}})
    assert check(pair.pruned, with_data, data=str(pair.data)).passed


def test_latency(original: Pair) -> None:
    def verdict(least: float) -> GateResult:
        policy = Policy.from_dict({"latency": {"min_speedup": least, "seconds": 0.5, "threads": 1}})
        return check(original.pruned, policy, baseline=original.dense)

    assert verdict(0.01).passed
    result = verdict(100)
    assert result.exit_code == 1
    assert 0.05 < result.checks[0].measured < 20


def test_a_defect_in_one_check_is_an_error_of_that_check(
    original: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(CHECKS, "size.max_bytes", broken)
    policy = Policy.from_dict({"size": {"max_bytes": 1_000_000}, "sparsity": {"min": 0.1}})
    result = check(original.pruned, policy)
    assert [c.status for c in result.checks] == ["pass", "error"]
    assert "internal error: ZeroDivisionError: oops" in result.checks[1].message
    assert (result.passed, result.exit_code) == (False, 70)


def test_an_uncertain_speedup_is_no_pass(original: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from onnxprune.validate import Speedup, measured_checks

    models = [None, SimpleNamespace(speedup=Speedup(1.3, 0.9, 1.7))]
    monkeypatch.setattr(measured_checks, "bench", lambda *_, **__: SimpleNamespace(models=models))
    policy = Policy.from_dict({"latency": {"min_speedup": 1.0}})
    result = check(original.pruned, policy, baseline=original.dense)
    assert "inconclusive" in not_passed(result)["latency.min_speedup"]
    assert result.checks[0].measured == 0.9


def test_few_samples_do_not_prove_that_nothing_is_lost(original: Pair, tmp_path: Path) -> None:
    """The dense model against itself loses nothing, which 20 samples are too few to show."""
    arrays = {name: array[:20] for name, array in np.load(original.data).items()}
    np.savez(tmp_path / "few.npz", **arrays)

    def verdict(policy: dict[str, Any], data: Path) -> GateResult:
        rules = Policy.from_dict({"accuracy": policy})
        return check(original.dense, rules, baseline=original.dense, data=str(data))

    few = verdict({"max_drop": 0.05}, tmp_path / "few.npz")
    assert few.checks[0].measured == pytest.approx(0.119, abs=0.001)
    assert "more samples" in few.checks[0].message
    assert verdict({"max_drop": 0.05}, original.data).passed
    assert not verdict({"min": 0.95}, tmp_path / "few.npz").passed
    assert verdict({"min": 0.95}, original.data).passed
    assert verdict({"min": 0.85, "confidence": 0.9}, tmp_path / "few.npz").passed


def test_memory(tmp_path: Path) -> None:
    """A tensor of 40 MB more takes at least that much more to load."""
    pair = make_pair(tmp_path)

    def peak(file: Path, **demands: float) -> tuple[bool, float]:
        result = check(file, Policy.from_dict({"memory": demands}), baseline=pair.dense)
        assert result.checks[0].status in ("pass", "fail"), result.checks[0].message
        return result.passed, result.checks[0].measured

    passed, before = peak(pair.pruned, max_bytes=2**40)
    assert passed
    assert not peak(pair.pruned, max_bytes=1)[0]
    large = np.random.default_rng(0).normal(size=(4, 2_500_000)).astype(np.float32)
    pair.edit(lambda p: p.graph.initializer.append(numpy_helper.from_array(large, "large")))
    pair.edit(
        lambda p: p.graph.node.insert(0, helper.make_node("MatMul", ["shift", "large"], ["m"]))
    )
    pair.edit(
        lambda p: p.graph.output.append(
            helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", 2_500_000])
        )
    )
    passed, after = peak(pair.pruned, max_bytes=2**40)
    assert passed
    assert after - before >= 40_000_000
    assert peak(pair.pruned, max_ratio=1.5)[0] is False


def test_character_errors_and_metrics_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of one character: the dense model reads all, the other loses the rarer class."""
    rng = np.random.default_rng(0)
    classes = np.where(rng.random(400) < 0.1, 2, 1)
    onnx_models = {}
    for name, scale in (("dense", 1.0), ("pruned", 0.0)):
        factor = numpy_helper.from_array(np.array([0.5, 1, scale], np.float32), "factor")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 3])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 3])
        node = helper.make_node("Mul", ["x", "factor"], ["y"])
        graph = helper.make_graph([node], "lines", [x], [y], [factor])
        opsets = [helper.make_opsetid("", 17)]
        onnx_models[name] = tmp_path / f"{name}.onnx"
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.save(model, onnx_models[name])
    scores = np.eye(3, dtype=np.float32)[classes][:, None]
    np.savez(tmp_path / "lines.npz", x=scores, label=classes[:, None])
    (tmp_path / "gate_metric.py").write_text(
        "def first_score(outputs, targets):\n    return outputs['y'].max(axis=(1, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def verdict(model: str, settings: dict[str, Any], **options: Any) -> GateResult:
        policy = Policy.from_dict({"accuracy": settings})
        data = str(tmp_path / "lines.npz")
        dense = onnx_models["dense"]
        return check(onnx_models[model], policy, baseline=dense, data=data, **options)

    cer = {"metric": "cer", "max": 0.2, "max_drop": 0.2}
    assert verdict("dense", cer).passed
    result = verdict("pruned", cer)
    share = (classes == 2).mean()
    assert result.passed
    for found in result.checks:
        assert share + 0.01 < found.measured < share + 0.05
    assert set(not_passed(verdict("pruned", {**cer, "max": share}))) == {"accuracy.max"}
    assert set(not_passed(verdict("pruned", {**cer, "max_drop": share}))) == {"accuracy.max_drop"}
    own = {"metric": "python:gate_metric:first_score", "min": 0.5, "max_drop": share}
    refused = verdict("pruned", own)
    assert (refused.checks[0].name, refused.exit_code) == ("metric", 2)
    assert {c.status for c in refused.checks[1:]} == {"skipped"}
    result = verdict("pruned", own, allow_python=True)
    assert set(not_passed(result)) == {"accuracy.max_drop"}
    assert share < result.checks[1].measured < share + 0.05
    np.savez(tmp_path / "lines.npz", x=scores[:20], label=classes[:20, None])
    assert "too few samples" in not_passed(verdict("dense", cer))["accuracy.max"]


def test_an_unfit_metric_is_an_error(original: Pair) -> None:
    policy = Policy.from_dict({"accuracy": {"metric": "top5", "min": 0.5}})
    result = check(original.pruned, policy, baseline=original.dense, data=str(original.data))
    assert "so few classes" in not_passed(result)["accuracy.min"]
    assert result.exit_code == 2


def test_what_may_differ_in_the_same_graph(tmp_path: Path) -> None:
    """Trained values in every storage; a constant, also one in a branch, may not."""

    def branch(name: str, value: float) -> onnx.GraphProto:
        held = numpy_helper.from_array(np.array(value, np.float32), "")
        node = helper.make_node("Constant", [], [name], value=held)
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
        return helper.make_graph([node], name, [], [out])

    def model(scale: float, floats: float) -> onnx.ModelProto:
        proto = constant_weights(dense_model())
        proto.graph.node.pop()
        sub = {"then_branch": branch("t", scale), "else_branch": branch("e", 1.0)}
        proto.graph.node.extend(
            [
                helper.make_node("Constant", [], ["c"], value_floats=[floats] * 4),
                helper.make_node("ReduceMax", ["shift"], ["m"], keepdims=0),
                helper.make_node("Cast", ["m"], ["yes"], to=TensorProto.BOOL),
                helper.make_node("If", ["yes"], ["f"], **sub),
                helper.make_node("Mul", ["shift", "f"], ["h"]),
                helper.make_node("Max", ["h", "c"], ["k"]),
                helper.make_node("Add", ["g", "k"], ["scores"], "add"),
            ]
        )
        return proto

    pair = make_pair(tmp_path, model(2.0, 0.0), smallest(0.75), pattern="unstructured")
    policy = Policy.from_dict({"signature": {"same_graph": True}})

    def differences(proto: onnx.ModelProto) -> str:
        onnx.save(proto, tmp_path / "other.onnx")
        result = check(tmp_path / "other.onnx", policy, baseline=pair.dense)
        return not_passed(result).get(GRAPH, "")

    assert check(pair.pruned, policy, baseline=pair.dense).passed
    assert differences(model(2.0, 0.0)) == ""
    assert "FLOAT[] with digest" in differences(model(3.0, 0.0))
    assert "FLOAT[4] with digest" in differences(model(2.0, 1.0))
    longer = model(2.0, 0.0)
    longer.graph.node.append(helper.make_node("Relu", ["scores"], ["unused"]))
    assert "main graph: 19 nodes where the baseline has 18" in differences(longer)


def test_payload_digests_do_not_hide_behind_storage(pair: Pair) -> None:
    """Sparse storage of the same values is the same payload."""
    digest = payload_sha256(onnx.load(pair.pruned))
    pair.edit(lambda proto: to_sparse(proto, {"body.weight", "stem.weight"}))
    assert payload_sha256(onnx.load(pair.pruned)) == digest
    assert not_passed(gate(pair)) == {}
