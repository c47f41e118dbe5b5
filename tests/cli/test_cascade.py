"""`onnxprune cascade`: what it prints, writes, refuses, and how it goes on."""

import json
import re
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.forks import ForkServer

from .conftest import Command


@pytest.fixture
def base(classifier: Path, training_data: Path, quick: list[str]) -> list[object]:
    return ["cascade", classifier, "--data", training_data, "--seeds", 2, *quick]


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs from run to run; the machine's load is one of these."""
    arms = [{k: v for k, v in arm.items() if k != "seconds"} for arm in result["arms"]]
    return {**result, "arms": arms, "environment": None}


def test_json(command: Command, base: list[object]) -> None:
    outcome = command(*base, "--json").expect(0)
    assert "time: about" in outcome.err, "how long it takes is said beforehand, in every form"
    result = outcome.json
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


def test_finished_arms_count_as_done(command: Command, base: list[object], tmp_path: Path) -> None:
    run_dir = tmp_path / "probe"
    command(*base, "--run-dir", run_dir).expect(0)
    (run_dir / "arms" / "1-random.json").unlink()
    outcome = command(*base, "--dry-run", "--json", "--run-dir", run_dir).expect(0)
    cost = outcome.json["estimate"]
    assert cost["total_s"] == pytest.approx(cost["train_s"])
    again = command(*base, "--run-dir", run_dir).expect(0).err
    assert "5 of 6 arms were finished before" in again
    assert "arm 6 of 6: random, seed 1" in again
    assert "arm 1 of 6" not in again


def test_arms_for_another_target_are_run_again(
    command: Command, base: list[object], tmp_path: Path
) -> None:
    """Kept sets are compared at the target sparsity, so an arm's result depends on it."""
    run_dir = tmp_path / "probe"
    options = ["--json", "--run-dir", run_dir, "--set"]
    high = command(*base, *options, "sparsity.target=0.8").expect(0).json
    low = command(*base, *options, "sparsity.target=0.1").expect(0).json
    assert (high["target_sparsity"], low["target_sparsity"]) == (0.8, 0.1)
    for arm in low["arms"]:
        # At 10 % even random sets have more than four fifths in common.
        assert arm["overlap_with_one_shot"]["expected"] > 0.8


def plots_of(page: Path) -> dict[str, Any]:
    """The plots that a page holds, by key."""
    text = page.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="plots">(.*?)</script>', text)
    return {plot["key"]: plot["figure"] for plot in json.loads(data)}


def test_the_page_holds_the_numbers_of_the_probe(
    command: Command, base: list[object], tmp_path: Path
) -> None:
    run_dir = tmp_path / "probe"
    outcome = command(*base, "--run-dir", run_dir).expect(0)
    page = run_dir / "cascade.html"
    assert str(page) in outcome.out
    result = json.loads((run_dir / "probe.json").read_text(encoding="utf-8"))
    plots = plots_of(page)
    seeds = [
        value
        for gain in result["gains"].values()
        for value in (*gain["values"], *gain["relative"]["values"])
    ]
    assert plots["gain"]["data"][1]["x"] == pytest.approx(seeds, rel=1e-5)
    for number, score in enumerate(("magnitude", "random")):
        lines = [t for t in plots[f"curve-{number}"]["data"] if t.get("showlegend") and t["x"][0]]
        treated, control = lines[0], lines[1]
        assert treated["x"] == [point["step"] for point in result["curves"][score]]
        net = [a - b for a, b in zip(treated["y"], control["y"], strict=True)]
        expected = [point["net_shed"] for point in result["curves"][score]]
        assert net == pytest.approx(expected, abs=1e-3)
    overlap = plots["overlap"]["data"][0]["x"]
    assert overlap == pytest.approx(list(result["overlap_with_one_shot"].values()), rel=1e-5)
    text = page.read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!#)', markup) == []
    assert "http" not in markup.replace("http-equiv", "")
    assert f"gain {result['gain']['mean']:+.4f}".replace("-", "\u2212") in text
    assert "[finetune]" in text
    assert str(tmp_path) not in text


def test_report_writes_the_page_again(
    command: Command,
    process: Command,
    without_torch: dict[str, str],
    base: list[object],
    tmp_path: Path,
) -> None:
    run_dir, copy = tmp_path / "probe", tmp_path / "copy.html"
    command(*base, "--json", "--run-dir", run_dir).expect(0)
    page = run_dir / "cascade.html"
    written = page.read_bytes()
    page.write_text("")
    facts = command("report", run_dir, "--json").expect(0).json
    assert facts == {"output": str(page), "size_bytes": len(written)}
    assert page.read_bytes() == written
    process("report", run_dir, "-o", copy, **without_torch).expect(0)
    assert copy.read_bytes() == written
    # The page is no stranger in the folder: the same call goes on there.
    command(*base, "--json", "--run-dir", run_dir).expect(0)


def test_an_unfinished_probe_has_no_page_yet(
    command: Command, base: list[object], tmp_path: Path
) -> None:
    run_dir = tmp_path / "probe"
    command(*base, "--json", "--run-dir", run_dir).expect(0)
    for name in ("probe.json", "cascade.html"):
        (run_dir / name).unlink()
    outcome = command("report", run_dir).expect(2)
    assert "has not finished" in outcome.err
    assert "6 finished arms" in outcome.err
    assert not (run_dir / "cascade.html").exists()


def test_no_folder_without_run_dir(
    command: Command,
    base: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(tmp_path.iterdir())
    command(*base).expect(0)
    assert sorted(tmp_path.iterdir()) == before


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
        (["--set", 'cascade.scores=["random", "random"]'], 2, ["scores", "named once"]),
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
    forks: ForkServer, command: Command, base: list[object], tmp_path: Path
) -> None:
    """As when power fails: no signal is handled, nothing is cleaned up."""
    undisturbed = command(*base, "--json", "--run-dir", tmp_path / "whole").expect(0).json
    run_dir = tmp_path / "probe"
    running = forks.start([*base, "--json", "--run-dir", run_dir])
    deadline = time.monotonic() + 60
    while not (arms := list(run_dir.rglob("0-magnitude.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.send(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    written = {file: file.stat().st_mtime_ns for file in arms}
    assert not (run_dir / "probe.json").exists()
    result = command(*base, "--json", "--run-dir", run_dir).expect(0).json
    assert without_seconds(result) == without_seconds(undisturbed)
    assert {file: file.stat().st_mtime_ns for file in arms} == written
