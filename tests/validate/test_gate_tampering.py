"""Tampered artifacts are caught by the check that is for them."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.export import KEY, to_sparse
from onnxprune.model import read
from onnxprune.validate.file_checks import signature_same_as_baseline
from onnxprune.validate.policy import Policy
from onnxprune.validate.subject import Subject

from .artifacts import PRUNED, Pair, describe
from .gating import FINITE, GRAPH, PATTERN, SIGNATURE, SOURCE, TRUE, gate, not_passed


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
    "has an entry with a key twice": (
        lambda p: setattr(
            p.metadata_props[0], "value", '{"sparsity":0.9,' + p.metadata_props[0].value[1:]
        ),
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


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_caught(pair: Pair, case: str) -> None:
    change, caught = TAMPERED[case]
    pair.edit(change)
    result = gate(pair)
    assert caught <= set(not_passed(result)), not_passed(result)
    assert not result.passed
    assert result.exit_code == 1


def test_an_output_named_twice_is_said(pair: Pair) -> None:
    pair.edit(lambda proto: proto.graph.output.append(proto.graph.output[0]))
    model, baseline = read(pair.pruned), read(pair.dense)
    policy = Policy.model_validate({"signature": {"same_as_baseline": True}})
    verdict = signature_same_as_baseline(Subject(model, policy, baseline), True)
    assert not verdict.passed
    assert "outputs: scores: FLOAT[N, 4] where the baseline has less" in verdict.message
