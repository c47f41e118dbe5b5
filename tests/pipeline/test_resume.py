"""Interrupting the main job, and going on: the file must not know that it happened."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.errors import CheckpointError, Interrupted, UsageError
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe

from .helpers import dropout_classifier, log, mlp, quick, save, stop_after

pytestmark = [pytest.mark.usefixtures("no_report"), pytest.mark.xdist_group("resume")]
STEPS = 18


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    return save(tmp_path, *dropout_classifier())


def settings(samples: Path, **tables: dict[str, Any]) -> Recipe:
    """18 steps in 3 epochs, a pruning event on most of them, with all kinds of random state."""
    finetune = {"epochs": 3, "batch_size": 8, "evaluations": 4, "device": "cpu", "threads": 1}
    tables["finetune"] = finetune | tables.get("finetune", {})
    return quick(samples, samples, **tables)


def interrupt(
    model: Path, output: Path, recipe: Recipe, step: int, *, resume: bool = False
) -> None:
    on_progress, stop = stop_after(step)
    with pytest.raises(Interrupted, match="--resume"):
        prune(model, output, recipe, resume=resume, on_progress=on_progress, stop=stop)
    assert not output.exists()
    status = json.loads((output.with_suffix(".run") / "run.json").read_text())
    assert status["status"] == "interrupted"


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[bytes, list[dict[str, Any]]]:
    """The file and the log of a run that nobody disturbed."""
    model, samples, output = save(tmp_path_factory.mktemp("whole"), *dropout_classifier())
    prune(model, output, settings(samples))
    return output.read_bytes(), comparable(output.with_suffix(".run"))


def comparable(run_dir: Path) -> list[dict[str, Any]]:
    """A log without the entries' speed."""
    return [{k: v for k, v in entry.items() if k != "images_per_s"} for entry in log(run_dir)]


@pytest.mark.parametrize("steps", [[1], [7], [STEPS - 1], [3, 4, 11]], ids=str)
def test_a_resumed_run_gives_the_same_file_and_the_same_log(
    files: tuple[Path, Path, Path],
    uninterrupted: tuple[bytes, list[dict[str, Any]]],
    steps: list[int],
) -> None:
    model, samples, output = files
    for number, step in enumerate(steps):
        interrupt(model, output, settings(samples), step, resume=number > 0)
    results = prune(model, output, settings(samples), resume=True)
    assert output.read_bytes() == uninterrupted[0]
    assert comparable(output.with_suffix(".run")) == uninterrupted[1]
    assert any(f"resumed after step {steps[-1]} of {STEPS}" in note for note in results["notes"])
    steps_logged = [e["step"] for e in log(output.with_suffix(".run")) if e["kind"] == "train"]
    assert steps_logged == list(range(1, STEPS + 1))


def test_interrupted_after_training(files: tuple[Path, Path, Path]) -> None:
    """Ctrl-C during validation costs no training, and the log stays whole."""
    model, samples, output = files
    stages: list[str] = []

    def on_progress(entry: dict[str, Any]) -> None:
        if entry["kind"] == "stage":
            stages.append(entry["name"])

    recipe = settings(samples, schedule={"end": 1.0})
    whole = output.with_name("whole2.onnx")
    prune(model, whole, recipe)
    with pytest.raises(Interrupted):
        prune(model, output, recipe, on_progress=on_progress, stop=lambda: "recalibrate" in stages)
    results = prune(model, output, recipe, resume=True)
    assert any(f"after step {STEPS} of {STEPS}" in note for note in results["notes"])
    assert output.read_bytes() == whole.read_bytes()
    assert comparable(output.with_suffix(".run")) == comparable(whole.with_suffix(".run"))


def test_killed_without_a_checkpoint(
    files: tuple[Path, Path, Path], uninterrupted: tuple[bytes, list[dict[str, Any]]]
) -> None:
    """A process that dies leaves a log, half a line of it, and no checkpoint."""
    model, samples, output = files
    run_dir = output.with_suffix(".run")
    interrupt(model, output, settings(samples), 5)
    shutil.rmtree(run_dir / "checkpoints")
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')
    prune(model, output, settings(samples), resume=True)
    assert output.read_bytes() == uninterrupted[0]
    assert comparable(run_dir) == uninterrupted[1]


def test_killed_after_a_checkpoint(
    files: tuple[Path, Path, Path], uninterrupted: tuple[bytes, list[dict[str, Any]]]
) -> None:
    """Steps that were logged after the last checkpoint are logged once in the end."""
    model, samples, output = files
    run_dir = output.with_suffix(".run")
    interrupt(model, output, settings(samples), 5)
    entry = {"kind": "train", "step": 6, "loss": 1.0}
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(entry) + "\n" + '{"kind": "tr')
    prune(model, output, settings(samples), resume=True)
    assert output.read_bytes() == uninterrupted[0]
    assert comparable(run_dir) == uninterrupted[1]


def test_a_teacher_that_runs_in_each_step(files: tuple[Path, Path, Path]) -> None:
    """Where its outputs are too large to keep, the dense model must stay dense on resuming."""
    model, samples, output = files
    recipe = settings(samples, finetune={"cache_mb": 0})
    whole = output.with_name("whole.onnx")
    results = prune(model, whole, recipe)
    assert any("too large to keep" in note for note in results["notes"])
    assert not (whole.with_suffix(".run") / "teacher.npz").exists()
    interrupt(model, output, recipe, 9)
    prune(model, output, recipe, resume=True)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "empty"])
def test_resume_without_a_run_starts_one(files: tuple[Path, Path, Path], missing: bool) -> None:
    model, samples, output = files
    run_dir = output.with_suffix(".run")
    if not missing:
        run_dir.mkdir()
    results = prune(model, output, settings(samples), resume=True)
    assert output.is_file()
    assert not any("resumed" in note for note in results["notes"])


def test_resume_of_a_finished_run_gives_the_same_file(
    files: tuple[Path, Path, Path], uninterrupted: tuple[bytes, list[dict[str, Any]]]
) -> None:
    model, samples, output = files
    prune(model, output, settings(samples))
    output.unlink()
    prune(model, output, settings(samples), resume=True)
    assert output.read_bytes() == uninterrupted[0]
    assert comparable(output.with_suffix(".run")) == uninterrupted[1]


class TestDamage:
    def damage(self, folder: Path) -> None:
        file = folder / "state.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))

    def interrupted(self, files: tuple[Path, Path, Path]) -> tuple[Recipe, list[Path]]:
        model, samples, output = files
        recipe = settings(samples, finetune={"checkpoint_seconds": 0})
        interrupt(model, output, recipe, 7)
        checkpoints = sorted((output.with_suffix(".run") / "checkpoints").iterdir())
        assert [folder.name for folder in checkpoints] == ["step-00000006", "step-00000007"]
        return recipe, checkpoints

    def test_of_the_newest_checkpoint_costs_one_interval(
        self,
        files: tuple[Path, Path, Path],
        uninterrupted: tuple[bytes, list[dict[str, Any]]],
    ) -> None:
        model, _, output = files
        recipe, checkpoints = self.interrupted(files)
        self.damage(checkpoints[-1])
        results = prune(model, output, recipe, resume=True)
        assert any("step-00000007 is damaged" in note for note in results["notes"])
        assert any("resumed after step 6" in note for note in results["notes"])
        assert output.read_bytes() == uninterrupted[0]
        assert comparable(output.with_suffix(".run")) == uninterrupted[1]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"run_id": 1}'])
    def test_of_its_facts_too(self, files: tuple[Path, Path, Path], content: bytes) -> None:
        model, _, output = files
        recipe, checkpoints = self.interrupted(files)
        facts = json.loads((checkpoints[-1] / "state.json").read_text())
        if content == b'{"run_id": 1}':
            content = json.dumps({"run_id": facts["run_id"]}).encode()
        (checkpoints[-1] / "state.json").write_bytes(content)
        results = prune(model, output, recipe, resume=True)
        assert any("resumed after step 6" in note for note in results["notes"])

    def test_of_all_is_an_error(self, files: tuple[Path, Path, Path]) -> None:
        model, _, output = files
        recipe, checkpoints = self.interrupted(files)
        for folder in checkpoints:
            self.damage(folder)
        with pytest.raises(CheckpointError, match="none of the checkpoints"):
            prune(model, output, recipe, resume=True)
        assert not output.exists()

    def test_of_the_dense_outputs_costs_only_time(
        self,
        files: tuple[Path, Path, Path],
        uninterrupted: tuple[bytes, list[dict[str, Any]]],
    ) -> None:
        model, samples, output = files
        interrupt(model, output, settings(samples), 7)
        teacher = output.with_suffix(".run") / "teacher.npz"
        teacher.write_bytes(teacher.read_bytes()[:100])
        prune(model, output, settings(samples), resume=True)
        assert output.read_bytes() == uninterrupted[0]


class TestAnotherRun:
    """A run directory belongs to one model, recipe and data."""

    def test_another_recipe(self, files: tuple[Path, Path, Path]) -> None:
        model, samples, output = files
        interrupt(model, output, settings(samples), 3)
        with pytest.raises(CheckpointError, match="recipe"):
            prune(model, output, settings(samples, sparsity={"target": 0.7}), resume=True)

    def test_another_model(self, files: tuple[Path, Path, Path]) -> None:
        model, samples, output = files
        interrupt(model, output, settings(samples), 3)
        proto = onnx.load(model)
        proto.graph.initializer[0].raw_data = b"\0" * len(proto.graph.initializer[0].raw_data)
        onnx.save(proto, model)
        with pytest.raises(CheckpointError, match="source_sha256"):
            prune(model, output, settings(samples), resume=True)

    def test_other_data(self, files: tuple[Path, Path, Path]) -> None:
        model, samples, output = files
        interrupt(model, output, settings(samples), 3)
        arrays = dict(np.load(samples))
        arrays["x"][0, 0, 0, 0] += 1
        np.savez(samples, **arrays)
        with pytest.raises(CheckpointError, match="data_sha256"):
            prune(model, output, settings(samples), resume=True)

    def test_machine_choices_may_change(
        self,
        files: tuple[Path, Path, Path],
        uninterrupted: tuple[bytes, list[dict[str, Any]]],
    ) -> None:
        model, samples, output = files
        interrupt(model, output, settings(samples), 3)
        moved = samples.rename(samples.with_name("moved.npz"))
        recipe = settings(moved, finetune={"checkpoint_seconds": 0, "threads": 1})
        prune(model, output, recipe, resume=True)
        assert output.read_bytes() == uninterrupted[0]

    def test_nothing_is_lost_by_a_refusal(self, files: tuple[Path, Path, Path]) -> None:
        model, samples, output = files
        run_dir = output.with_suffix(".run")
        interrupt(model, output, settings(samples), 3)
        before = {file: file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}
        with pytest.raises(UsageError, match="unfinished run"):
            prune(model, output, settings(samples))
        with pytest.raises(CheckpointError):
            prune(model, output, settings(samples, finetune={"seed": 1}), resume=True)
        assert before == {file: file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}
        prune(model, output, settings(samples), resume=True)

    def test_a_folder_that_is_no_run(self, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
        model, samples, output = files
        folder = tmp_path / "photos"
        folder.mkdir()
        (folder / "holiday.jpg").write_bytes(b"precious")
        for resume in (False, True):
            with pytest.raises(UsageError, match="not a run"):
                prune(model, output, settings(samples), run_dir=folder, resume=resume)
        assert [file.name for file in folder.iterdir()] == ["holiday.jpg"]

    def test_a_finished_run_makes_room(self, tmp_path: Path) -> None:
        model, samples, output = save(tmp_path, *mlp())
        prune(model, output, quick(samples, samples))
        prune(model, output, quick(samples, samples, sparsity={"target": 0.5}))
        results = json.loads((output.with_suffix(".run") / "results.json").read_text())
        assert results["target_sparsity"] == 0.5
        logged = [entry["step"] for entry in log(output.with_suffix(".run")) if "lr" in entry]
        assert logged == [1]
