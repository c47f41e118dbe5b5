from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from .conftest import Command

KEYS = {
    "path",
    "opset",
    "ir_version",
    "parameters",
    "prunable_parameters",
    "sparsity",
    "tensors",
    "metadata",
    "metadata_true",
}
TENSOR_KEYS = {"name", "op_type", "shape", "size", "zeros", "sparsity", "prunable", "pattern"}


@pytest.fixture
def pruned(command: Command, classifier: Path) -> Path:
    output = classifier.with_name("pruned.onnx")
    command("prune", classifier, "-o", output, "--epochs", 0, "--set", "validate.latency=false")
    return output


def test_a_dense_model(command: Command, classifier: Path) -> None:
    facts = command("inspect", classifier, "--json").expect(0).json
    assert facts.keys() >= KEYS
    assert facts["path"] == str(classifier)
    assert (facts["opset"], facts["ir_version"]) == (17, 10)
    assert facts["prunable_parameters"] == 248
    assert facts["sparsity"] == 0
    assert facts["metadata"] is None
    assert facts["metadata_true"] is None
    by_name = {tensor["name"]: tensor for tensor in facts["tensors"]}
    assert all(tensor.keys() >= TENSOR_KEYS for tensor in facts["tensors"])
    assert by_name["conv.weight"]["op_type"] == "Conv"
    assert by_name["conv.weight"]["shape"] == [8, 3, 3, 3]
    assert {name for name, tensor in by_name.items() if tensor["prunable"]} == {
        "conv.weight",
        "fc.weight",
    }


def test_a_pruned_model(command: Command, pruned: Path) -> None:
    facts = command("inspect", pruned, "--json").expect(0).json
    assert facts["sparsity"] == 199 / 248
    assert facts["metadata_true"] is True
    assert facts["metadata"]["method"] == "cascade-gmp"
    assert sum(tensor["zeros"] for tensor in facts["tensors"] if tensor["prunable"]) == 199


def test_a_file_that_was_changed_afterwards(command: Command, pruned: Path) -> None:
    proto = onnx.load(pruned)
    tensor = next(t for t in proto.graph.initializer if t.name == "fc.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[values == 0] = 1
    tensor.raw_data = values.astype(np.float32).tobytes()
    onnx.save(proto, pruned)
    facts = command("inspect", pruned, "--json").expect(0).json
    assert facts["metadata_true"] is False
    text = command("inspect", pruned).expect(0).out
    assert "NOT TRUE" in text
    assert "fc.weight: nonzeros" in text


def test_text(command: Command, classifier: Path, pruned: Path) -> None:
    text = command("inspect", classifier).expect(0).out
    assert "conv.weight" in text
    assert "bn.weight" not in text
    assert "no sparsity metadata" in text
    assert "bn.weight" in command("inspect", classifier, "--all").expect(0).out
    text = command("inspect", pruned).expect(0).out
    assert "80.2419 %" in text
    assert "every statement that the file can answer holds" in text


def test_a_missing_model(command: Command, tmp_path: Path) -> None:
    outcome = command("inspect", tmp_path / "no.onnx", "--json").expect(3)
    assert outcome.out == ""
    assert "no such model file" in outcome.err


def test_names_cannot_write_to_the_terminal(command: Command, tmp_path: Path) -> None:
    """An escape would hide what follows, and a mark of direction would turn it round."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x) => (float[n, 4] y) '
        "<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}> { y = MatMul (x, w) }"
    )
    proto = onnx.parser.parse_model(text)
    name = "w\x1b[8m\u202eevil\x9b"
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = name
    model = tmp_path / "model.onnx"
    onnx.save(proto, model)
    out = command("inspect", model).expect(0).out
    assert "w\ufffd[8m\ufffdevil\ufffd" in out
    proto.graph.initializer.append(proto.graph.initializer[0])
    onnx.save(proto, model)
    err = command("inspect", model).expect(3).err
    assert "a second" in err
    policy = tmp_path / "policy.toml"
    policy.write_text("[outputs]\nfinite = true\n")
    outcomes = [
        command("check", model, "--policy", policy, *options).expect(3)
        for options in ((), ("--json",))
    ]
    shown = err + outcomes[0].out + outcomes[1].err
    assert not set("\x1b\u202e\x9b") & set(shown)
