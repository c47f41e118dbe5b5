"""`onnxprune cascade`: what it prints, writes, refuses, and how it goes on."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from .conftest import Command


@pytest.fixture
def base(classifier: Path, training_data: Path, quick: list[str]) -> list[object]:
    return ["cascade", classifier, "--data", training_data, "--seeds", 2, *quick]


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs from run to run; the machine's load is one of these."""
    arms = [{k: v for k, v in arm.items() if k != "seconds"} for arm in result["arms"]]
    return {**result, "arms": arms, "environment": None}


def test_json(command: Command, base: list[object]) -> None:
    result = command(*base, "--json").expect(0).json
    assert result.keys() >= {"verdict", "gain", "decay_horizon_steps", "arms"}
    assert result["gain"].keys() >= {"mean", "low", "high"}
    named = [(arm["name"], arm["seed"]) for arm in result["arms"]]
    assert named == [(name, seed) for seed in (0, 1) for name in ("magnitude", "random", "control")]
    for arm in result["arms"]:
        assert arm["shed"][-1]["step"] == arm["steps"] == result["steps"]
        assert (arm["pruned"] == 0) == (arm["name"] == "control")


def test_same_seeds_same_result(command: Command, base: list[object]) -> None:
    first, second = (command(*base, "--json").expect(0).json for _ in range(2))
    assert without_seconds(first) == without_seconds(second)


def test_dry_run_writes_nothing(command: Command, base: list[object], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    outcome = command(*base, "--dry-run", "--run-dir", tmp_path / "probe").expect(0)
    assert sorted(tmp_path.rglob("*")) == before
    assert "time: about" in outcome.out + outcome.err
    assert "decay horizon" in outcome.out + outcome.err


def test_missing_arm_is_run_again(command: Command, base: list[object], tmp_path: Path) -> None:
    run_dir = tmp_path / "probe"
    first = command(*base, "--json", "--run-dir", run_dir).expect(0).json
    lost = next(run_dir.rglob("1-random.json"))
    kept = next(run_dir.rglob("0-control.json"))
    written = kept.stat().st_mtime_ns
    lost.unlink()
    second = command(*base, "--json", "--run-dir", run_dir).expect(0).json
    assert lost.exists()
    assert kept.stat().st_mtime_ns == written
    assert without_seconds(second) == without_seconds(first)
    written_result = json.loads((run_dir / "probe.json").read_text())
    assert without_seconds(written_result) == without_seconds(second)


def test_refuses_to_train_for_nothing(command: Command, base: list[object]) -> None:
    assert "epochs" in command(*base, "--epochs", 0).expect(2).err


def test_refuses_weights_that_are_zero_already(
    command: Command, base: list[object], classifier: Path
) -> None:
    proto = onnx.load(classifier)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim > 1:
            array.reshape(-1)[::2] = 0
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    onnx.save(proto, classifier)
    assert "[cascade] prune" in command(*base, "--json").expect(2).err


def test_nothing_is_left_without_a_run_directory(
    command: Command, base: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it was started, nor beside model and data, nor among temporary files."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = sorted(tmp_path.rglob("*"))
    command(*base, "--seeds", 1, "--json").expect(0)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("epochs", "complete"), [(1, False), (60, True)])
def test_says_beforehand_whether_a_cascade_can_show(
    command: Command, base: list[object], epochs: int, complete: bool
) -> None:
    """ln(100) / (0.05 * 0.1 / (1 - 0.9)) = 92.1 steps at least, and 5 in an epoch."""
    rates = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "warmup": 0.0}
    options = [f"finetune.{key}={value}" for key, value in rates.items()]
    options += ['finetune.lr_schedule="constant"', 'finetune.optimizer="sgd"']
    settings = [part for option in options for part in ("--set", option)]
    outcome = command(*base, *settings, "--epochs", epochs, "--dry-run", "--json").expect(0)
    assert outcome.json["decay_horizon_steps"] == 93
    assert (outcome.json["warning"] is None) == complete
    assert ("cannot show a complete cascade" in outcome.err) != complete


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--set", "cascade.prune=1.5"], 2, ["cascade.prune", "1.5"]),
        (["--set", "cascade.pruned=0.5"], 2, ["pruned"]),
        (["--set", "cascade.tau=0"], 2, ["cascade.tau"]),
        (["--set", 'cascade.scores=["size"]'], 2, ["scores", "magnitude"]),
        (["--set", 'sparsity.include=["no.such.tensor"]'], 2, ["no.such.tensor", "inspect"]),
        (["--recipe", "missing.toml"], 2, ["missing.toml"]),
        (["--data", "missing.npz"], 4, ["missing.npz"]),
        (["--device", "tpu"], 2, ["device", "tpu"]),
        (["--seeds", 0], 2, ["seeds"]),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, list) else None,
)
def test_bad_options_are_told(
    command: Command,
    base: list[object],
    tmp_path: Path,
    options: list[object],
    code: int,
    words: list[str],
) -> None:
    before = sorted(tmp_path.rglob("*"))
    outcome = command(*base, *options, "--json").expect(code)
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err
    assert "internal error" not in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("spoilt", "code"), [("model", 3), ("data", 4), ("labels", 4), ("no model", 3)]
)
def test_bad_files_are_told(
    command: Command,
    base: list[object],
    classifier: Path,
    training_data: Path,
    spoilt: str,
    code: int,
) -> None:
    file = classifier if "model" in spoilt else training_data
    if spoilt == "no model":
        file.unlink()
    elif spoilt == "labels":
        arrays = dict(np.load(file))
        np.savez(file, x=arrays["x"], label=arrays["label"] + 7)
    else:
        file.write_bytes(file.read_bytes()[:700])
    outcome = command(*base, "--json").expect(code)
    assert outcome.out == ""
    assert str(file) in outcome.err
    assert "internal error" not in outcome.err


def test_a_killed_probe_goes_on_with_its_finished_arms(
    command: Command, base: list[object], tmp_path: Path
) -> None:
    """As when power fails: no signal is handled, nothing is cleaned up."""
    undisturbed = command(*base, "--json", "--run-dir", tmp_path / "whole").expect(0).json
    run_dir = tmp_path / "probe"
    arguments = [*map(str, base), "--json", "--run-dir", str(run_dir)]
    running = subprocess.Popen(
        [sys.executable, "-m", "onnxprune", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (arms := list(run_dir.rglob("0-magnitude.json"))):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.kill()
    running.wait()
    written = {file: file.stat().st_mtime_ns for file in arms}
    assert not (run_dir / "probe.json").exists()
    result = command(*base, "--json", "--run-dir", run_dir).expect(0).json
    assert without_seconds(result) == without_seconds(undisturbed)
    assert {file: file.stat().st_mtime_ns for file in arms} == written
