"""Metadata say what is true, and every lie is noticed."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.export import (
    KEY,
    DataMetadata,
    SparsityMetadata,
    describe_tensors,
    overall_sparsity,
    read_metadata,
    schema,
    to_sparse,
    verify,
    write_back,
    write_metadata,
    zeros_elsewhere,
)
from onnxprune.export.metadata import mask_sha256
from onnxprune.model import payload_sha256, read, write
from onnxprune.recipe import Recipe, SparsityTable
from onnxprune.tensors import find_tensors

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "schema" / "sparsity-metadata.schema.json"
NAMES = ["conv.weight", "fc.weight"]


@pytest.fixture
def dense(classifier: Path) -> onnx.ModelProto:
    """The small classifier: prunable are `conv.weight` (8, 3, 3, 3) and `fc.weight` (4, 8)."""
    return onnx.load(classifier)


@pytest.fixture
def pruned(dense: onnx.ModelProto) -> onnx.ModelProto:
    """The classifier without half of `fc.weight` (2:4) and a third of `conv.weight`."""
    tensors = find_tensors(dense)
    conv, fc = (np.array(tensors[name].array()) for name in NAMES)
    conv[:, 0] = 0
    fc[:, ::2] = 0
    proto = write_back(dense, {"conv.weight": conv, "fc.weight": fc})
    return described(proto, {})


def described(proto: onnx.ModelProto, patterns: dict[str, str]) -> onnx.ModelProto:
    """A model with true metadata of its own."""
    stored = find_tensors(proto)
    tensors = describe_tensors((stored[name] for name in NAMES), patterns)
    target = min(0.35, overall_sparsity(tensors))
    settings = SparsityTable(target=target, method="gmp")
    metadata = SparsityMetadata(
        schema_version=1,
        tool_version="0.0",
        method="gmp",
        target_sparsity=target,
        sparsity=overall_sparsity(tensors),
        pattern="unstructured",
        source_sha256="0" * 64,
        payload_sha256=payload_sha256(proto),
        recipe=Recipe(sparsity=settings).portable(),
        data={"train": DataMetadata(samples=9, digest="d" * 64, labelled=True)},
        tensors=tensors,
        zeros_elsewhere=zeros_elsewhere(proto, NAMES),
    )
    write_metadata(proto, metadata)
    return proto


def claims(proto: onnx.ModelProto) -> dict[str, Any]:
    metadata = read_metadata(proto)
    assert metadata is not None
    return metadata


def with_claims(proto: onnx.ModelProto, metadata: object) -> onnx.ModelProto:
    """The same model saying something else."""
    (entry,) = [entry for entry in proto.metadata_props if entry.key == KEY]
    entry.value = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return proto


def initializer(proto: onnx.ModelProto, name: str) -> TensorProto:
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    return tensor


def own_entry(tensor: TensorProto) -> onnx.StringStringEntryProto:
    (entry,) = [entry for entry in tensor.metadata_props if entry.key == KEY]
    return entry


def test_statements_are_computed_from_the_values(pruned: onnx.ModelProto) -> None:
    metadata = claims(pruned)
    by_name = {tensor["name"]: tensor for tensor in metadata["tensors"]}
    assert by_name["fc.weight"]["nonzeros"] == 16
    assert by_name["fc.weight"]["sparsity"] == 0.5
    assert by_name["fc.weight"]["shape"] == [4, 8]
    assert by_name["conv.weight"]["nonzeros"] == 144
    assert metadata["sparsity"] == pytest.approx((72 + 16) / 248)
    check = verify(pruned)
    assert (check.true, check.problems) == (True, [])
    assert check.metadata == metadata


def test_the_mask_digest_is_that_of_its_bits() -> None:
    values = np.array([[1, 0, -2], [-0.0, 5, 0], [0, 0, 3]], np.float32)
    bits = bytes([0b10101000, 0b10000000])
    assert mask_sha256(values) == hashlib.sha256(bits).hexdigest()


def test_a_model_without_metadata_is_neither_true_nor_false(dense: onnx.ModelProto) -> None:
    check = verify(dense)
    assert (check.metadata, check.true, check.problems) == (None, None, [])


def _set(*path: object) -> Callable[[dict[str, Any]], None]:
    *keys, value = path

    def apply(metadata: Any) -> None:
        for key in keys[:-1]:
            metadata = metadata[key]
        metadata[keys[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        (_set("tensors", 1, "nonzeros", 15), r"fc\.weight: nonzeros is 16, the metadata say 15"),
        (_set("tensors", 1, "sparsity", 0.51), r"fc\.weight: sparsity is 0\.5"),
        (_set("tensors", 1, "mask_sha256", "f" * 64), r"fc\.weight: mask_sha256 is"),
        (_set("tensors", 1, "shape", [8, 4]), r"fc\.weight: shape is \[4, 8\]"),
        (_set("tensors", 0, "pattern", "1:3"), r"conv\.weight: the pattern 1:3 does not hold"),
        (_set("tensors", 1, "pattern", "1:4"), r"fc\.weight: the pattern 1:4 does not hold"),
        (_set("tensors", 1, "pattern", "2:5"), r"fc\.weight: the pattern 2:5 does not hold"),
        (_set("pattern", "2:4"), r"conv\.weight: the pattern 2:4 does not hold"),
        (_set("tensors", 1, "pattern", "block:1x4"), r"the pattern block:1x4 does not hold"),
        (_set("tensors", 1, "pattern", "block:3x1"), r"the pattern block:3x1 does not hold"),
        (_set("tensors", 1, "pattern", "block:1x1"), r"the pattern block:1x1 does not hold"),
        (_set("tensors", 1, "pattern", "4:2"), r"the pattern 4:2 does not hold"),
        (_set("pattern", "1:" + "9" * 5000), r"the pattern 1:9{70,80}\.\.\. does not hold"),
        (_set("tensors", 1, "name", "fc.wait"), r"fc\.wait: the model stores no such tensor"),
        (_set("sparsity", 0.36), r"sparsity is 0\.354838.*, the metadata say 0\.36"),
        (_set("payload_sha256", "0" * 64), "payload_sha256: a tensor of the file was changed"),
        (lambda m: m["tensors"].append(m["tensors"][1]), r"fc\.weight: listed 2 times"),
        (lambda m: m["tensors"].pop(0), r"sparsity is 0\.5, the metadata say"),
        (lambda m: m["tensors"].pop(0), r"conv\.weight: prunable, in the recipe's scope, and not"),
        (_set("target_sparsity", 0.36), r"target_sparsity is 0\.36, but sparsity 0\.354838"),
        (_set("target_sparsity", 0.3), r"target_sparsity: the recipe says 0\.35, the metadata say"),
        (_set("recipe", "sparsity", {"method": "random"}), "method: the recipe says random"),
        (lambda m: m.pop("method"), "method: it is missing"),
        (_set("schema_version", 2), "schema_version: found 2, expected 1"),
        (_set("sparsity", "a lot"), 'sparsity: found "a lot", expected a valid number'),
        (_set("sparsity", float("nan")), "no JSON object"),
        (_set("extra", 1), "extra: found 1, expected no field of this name"),
        (_set("source_sha256", "abc"), 'source_sha256: found "abc", expected text that matches'),
    ],
)
def test_false_statements_are_noticed(
    pruned: onnx.ModelProto, lie: Callable[[dict[str, Any]], None], problem: str
) -> None:
    metadata = claims(pruned)
    lie(metadata)
    check = verify(with_claims(pruned, metadata))
    assert check.true is False
    assert any(re.search(problem, found) for found in check.problems), check.problems


def test_the_recipe_says_what_is_listed(pruned: onnx.ModelProto) -> None:
    """What is excluded, or cannot take the pattern, need not be listed; what does is missed."""
    for scope, missed in (
        ({"exclude": ["conv*"]}, False),
        ({"include": ["op:Gemm"]}, False),
        ({"pattern": "2:4"}, False),
        ({"pattern": "2:3", "target": 0.5}, True),
    ):
        metadata = claims(pruned)
        metadata["recipe"]["sparsity"] |= {"target": 0.5} | scope
        metadata["tensors"] = metadata["tensors"][1:]
        metadata["sparsity"] = 0.5
        problems = verify(with_claims(copied(pruned), metadata)).problems
        found = [problem for problem in problems if "not listed" in problem]
        assert bool(found) == missed, (scope, problems)


def test_a_weight_that_no_output_depends_on_need_not_be_listed(dense: onnx.ModelProto) -> None:
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "unused.weight")
    dense.graph.initializer.append(weight)
    dense.graph.node.append(helper.make_node("MatMul", ["f", "unused.weight"], ["nowhere"]))
    assert verify(described(dense, {})).true
    dense.graph.output.append(helper.make_tensor_value_info("nowhere", TensorProto.FLOAT, None))
    assert "unused.weight: prunable" in verify(described(dense, {})).problems[0]


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


@pytest.mark.parametrize("text", ["", "not json", "[]", "3", "[" * 100_000, '{"sparsity": 1e999}'])
def test_metadata_that_are_no_metadata(pruned: onnx.ModelProto, text: str) -> None:
    check = verify(with_claims(pruned, text))
    assert check.true is False
    assert check.problems


def test_a_second_entry_is_noticed(pruned: onnx.ModelProto) -> None:
    pruned.metadata_props.add(key=KEY, value="{}")
    assert verify(pruned).problems == ["the model has 2 entries of this kind"]


@pytest.mark.parametrize("name", ["fc.weight", "conv.weight", "fc.bias", "bn.mean"])
def test_any_changed_value_is_noticed(pruned: onnx.ModelProto, name: str) -> None:
    tensor = initializer(pruned, name)
    values = np.array(numpy_helper.to_array(tensor))
    values.ravel()[np.flatnonzero(values)[0]] += 1
    tensor.raw_data = values.tobytes()
    problems = verify(pruned).problems
    assert problems == ["payload_sha256: a tensor of the file was changed after it was written"]


def test_a_tensor_entry_that_contradicts_the_model_is_noticed(pruned: onnx.ModelProto) -> None:
    entry = own_entry(initializer(pruned, "fc.weight"))
    entry.value = entry.value.replace('"nonzeros":16', '"nonzeros":17')
    assert verify(pruned).problems == ["fc.weight: its own metadata differ from the model's"]


def test_a_tensor_entry_that_the_model_does_not_know_is_noticed(pruned: onnx.ModelProto) -> None:
    initializer(pruned, "fc.bias").metadata_props.add(key=KEY, value="{}")
    assert verify(pruned).problems == ["fc.bias: its own metadata differ from the model's"]


@pytest.mark.parametrize("ir_version", [8, 9, 10, 11])
def test_tensors_have_metadata_of_their_own_from_ir_version_10(
    dense: onnx.ModelProto, ir_version: int
) -> None:
    dense.ir_version = ir_version
    proto = described(dense, {})
    named = [tensor.name for tensor in proto.graph.initializer if len(tensor.metadata_props)]
    assert named == (NAMES if ir_version >= 10 else [])
    assert verify(proto).true
    if named:
        entry = json.loads(own_entry(initializer(proto, "fc.weight")).value)
        assert entry["nonzeros"] == 32


def test_writing_again_replaces_what_stands_there(pruned: onnx.ModelProto) -> None:
    pruned.metadata_props.add(key="mine", value="kept")
    initializer(pruned, "fc.bias").metadata_props.add(key=KEY, value="stale")
    fresh = described(write_back(pruned, {"fc.weight": np.ones((4, 8), np.float32)}), {})
    assert verify(fresh).true
    assert [entry.key for entry in fresh.metadata_props] == ["mine", KEY]
    assert len(initializer(fresh, "fc.weight").metadata_props) == 1
    assert not initializer(fresh, "fc.bias").metadata_props


def test_metadata_stay_true_in_every_storage_form(pruned: onnx.ModelProto, tmp_path: Path) -> None:
    digest = payload_sha256(pruned)
    weights = {name: np.zeros_like(find_tensors(pruned)[name].array()) for name in NAMES}
    weights["conv.weight"][0, 0, 0, 0] = 1
    proto = described(write_back(pruned, weights), {})
    assert payload_sha256(proto) != digest
    assert to_sparse(proto, set(NAMES)) == NAMES
    assert verify(proto).true
    write(proto, tmp_path / "sparse.onnx")
    assert verify(read(tmp_path / "sparse.onnx").proto).true
    write(pruned, tmp_path / "external.onnx", external=True)
    assert verify(read(tmp_path / "external.onnx").proto).true


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16]),
    st.lists(st.integers(1, 4), max_size=3),
    st.data(),
)
def test_the_payload_digest_depends_on_values_and_not_on_their_storage(
    data_type: int, shape: list[int], data: st.DataObject
) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    size = int(np.prod(shape))
    numbers = st.sampled_from([0.0, -0.0, 1.0, -2.5, 65504.0, 6e-8])
    values = np.array(data.draw(st.lists(numbers, min_size=size, max_size=size))).astype(dtype)

    def model(tensor: TensorProto | None, sparse: onnx.SparseTensorProto | None) -> str:
        graph = helper.make_graph([], "g", [], [])
        graph.initializer.extend([tensor] if tensor is not None else [])
        graph.sparse_initializer.extend([sparse] if sparse is not None else [])
        return payload_sha256(helper.make_model(graph))

    raw = numpy_helper.from_array(values.reshape(shape), "w")
    typed = helper.make_tensor("w", data_type, shape, values.astype(np.float64).tolist())
    assert not typed.HasField("raw_data")
    digest = model(raw, None)
    assert model(typed, None) == digest
    held = np.flatnonzero((values != 0) | np.signbit(values))
    sparse_values = numpy_helper.from_array(values[held], "w")
    indices = [numpy_helper.from_array(held.astype(np.int64))]
    if shape:
        rows = np.stack(np.unravel_index(held, shape), axis=1).astype(np.int64)
        indices.append(numpy_helper.from_array(rows))
    for index in indices:
        sparse = helper.make_sparse_tensor(sparse_values, index, shape)
        assert model(None, sparse) == digest
    if size:
        changed = values.copy()
        changed[data.draw(st.integers(0, size - 1))] = 7
        assert model(numpy_helper.from_array(changed.reshape(shape), "w"), None) != digest
    assert model(numpy_helper.from_array(values.reshape(shape), "v"), None) != digest
    assert model(numpy_helper.from_array(values.reshape([1, *shape]), "w"), None) != digest


def test_the_payload_covers_tensors_whose_nodes_share_a_name() -> None:
    def branch(value: float) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.array([value], np.float32), "w")
        return helper.make_graph([], "b", [], [], [weight])

    def model(*values: float) -> str:
        nodes = [helper.make_node("If", ["c"], [], "same", then_branch=branch(v)) for v in values]
        return payload_sha256(helper.make_model(helper.make_graph(nodes, "g", [], [])))

    assert len({model(1, 2), model(3, 2), model(1, 3), model(2, 1)}) == 4


def test_the_committed_schema_is_the_one_of_the_code() -> None:
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == schema()


def test_written_metadata_validate_against_the_committed_schema(pruned: onnx.ModelProto) -> None:
    document = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(document)
    validator.check_schema(document)
    metadata = claims(pruned)
    validator.validate(metadata)
    for key in metadata:
        if key in document["required"]:
            assert not validator.is_valid({k: v for k, v in metadata.items() if k != key})
    metadata["tensors"][0]["mask_sha256"] = "short"
    assert not validator.is_valid(metadata)


def test_the_documented_keys_are_all_there(pruned: onnx.ModelProto) -> None:
    metadata = claims(pruned)
    assert set(metadata) >= {
        *("schema_version", "tool_version", "method", "target_sparsity", "sparsity", "pattern"),
        *("source_sha256", "payload_sha256", "recipe", "tensors"),
    }
    assert set(metadata["tensors"][0]) == {
        *("name", "shape", "nonzeros", "sparsity", "pattern", "mask_sha256"),
    }
