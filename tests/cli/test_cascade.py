"""`onnxprune cascade`: what it prints, writes, refuses, and how it goes on."""

import json
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
