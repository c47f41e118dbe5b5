"""Dense models and artifacts made from them, small and without training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.export import (
    SparsityMetadata,
    describe_tensors,
    overall_sparsity,
    to_sparse,
    write_back,
    write_metadata,
    zeros_elsewhere,
)
from onnxprune.model import payload_sha256, read, write
from onnxprune.recipe import Recipe, SparsityTable
from onnxprune.tensors import GraphTensor, find_tensors

PRUNED = ("stem.weight", "body.weight", "fc.weight")
Mask = Callable[[np.ndarray], np.ndarray]


def dense_model(
    *,
    data_type: int = TensorProto.FLOAT,
    opset: int = 17,
    ir_version: int = 10,
    batch: object = "N",
) -> onnx.ModelProto:
    """Two convolutions and a product: `x` N×4×8×8 and `shift` N×4 -> `scores` N×4, `pooled` N×8.

    Prunable are `stem.weight` (8, 4, 3, 3), `body.weight` (8, 8, 3, 3), `fc.weight` (4, 8): 896.
    """
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(data_type)

    def tensor(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(scale=0.5, size=shape).astype(dtype), name)

    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["s"], "stem", pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "body.weight"], ["b"], "body", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["b"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["pooled"], "flatten"),
        helper.make_node("Gemm", ["pooled", "fc.weight", "fc.bias"], ["g"], "fc", transB=1),
        helper.make_node("Add", ["g", "shift"], ["scores"], "add"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("x", data_type, [batch, 4, 8, 8]),
            helper.make_tensor_value_info("shift", data_type, [batch, 4]),
        ],
        [
            helper.make_tensor_value_info("scores", data_type, [batch, 4]),
            helper.make_tensor_value_info("pooled", data_type, [batch, 8]),
        ],
        [
            tensor("stem.weight", 8, 4, 3, 3),
            tensor("stem.bias", 8),
            tensor("body.weight", 8, 8, 3, 3),
            tensor("fc.weight", 4, 8),
            tensor("fc.bias", 4),
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    onnx.checker.check_model(model)
    return model


def smallest(share: float) -> Mask:
    """Keeps all but a share of the values, the smallest."""

    def mask(values: np.ndarray) -> np.ndarray:
        magnitudes = np.abs(values.astype(np.float64)).ravel()
        zeros = np.argsort(magnitudes, kind="stable")[: int(np.ceil(share * values.size))]
        keep = np.ones(values.size, bool)
        keep[zeros] = False
        return keep.reshape(values.shape)

    return mask


def two_of_four(values: np.ndarray) -> np.ndarray:
    """Keeps the larger half of each four along axis 1."""
    moved = np.moveaxis(np.abs(values.astype(np.float64)), 1, -1)
    ranks = moved.reshape(-1, 4).argsort(axis=1).argsort(axis=1).reshape(moved.shape)
    return np.moveaxis(ranks >= 2, -1, 1)


def blocks_of_two_outputs(values: np.ndarray) -> np.ndarray:
    """Zeroes every other pair of output channels for every input."""
    keep = np.ones(values.shape, bool)
    keep[:2] = False
    return keep


def prune_model(
    dense: onnx.ModelProto,
    source_sha256: str,
    mask: Mask,
    *,
    pattern: str = "unstructured",
    names: Sequence[str] = PRUNED,
    sparse: bool = False,
) -> onnx.ModelProto:
    """The artifact that export would write."""
    tensors = find_tensors(dense)
    arrays = {name: np.array(tensors[name].array()) for name in names}
    values = {name: np.where(mask(array), array, 0) for name, array in arrays.items()}
    proto = write_back(dense, {k: v.astype(np.float32) for k, v in values.items()})
    describe(proto, source_sha256, names, pattern)
    if sparse:
        to_sparse(proto, set(names))
    return proto


def describe(
    proto: onnx.ModelProto,
    source_sha256: str,
    names: Sequence[str] = PRUNED,
    pattern: str = "unstructured",
    *,
    target: float | None = None,
) -> None:
    """Write metadata that are true, but for a target that is none."""
    stored: Mapping[str, GraphTensor] = find_tensors(proto)
    described = describe_tensors([stored[name] for name in names], dict.fromkeys(names, pattern))
    sparsity = overall_sparsity(described)
    target = sparsity if target is None else target
    settings = SparsityTable(target=target, pattern=pattern, method="gmp")
    metadata = SparsityMetadata(
        schema_version=1,
        tool_version="0.0",
        method="gmp",
        target_sparsity=target,
        sparsity=sparsity,
        pattern=pattern,
        source_sha256=source_sha256,
        payload_sha256=payload_sha256(proto),
        recipe=Recipe(sparsity=settings).portable(),
        data={},
        tensors=described,
        zeros_elsewhere=zeros_elsewhere(proto, names),
    )
    write_metadata(proto, metadata)


@dataclass(frozen=True)
class Pair:
    """A dense model and an artifact, as files, and data for both."""

    dense: Path
    pruned: Path
    data: Path

    def edit(self, change: Callable[[onnx.ModelProto], object]) -> None:
        """Change the artifact's file."""
        proto = onnx.load(self.pruned)
        change(proto)
        onnx.save(proto, self.pruned)

    @property
    def source_sha256(self) -> str:
        """Digest of the dense model."""
        return read(self.dense).sha256


def make_pair(
    folder: Path,
    dense: onnx.ModelProto | None = None,
    mask: Mask = two_of_four,
    *,
    pattern: str = "2:4",
    names: Sequence[str] = PRUNED,
    sparse: bool = False,
    external: bool = False,
) -> Pair:
    """Write a dense model, an artifact, and 200 samples with the dense model's classes."""
    dense = dense or dense_model()
    pair = Pair(folder / "dense.onnx", folder / "pruned.onnx", folder / "data.npz")
    write(dense, pair.dense, external=external)
    pruned = prune_model(
        dense, pair.source_sha256, mask, pattern=pattern, names=names, sparse=sparse
    )
    write(pruned, pair.pruned, external=external)
    np.savez(pair.data, **samples(dense))
    return pair


def samples(dense: onnx.ModelProto, count: int = 200) -> dict[str, np.ndarray]:
    """Inputs, and the classes that a dense model gives them."""
    import onnxruntime

    rng = np.random.default_rng(1)
    session = onnxruntime.InferenceSession(dense.SerializeToString())
    dtype = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    inputs = {
        "x": rng.normal(size=(count, 4, 8, 8)).astype(dtype),
        "shift": rng.normal(scale=3, size=(count, 4)).astype(dtype),
    }
    given = [spec.name for spec in session.get_inputs()]
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else count
    labels = np.concatenate(
        [
            session.run(["scores"], {k: inputs[k][i : i + step] for k in given})[0].argmax(1)
            for i in range(0, count, step)
        ]
    )
    return {name: inputs[name] for name in given} | {"label": labels.astype(np.int64)}
