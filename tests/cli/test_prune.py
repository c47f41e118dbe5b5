"""`onnxprune prune`: what it prints, writes, refuses, and how it is interrupted."""

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.export import verify
from tests.forks import Fork, ForkServer

from .conftest import Command

KEYS = {"output", "run_dir", "method", "sparsity", "validation"}


@pytest.fixture
def base(classifier: Path, training_data: Path, quick: list[str], tmp_path: Path) -> list[object]:
    """A whole command line, without evaluation data."""
    output = tmp_path / "out" / "pruned.onnx"
    output.parent.mkdir()
    return ["prune", classifier, "-o", output, "--data", training_data, *quick]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "pruned.onnx"


def test_json_stands_alone(command: Command, base: list[object], output: Path) -> None:
    outcome = command(*base, "--json").expect(0)
    results = outcome.json
    assert results.keys() >= KEYS
    assert results["output"] == str(output)
    assert results["run_dir"] == str(output.with_suffix(".run"))
    assert results["method"] == "cascade-gmp"
    assert results["sparsity"] == 199 / 248
    assert results["overlap_with_one_shot"]["expected"] < 1
    assert 0 < results["overlap_with_one_shot"]["jaccard"] <= 1
    assert results["budget"]["epochs"] == 1
    assert results["validation"]["dense"].keys() <= results["validation"]["pruned"].keys()
    assert "top1" in results["validation"]["pruned"]
    assert "held out" in outcome.err
    assert "\r" not in outcome.err
    assert "\x1b" not in outcome.err
    assert verify(onnx.load(output)).true


def test_text(command: Command, base: list[object], output: Path) -> None:
    settings = ["--set", "validate.latency=true", "--set", "validate.latency_seconds=0.3"]
    outcome = command(*base, *settings).expect(0)
    for word in (
        "top1",
        "agreement",
        "sparsity",
        "80.2419 %",
        "file size",
        "latency",
        "budget: 1 epochs",
        "report:",
    ):
        assert word in outcome.out, word
    assert "16 samples" in outcome.out
    assert "held out" in outcome.err + outcome.out
    assert "train …" in outcome.err


def test_options_override_the_recipe(command: Command, base: list[object], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[sparsity]\ntarget = 0.3\nmethod = 'random'\n[finetune]\nseed = 4\n")
    results = command(*base, "--json", "--recipe", recipe).expect(0).json
    assert (results["target_sparsity"], results["method"], results["seed"]) == (0.3, "random", 4)
    options = ["--sparsity", 0.5, "--method", "one-shot", "--seed", 5, "--epochs", 2]
    results = command(*base, "--json", "--recipe", recipe, *options).expect(0).json
    assert (results["target_sparsity"], results["method"], results["seed"]) == (0.5, "one-shot", 5)
    assert results["recipe"]["finetune"]["epochs"] == 2
    results = command(*base, "--json", "--set", "sparsity.target=0.25").expect(0).json
    assert results["sparsity"] == 62 / 248


def test_pattern_and_run_dir(
    command: Command, base: list[object], output: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "deep" / "run"
    results = command(*base, "--json", "--pattern", "2:4", "--run-dir", run_dir).expect(0).json
    assert results["pattern"] == "2:4"
    assert results["run_dir"] == str(run_dir)
    assert (run_dir / "report.html").is_file()
    assert not output.with_suffix(".run").exists()


def test_blocks_that_are_chosen_before(command: Command, base: list[object], output: Path) -> None:
    """216 + 32 weights, of which 4 outputs each make a block."""
    options = ["--pattern", "block:4x1", "--set", "sparsity.pattern_choice='before'"]
    results = command(*base, "--json", *options).expect(0).json
    assert (results["pattern"], results["sparsity"]) == ("block:4x1", 199 / 248)
    assert results["recipe"]["sparsity"]["pattern_choice"] == "before"
    found = command("inspect", output, "--json").expect(0).json
    assert found["metadata_true"] is True
    patterns = {t["name"]: t["pattern"] for t in found["tensors"] if t["prunable"]}
    assert patterns["conv.weight"] == "block:4x1"
    assert command(*base, "--pattern", "block:1x1").expect(2)


class TestDryRun:
    def test_writes_nothing_and_tells_the_plan(
        self, command: Command, base: list[object], tmp_path: Path
    ) -> None:
        before = set(tmp_path.rglob("*"))
        text = command(*base, "--dry-run").expect(0).out
        assert set(tmp_path.rglob("*")) == before
        for word in ("conv.weight", "fc.weight", "199 of 248", "Schedule", "memory:", "time:"):
            assert word in text, word

    def test_json(self, command: Command, base: list[object], tmp_path: Path) -> None:
        before = set(tmp_path.rglob("*"))
        outcome = command(*base, "--dry-run", "--json").expect(0)
        assert set(tmp_path.rglob("*")) == before
        plan = outcome.json
        assert plan["target_zeros"] == 199
        assert [tensor["name"] for tensor in plan["tensors"]] == ["conv.weight", "fc.weight"]
        assert plan["schedule"][-1]["zeros"] == 199
        assert plan["estimate"]["total_s"] > 0
        assert sum(plan["estimate"]["memory_bytes"].values()) > 0
        assert plan["data"]["eval"]["held_out"] is True

    def test_finds_the_same_mistakes(self, command: Command, base: list[object]) -> None:
        command(*base, "--dry-run", "--sparsity", 0.999).expect(2)


class TestInterrupts:
    def start(self, forks: ForkServer, arguments: list[object], output: Path) -> Fork:
        """A process that has begun to train."""
        child = forks.start([*arguments, "--json"])
        log = output.with_suffix(".run") / "metrics.jsonl"
        deadline = time.monotonic() + 90
        while not (log.is_file() and len(log.read_bytes()) > 1000):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return child

    def test_ctrl_c_stops_after_the_step_and_resume_gives_the_same_file(
        self, forks: ForkServer, command: Command, base: list[object], output: Path
    ) -> None:
        arguments = [*base, "--epochs", 60]
        child = self.start(forks, arguments, output)
        child.send(signal.SIGINT)
        ended = child.wait()
        assert ended.code == 5, ended.errors
        assert ended.output == ""
        assert "--resume" in ended.errors
        assert "Traceback" not in ended.errors
        assert not output.exists()
        run_dir = output.with_suffix(".run")
        assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"
        assert "--resume" in command(*arguments).expect(2).err
        results = command(*arguments, "--resume", "--json").expect(0).json
        assert any("resumed after step" in note for note in results["notes"])
        whole = output.with_name("whole.onnx")
        command(*[whole if part == output else part for part in arguments]).expect(0)
        assert output.read_bytes() == whole.read_bytes()
        entries = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        trained = [entry["step"] for entry in entries if entry["kind"] == "train"]
        assert trained == list(range(1, 241))

    def test_a_service_manager_s_signal_does_the_same(
        self, forks: ForkServer, base: list[object], output: Path
    ) -> None:
        child = self.start(forks, [*base, "--epochs", 1000], output)
        child.send(signal.SIGTERM)
        ended = child.wait()
        assert ended.code == 5, ended.errors
        assert "--resume" in ended.errors

    def test_a_second_signal_stops_at_once(
        self, forks: ForkServer, base: list[object], output: Path
    ) -> None:
        child = self.start(forks, [*base, "--epochs", 1000], output)
        child.send(signal.SIGINT)
        child.send(signal.SIGTERM)
        ended = child.wait()
        assert ended.code == 5, ended.errors
        assert ended.output == ""
        assert "Traceback" not in ended.errors
        run_json = output.with_suffix(".run") / "run.json"
        assert json.loads(run_json.read_text())["status"] == "interrupted"
        assert not output.exists()

    def test_resume_on_an_empty_folder_starts(
        self, command: Command, base: list[object], output: Path
    ) -> None:
        output.with_suffix(".run").mkdir()
        command(*base, "--resume").expect(0)
        assert output.is_file()

    def test_resume_with_another_recipe_is_2(
        self, command: Command, base: list[object], output: Path
    ) -> None:
        command(*base).expect(0)
        outcome = command(*base, "--resume", "--sparsity", 0.5).expect(2)
        assert "another model, recipe or data" in outcome.err


def test_needs_its_packages(
    process: Command, base: list[object], output: Path, without_torch: dict[str, str]
) -> None:
    outcome = process(*base, "--json", **without_torch)
    assert outcome.code == 2
    assert "onnxprune[train]" in outcome.err
    assert "Traceback" not in outcome.err
    assert not output.exists()


def test_everything_else_works_without_torch(
    process: Command,
    command: Command,
    base: list[object],
    classifier: Path,
    evaluation_data: Path,
    output: Path,
    without_torch: dict[str, str],
) -> None:
    command(*base).expect(0)
    page = output.with_name("page.html")
    for arguments in (
        ["inspect", output],
        ["evaluate", classifier, output, "--data", evaluation_data],
        ["bench", classifier, output, "--rounds", 5, "--seconds", 1],
        ["report", output.with_suffix(".run"), "-o", page],
        ["init", classifier],
        ["doctor"],
    ):
        outcome = process(*arguments, "--json", **without_torch).expect(0)
        assert outcome.json
    assert page.is_file()


def test_as_a_process(process: Command, base: list[object], output: Path) -> None:
    """No library prints to standard output, and nothing draws bars without a terminal."""
    outcome = process(*base, "--json", PYTHONWARNINGS="error").expect(0)
    assert outcome.json["output"] == str(output)
    assert "\r" not in outcome.err
    assert "Warning" not in outcome.err


def test_python_data_need_permission(
    command: Command,
    base: list[object],
    tmp_path: Path,
    training_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mydata.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        f"    arrays = np.load({str(training_data)!r})\n"
        "    return [({'x': x}, int(y)) for x, y in zip(arrays['x'], arrays['label'])]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = [part if part != training_data else "python:mydata:samples" for part in base]
    refused = command(*arguments).expect(2)
    assert "--allow-python" in refused.err
    assert "mydata" not in sys.modules
    command(*arguments, "--allow-python").expect(0)
    assert sys.modules.pop("mydata").__file__ == str(tmp_path / "mydata.py")


def test_unlabelled_data_distil(command: Command, base: list[object], training_data: Path) -> None:
    x = np.load(training_data)["x"]
    np.savez(training_data, x=x)
    results = command(*base, "--json").expect(0).json
    assert "top1" not in results["validation"]["pruned"]
    assert "agreement" in results["validation"]["pruned"]
