"""`onnxprune compile`, and what the other commands make of its result."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxprune.runtime import library, missing_reason, session

from .conftest import Command

X = np.random.default_rng(0).standard_normal((2, 256, 20, 20)).astype(np.float32)


def network(density: float) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>'
        "net (float[N, 256, 20, 20] x) => (float[N, 64] y)"
        "{ a = Conv(x, first) r = Relu(a) b = Conv<group = 64>(r, depthwise)"
        " p = GlobalAveragePool(b) y = Flatten(p) }"
    )
    proto.graph.node[0].name = "conv"
    first = rng.standard_normal((64, 256, 1, 1)) * (rng.random((64, 256, 1, 1)) < density)
    for name, array in {"first": first, "depthwise": rng.standard_normal((64, 1, 3, 3))}.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return proto


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    onnx.save(network(0.1), tmp_path / "pruned.onnx")
    return tmp_path / "pruned.onnx"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


needs_kernels = pytest.mark.skipif(
    bool(os.environ.get("ONNXPRUNE_TEST_WITHOUT_KERNELS")), reason="there is no compiler here"
)


@pytest.fixture
def compiled(command: Command, pruned: Path) -> Path:
    assert missing_reason() is None
    output = pruned.with_name("compiled.onnx")
    command("compile", pruned, "-o", output).expect(0)
    return output


@needs_kernels
def test_a_compiled_file_computes_the_same(compiled: Path, pruned: Path):
    expected = session(pruned).run(None, {"x": X})[0]
    np.testing.assert_allclose(session(compiled).run(None, {"x": X})[0], expected, atol=1e-5)
    assert compiled.stat().st_size < pruned.stat().st_size


@needs_kernels
def test_the_table_and_json(command: Command, pruned: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")  # or else long paths wrap the cells
    output = pruned.with_name("compiled.onnx")
    text = command("compile", pruned, "-o", output, "--threads", 1).expect(0).out
    assert "64×256×1×1" in text
    assert "yes + Relu" in text
    assert "no: dense, but in the layout" in text
    assert "1 of 2 layers have sparse kernels" in text
    facts = command("compile", pruned, "-o", output, "--json").expect(0).json
    assert facts["output"] == str(output)
    assert facts["replaced"] == 1
    assert facts["layers"][0]["name"] == "conv"
    assert 0 <= facts["largest_difference"] < 1e-5


@needs_kernels
def test_options(command: Command, pruned: Path):
    def replaced(*options: object) -> int:
        output = pruned.with_name("compiled.onnx")
        return (
            command("compile", pruned, "-o", output, "--json", *options).expect(0).json["replaced"]
        )

    assert replaced("--min-sparsity", 0.95) == 0
    assert replaced("--min-sparsity", 0.5) == 1
    assert replaced("--exclude", "conv") == 0
    assert replaced("--include", "fir*") == 1
    assert replaced("--layouts", "plain") == 1


@needs_kernels
@pytest.mark.parametrize("options", [("--exclude", "depth*"), ("--include", "first")])
def test_a_depthwise_layer_that_is_not_selected_stays(
    command: Command, pruned: Path, options: tuple[str, str]
):
    output = pruned.with_name("compiled.onnx")
    facts = command("compile", pruned, "-o", output, *options, "--json").expect(0).json
    assert [layer["reason"] for layer in facts["layers"]] == ["", "not selected"]
    nodes = [(node.domain, node.op_type) for node in onnx.load(output).graph.node]
    assert nodes[:2] == [("onnxprune", "SparseConv"), ("", "Conv")]


@needs_kernels
def test_float16_values_and_what_rounding_costs(command: Command, pruned: Path, compiled: Path):
    output = pruned.with_name("half.onnx")
    command_line = ("compile", pruned, "-o", output, "--values", "float16")
    text = command(*command_line).expect(0).out
    assert "1 of them with values rounded to float16" in text
    facts = command(*command_line, "--json").expect(0).json
    assert facts["layers"][0]["values"] == "float16"
    assert facts["layers"][1]["values"] == "float32"
    exact = command("compile", pruned, "-o", compiled, "--json").expect(0).json
    assert exact["layers"][0]["values"] == "float32"
    assert exact["largest_difference"] < 1e-5 < facts["largest_difference"] < 1e-2
    kept = np.count_nonzero(numpy_helper.to_array(onnx.load(pruned).graph.initializer[0]))
    saved = compiled.stat().st_size - output.stat().st_size
    assert abs(saved - 2 * kept) < 100
    expected = session(pruned).run(None, {"x": X})[0]
    np.testing.assert_allclose(session(output).run(None, {"x": X})[0], expected, atol=0.01)


@needs_kernels
def test_tuning_shows_times(command: Command, pruned: Path):
    output = pruned.with_name("compiled.onnx")
    options = ("--tune", "--tune-seconds", 5, "--threads", 1, "--json")
    layer = command("compile", pruned, "-o", output, *options).expect(0).json["layers"][0]
    assert layer["dense_ms"] > 0
    assert layer["sparse_ms"] > 0


@needs_kernels
def test_nothing_to_gain_is_said_and_the_model_is_written_as_it_was(
    command: Command, tmp_path: Path
):
    onnx.save(network(1.0), tmp_path / "dense.onnx")
    done = command("compile", tmp_path / "dense.onnx", "-o", tmp_path / "same.onnx").expect(0)
    assert "nothing to gain from sparse kernels" in done.out
    assert onnx.load(tmp_path / "same.onnx") == network(1.0)


@needs_kernels
def test_errors(command: Command, compiled: Path, pruned: Path, tmp_path: Path):
    assert "compiled already" in command("compile", compiled, "-o", tmp_path / "o").expect(3).err
    assert (
        "no such model" in command("compile", tmp_path / "no", "-o", tmp_path / "o").expect(3).err
    )
    done = command("compile", pruned, "-o", pruned / "o.onnx").expect(2)
    assert "cannot be written" in done.err


def test_without_the_library(
    command: Command, pruned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    done = command("compile", pruned, "-o", tmp_path / "o.onnx").expect(2)
    assert "was not built" in done.err
    assert "remedy: install a C++17 compiler" in done.err
    assert not (tmp_path / "o.onnx").exists()
    facts = command("doctor", "--json").expect(0).json
    assert facts["sparse_runtime"] is None
    assert any("sparse runtime: missing, because" in problem for problem in facts["problems"])
    assert "sparse runtime: missing, because" in command("doctor").expect(0).out


@needs_kernels
def test_doctor_names_the_kernels(command: Command):
    facts = command("doctor", "--json").expect(0).json
    assert facts["sparse_runtime"] in {"portable", "avx2", "avx512", "neon"}
    assert facts["sparse_runtime_missing"] is None


@needs_kernels
def test_inspect(command: Command, compiled: Path, pruned: Path):
    after = command("inspect", compiled, "--json").expect(0).json
    before = command("inspect", pruned, "--json").expect(0).json
    assert after["sparsity"] == before["sparsity"] > 0.85
    assert after["prunable_parameters"] == before["prunable_parameters"]
    assert after["compiled"]["source_sha256"] == before["sha256"]
    assert after["metadata"] is None
    assert "1 sparse operators" in command("inspect", compiled).expect(0).out


@pytest.mark.parametrize("samples", ["together", "split"])
@needs_kernels
def test_inspect_counts_every_kind_of_operator(command: Command, samples: str, tmp_path: Path):
    rng = np.random.default_rng(1)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>'
        "net (float[N, 16, 24, 24] x) => (float[N, 24, 22, 22] y)"
        "{ a = Conv(x, wide) b = Conv<group = 80>(a, depthwise) y = Conv(b, narrow) }"
    )
    shapes = {"wide": (80, 16, 1, 1), "depthwise": (80, 1, 3, 3), "narrow": (24, 80, 1, 1)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape)
        array *= (rng.random(shape) < 0.1) | (name == "depthwise")
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(proto, tmp_path / "pruned.onnx")
    paths = (tmp_path / "pruned.onnx", "-o", tmp_path / "compiled.onnx")
    command("compile", *paths, "--min-sparsity", "0.3", "--samples", samples).expect(0)
    said = command("inspect", tmp_path / "compiled.onnx").expect(0).out
    assert "2 sparse operators" in said  # a SparseExpandDepthwise and a SparseConv
    assert "every statement that the file can answer holds" in said


@needs_kernels
def test_check(command: Command, compiled: Path, pruned: Path, tmp_path: Path):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "[sparsity]\nmin = 0.85\n[metadata]\nrequired = true\n[outputs]\nfinite = true\n"
    )
    done = command("check", compiled, "--policy", policy, "--baseline", pruned, "--json").expect(1)
    status = {check["name"]: check["status"] for check in done.json["checks"]}
    assert status == {"sparsity.min": "pass", "metadata.required": "fail", "outputs.finite": "pass"}
    (message,) = [c["message"] for c in done.json["checks"] if c["name"] == "metadata.required"]
    digest = command("inspect", pruned, "--json").json["sha256"]
    assert message == f"a compiled model has no sparsity metadata, its source {digest} may"


@needs_kernels
def test_bench_takes_dense_pruned_and_compiled(command: Command, compiled: Path, pruned: Path):
    options = ("--rounds", 5, "--threads", 1, "--json")
    report = json.loads(command("bench", pruned, compiled, *options).out)
    assert [model["path"] for model in report["models"]] == [str(pruned), str(compiled)]
