"""What is wrong with an input is told in a few lines, and nothing is left behind."""

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from .conftest import Command, Outcome


@dataclass
class Files:
    """The paths of a `prune` command, all of them good until a test spoils one."""

    command: Command
    model: Path
    data: Path
    output: Path
    options: list[object]

    def prune(self, *options: object) -> Outcome:
        """Run it; if that fails, the output's folder stays as it was, but for a failed run."""
        before = self._files()
        arguments = ["-o", self.output, "--data", self.data, *self.options, *options]
        outcome = self.command("prune", self.model, *arguments)
        if outcome.code:
            assert self._files() == before
            assert outcome.out == ""
        return outcome

    def _files(self) -> list[Path]:
        return sorted(
            path
            for path in self.output.parent.rglob("*")
            if ".run" not in path.parts[-2] + path.parts[-1] or path.suffix == ".tmp"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The data."""
        return dict(np.load(self.data))

    def edit(self, change: Callable[[onnx.ModelProto], None]) -> None:
        """Change the model."""
        proto = onnx.load(self.model)
        change(proto)
        onnx.save(proto, self.model)


@pytest.fixture
def files(
    command: Command, classifier: Path, training_data: Path, quick: list[str], tmp_path: Path
) -> Files:
    folder = tmp_path / "out"
    folder.mkdir()
    return Files(command, classifier, training_data, folder / "pruned.onnx", [*quick])


def told(outcome: Outcome, code: int, *words: str) -> None:
    """The exit code, and a message of few lines with these words."""
    outcome.expect(code)
    for word in words:
        assert word in outcome.err, f"{word!r} is not in:\n{outcome.err}"
    assert len(outcome.err.splitlines()) <= 12, outcome.err
    assert "internal error" not in outcome.err


class TestModel:
    def test_missing(self, files: Files) -> None:
        files.model.unlink()
        told(files.prune(), 3, "no such model file", str(files.model))

    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (b"", "empty"),
            (b"hello world, this is text", "not an ONNX"),
            (b"PK\x03\x04" + b"\0" * 50, "zip archive"),
            (b"<!DOCTYPE html><html>", "HTML"),
            (os.urandom(2000), "ONNX"),
        ],
        ids=["empty", "text", "zip", "html", "random"],
    )
    def test_not_onnx(self, files: Files, content: bytes, word: str) -> None:
        files.model.write_bytes(content)
        told(files.prune(), 3, word, str(files.model))

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_truncated(self, files: Files, share: float) -> None:
        content = files.model.read_bytes()
        files.model.write_bytes(content[: int(share * len(content))])
        told(files.prune(), 3, str(files.model))

    def test_a_folder(self, files: Files) -> None:
        files.model.unlink()
        files.model.mkdir()
        told(files.prune(), 3, "folder")

    def test_missing_external_data(self, files: Files, tmp_path: Path) -> None:
        proto = onnx.load(files.model)
        onnx.save(
            proto, files.model, save_as_external_data=True, location="w.bin", size_threshold=0
        )
        (tmp_path / "w.bin").unlink()
        told(files.prune(), 3, "external data", "w.bin", "conv.weight")

    def test_external_data_outside_the_folder(self, files: Files, tmp_path: Path) -> None:
        proto = onnx.load(files.model)
        onnx.save(
            proto, files.model, save_as_external_data=True, location="w.bin", size_threshold=0
        )
        light = onnx.load(files.model, load_external_data=False)
        for tensor in light.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../w.bin"
        files.model.write_bytes(light.SerializeToString())
        told(files.prune(), 3, "outside", "../w.bin")

    def test_an_unsupported_operator_is_named(self, files: Files) -> None:
        def change(proto: onnx.ModelProto) -> None:
            proto.graph.node[2].op_type = "FancyRelu"
            proto.graph.node[2].domain = "com.example"
            proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))

        files.edit(change)
        told(files.prune(), 3, "FancyRelu", "relu")

    def test_an_operator_that_does_not_exist(self, files: Files) -> None:
        def change(proto: onnx.ModelProto) -> None:
            proto.graph.node[2].op_type = "Relux"

        files.edit(change)
        told(files.prune(), 3, "Relux")

    @pytest.mark.parametrize("version", [1, 9999])
    def test_an_unsupported_opset(self, files: Files, version: int) -> None:
        def change(proto: onnx.ModelProto) -> None:
            proto.opset_import[0].version = version

        files.edit(change)
        told(files.prune(), 3, str(version), "opset")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite(self, files: Files, value: float) -> None:
        def change(proto: onnx.ModelProto) -> None:
            array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
            array.flat[7] = value
            proto.graph.initializer[0].raw_data = array.tobytes()

        files.edit(change)
        told(files.prune(), 3, "conv.weight", "finite")

    def test_sizes_of_zero(self, files: Files) -> None:
        def change(proto: onnx.ModelProto) -> None:
            empty = np.zeros((0, 8), dtype=np.float32)
            for tensor in proto.graph.initializer:
                if tensor.name == "fc.weight":
                    tensor.CopyFrom(numpy_helper.from_array(empty, tensor.name))

        files.edit(change)
        told(files.prune(), 3)

    def test_training_flags(self, files: Files) -> None:
        def change(proto: onnx.ModelProto) -> None:
            train = numpy_helper.from_array(np.array(True), "train")
            ratio = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "ratio")
            proto.graph.initializer.extend([train, ratio])
            node = onnx.helper.make_node("Dropout", ["f", "ratio", "train"], ["d"], "drop")
            proto.graph.node.insert(5, node)
            proto.graph.node[6].input[0] = "d"

        files.edit(change)
        told(files.prune(), 3, "--to-inference", "drop")
        files.prune("--to-inference").expect(0)


class TestData:
    def test_missing(self, files: Files) -> None:
        files.data.unlink()
        told(files.prune(), 4, "no such data", str(files.data))

    def test_none_given(self, files: Files) -> None:
        outcome = files.command("prune", files.model, "-o", files.output)
        told(outcome, 2, "--data", "--epochs 0")

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken"])
    def test_damaged(self, files: Files, content: bytes) -> None:
        files.data.write_bytes(content)
        told(files.prune(), 4, str(files.data))

    def test_shape(self, files: Files) -> None:
        arrays = files.arrays()
        np.savez(files.data, x=arrays["x"][:, :, :6], label=arrays["label"])
        told(files.prune(), 4, "'x'", "6", "3, 8, 8")

    def test_rank(self, files: Files) -> None:
        arrays = files.arrays()
        np.savez(files.data, x=arrays["x"].reshape(160, -1), label=arrays["label"])
        told(files.prune(), 4, "'x'", "192")

    def test_dtype(self, files: Files) -> None:
        """A float model takes integers, but an integer model takes no floats."""

        def change(proto: onnx.ModelProto) -> None:
            proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
            cast = onnx.helper.make_node("Cast", ["x"], ["xf"], to=onnx.TensorProto.FLOAT)
            proto.graph.node.insert(0, cast)
            proto.graph.node[1].input[0] = "xf"

        files.edit(change)
        told(files.prune(), 4, "'x'", "float32", "int32")

    def test_numbers_that_are_none(self, files: Files) -> None:
        arrays = files.arrays()
        np.savez(files.data, x=arrays["x"].astype(np.complex64), label=arrays["label"])
        told(files.prune(), 4, "complex64")

    def test_names(self, files: Files) -> None:
        arrays = files.arrays()
        np.savez(files.data, image=arrays["x"], label=arrays["label"])
        told(files.prune(), 4, "'image'", "'x'")

    @pytest.mark.parametrize("label", [4, -1, 10**9])
    def test_labels_out_of_range(self, files: Files, label: int) -> None:
        arrays = files.arrays()
        arrays["label"][5] = label
        np.savez(files.data, **arrays)
        told(files.prune(), 4, "label", str(label), "0 to 3")

    def test_labels_that_are_no_integers(self, files: Files) -> None:
        arrays = files.arrays()
        np.savez(files.data, x=arrays["x"], label=arrays["label"] + 0.5)
        told(files.prune(), 4, "label")

    def test_labels_and_samples_differ_in_number(self, files: Files) -> None:
        arrays = files.arrays()
        np.savez(files.data, x=arrays["x"], label=arrays["label"][:-1])
        told(files.prune(), 4, "159", "160")

    def test_empty(self, files: Files) -> None:
        np.savez(files.data, x=np.zeros((0, 3, 8, 8), np.float32), label=np.zeros(0, int))
        told(files.prune(), 4, "no samples")
        np.savez(files.data)
        told(files.prune(), 4, "'x'")

    def test_pickles_are_refused(self, files: Files) -> None:
        np.savez(files.data, x=np.array([object()], dtype=object), allow_pickle=True)
        told(files.prune(), 4, "pickled")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite(self, files: Files, value: float) -> None:
        """One such pixel would poison every weight."""
        arrays = files.arrays()
        arrays["x"][3, 0, 0, 0] = value
        np.savez(files.data, **arrays)
        told(files.prune(), 4, "'x'", "finite", "sample 3")

    def test_constant_labels_are_no_error(self, files: Files) -> None:
        arrays = files.arrays()
        np.savez(files.data, x=arrays["x"], label=np.zeros(160, int))
        assert files.prune().expect(0)

    def test_the_evaluation_data_are_checked_too(self, files: Files, tmp_path: Path) -> None:
        arrays = files.arrays()
        path = tmp_path / "bad.npz"
        np.savez(path, x=arrays["x"][:, :1], label=arrays["label"])
        told(files.prune("--eval-data", path), 4, "bad.npz", "'x'")


class TestRecipe:
    def test_every_problem_at_once(self, files: Files, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            "[sparsity]\ntarget = 1.5\nmethod = 'magic'\npattern = '4:2'\n"
            "[finetune]\nepoch = 3\nlr = -1\n[nonsense]\n"
        )
        outcome = files.prune("--recipe", recipe).expect(2)
        for word in (
            "sparsity.target",
            "sparsity.method",
            "gmp",
            "sparsity.pattern",
            "finetune.epoch:",
            "epochs",
            "finetune.lr",
            "nonsense",
            "recipe.toml",
        ):
            assert word in outcome.err, word

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            (["--method", "magic"], "one-shot"),
            (["--pattern", "3:x"], "sparsity.pattern"),
            (["--sparsity", "1"], "sparsity.target"),
            (["--sparsity", "-0.1"], "sparsity.target"),
            (["--epochs", "-1"], "finetune.epochs"),
            (["--epochs", "nan"], "finetune.epochs"),
            (["--epochs", "1e308"], "finetune.epochs"),
            (["--set", "finetune.momentum"], "TABLE.KEY=VALUE"),
            (["--set", "finetune.nonsense=1"], "finetune.nonsense"),
            (["--device", "tpu"], "finetune.device"),
            (["--provider", "QuantumExecutionProvider"], "CPUExecutionProvider"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_bad_options(self, files: Files, options: list[str], word: str) -> None:
        told(files.prune(*options), 2, word)

    def test_no_such_recipe(self, files: Files, tmp_path: Path) -> None:
        told(files.prune("--recipe", tmp_path / "no.toml"), 2, "no such recipe file")
        (tmp_path / "bad.toml").write_text("[sparsity\n")
        told(files.prune("--recipe", tmp_path / "bad.toml"), 2, "TOML")

    def test_an_infeasible_target(self, files: Files) -> None:
        options = ["--set", 'sparsity.exclude=["conv.*"]', "--sparsity", "0.995"]
        told(files.prune(*options), 2, "cannot be reached", "at most")

    def test_excludes_leave_nothing(self, files: Files) -> None:
        told(files.prune("--set", 'sparsity.exclude=["*"]'), 2, "no tensor is left")

    def test_a_pattern_that_fits_nothing(self, files: Files) -> None:
        told(files.prune("--pattern", "1:7"), 2, "1:7", "conv.weight")


class TestOutput:
    def test_the_model_itself(self, files: Files) -> None:
        before = files.model.read_bytes()
        files.output = files.model
        told(files.prune(), 2, "overwrite the dense model")
        assert files.model.read_bytes() == before

    def test_beside_the_model(self, files: Files) -> None:
        files.output = files.model.with_name("beside.onnx")
        files.prune().expect(0)

    def test_no_such_folder(self, files: Files, tmp_path: Path) -> None:
        """One is made where that is possible."""
        outcome = files.command(
            "prune", files.model, "-o", files.data / "p.onnx", "--data", files.data
        )
        told(outcome, 2, "cannot be written")
        files.output = tmp_path / "no" / "p.onnx"
        files.prune().expect(0)
        assert files.output.is_file()

    @pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere"
    )
    def test_a_read_only_folder(self, files: Files) -> None:
        files.output.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
        told(files.prune(), 2, "cannot be written")
        files.output.parent.chmod(stat.S_IRWXU)

    def test_a_full_disk_leaves_no_half_file(
        self, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        files.prune().expect(0)
        before = files.output.read_bytes()
        shutil.rmtree(files.output.with_suffix(".run"))
        monkeypatch.setattr(os, "fsync", full)
        outcome = files.command(
            "prune", files.model, "-o", files.output, "--data", files.data, *files.options
        )
        told(outcome, 2, "No space left on device")
        assert files.output.read_bytes() == before
        assert not list(files.output.parent.rglob("*.tmp"))
