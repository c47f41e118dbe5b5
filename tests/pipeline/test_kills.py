"""Real runs that are killed: whatever the moment, the file must not know that it happened."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .helpers import dropout_classifier, log, quick, save

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.xdist_group("kills"),
]

STEPS = 30
KILLS = 10
KILLS_IN_WRITES = 3

SERVER = """
import json, os, resource, signal, sys
import torch._inductor.config
from onnxprune import pipeline
from onnxprune.errors import OnnxpruneError
from onnxprune.recipe import Recipe

write_report = pipeline.write_report


def run(job):
    def passed(moment):
        if job["file_bytes"] and moment == job["full_at"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"],) * 2)

    def on_progress(entry):
        passed(" ".join(str(entry[key]) for key in ("kind", "name", "step") if key in entry))

    def report(*arguments, **options):
        passed("report")
        if job["report"]:
            write_report(*arguments, **options)

    def audit(event, arguments):
        if event == "os.rename" and os.path.basename(arguments[1]) == job["dies_before"]:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    pipeline.write_report = report
    passed("start")
    recipe = Recipe.from_dict(job["recipe"])
    pipeline.prune(job["model"], job["output"], recipe, resume=True, on_progress=on_progress)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            run(json.loads(line))
            os._exit(0)
        except OnnxpruneError as error:
            print("error", json.dumps(str(error)), flush=True)
            os._exit(error.exit_code)
    print("process", child, flush=True)
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a process for every run, so that a killed one does not cost the import of PyTorch."""


class Runs:
    """Runs of the main job in processes of their own."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self.server = server
        self.error = ""

    def start(
        self,
        folder: Path,
        *,
        file_bytes: int = 0,
        full_at: str = "start",
        checkpoint_seconds: float = 0,
        report: bool = False,
        dies_before: str | None = None,
    ) -> int:
        """Start or continue the run in a folder.

        Args:
            folder: Holds the model and the data.
            file_bytes: No file may grow beyond this, as on a full disk; 0 for any size.
            full_at: The moment from which this holds: `start`, `report`, or a progress entry such
                as `stage export` or `train 7`.
            checkpoint_seconds: As in the recipe.
            report: Whether the page is written.
            dies_before: Name of a file; the process is killed before it is renamed into its place.

        Returns:
            The process.
        """
        recipe = quick(
            folder / "data.npz",
            folder / "data.npz",
            finetune={
                **{"epochs": STEPS / 6, "batch_size": 8, "evaluations": 4, "ema": 0.5},
                **{"device": "cpu", "threads": 1, "optimizer": "adamw"},
                "checkpoint_seconds": checkpoint_seconds,
            },
            schedule={"end": 1.0},
        )
        job = {
            "model": str(folder / "dense.onnx"),
            "output": str(folder / "pruned.onnx"),
            "recipe": recipe.to_dict(),
            "file_bytes": file_bytes,
            "full_at": full_at,
            "report": report,
            "dies_before": dies_before,
        }
        self.error = ""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return self._number("process")

    def wait(self) -> int:
        """Exit code of the process that was started last; negative where a signal ended it.

        What error it met is kept in `error`.
        """
        return self._number("exit")

    def _number(self, kind: str) -> int:
        assert self.server.stdout is not None
        word, value = self.server.stdout.readline().split(maxsplit=1)
        if word == "error":
            self.error = json.loads(value)
            return self._number(kind)
        assert word == kind
        return int(value)


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield Runs(server)
    finally:
        server.kill()
        server.wait()
        for pipe in (server.stdin, server.stdout):
            assert pipe is not None
            pipe.close()


def folder_of(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    save(folder, *dropout_classifier())
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    runs: Runs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, list[dict[str, Any]], float]:
    """File and log of a run that nobody killed, and the seconds that it took."""
    folder = folder_of(tmp_path_factory.mktemp("whole"), "run")
    runs.start(folder)
    started = time.monotonic()
    assert runs.wait() == 0
    seconds = time.monotonic() - started
    return (folder / "pruned.onnx").read_bytes(), comparable(folder), seconds


def comparable(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k != "images_per_s"} for e in log(folder / "pruned.run")]


def finish(
    runs: Runs, folder: Path, undisturbed: tuple[bytes, list[dict[str, Any]], float]
) -> None:
    """Continue a run to its end, and compare it with the undisturbed one."""
    runs.start(folder)
    assert runs.wait() == 0
    assert (folder / "pruned.onnx").read_bytes() == undisturbed[0]
    assert comparable(folder) == undisturbed[1]
    assert len(list((folder / "pruned.run" / "checkpoints").iterdir())) == 2
    leftovers = [p for p in folder.rglob(".*") if "checkpoints" in p.parts]
    assert not leftovers


def test_killed_at_random_moments(
    runs: Runs, undisturbed: tuple[bytes, list[dict[str, Any]], float], tmp_path: Path
) -> None:
    """The moments lie anywhere: before the first step, in training, in export and validation."""
    moments = random.Random(0)
    kills, number = 0, 0
    folder = folder_of(tmp_path, "run0")
    while kills < KILLS:
        process = runs.start(folder)
        time.sleep(moments.uniform(0.05, 0.7) * undisturbed[2])
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        if runs.wait() == -signal.SIGKILL:
            kills += 1
        else:  # it was faster: this run is over, and the kills go on with another
            finish(runs, folder, undisturbed)
            number += 1
            folder = folder_of(tmp_path, f"run{number}")
    finish(runs, folder, undisturbed)


def test_killed_while_it_writes_a_checkpoint(
    runs: Runs, undisturbed: tuple[bytes, list[dict[str, Any]], float], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, "run")
    checkpoints = folder / "pruned.run" / "checkpoints"
    cut_short = 0
    for kill in range(KILLS_IN_WRITES):
        process = runs.start(folder)
        seen: set[str] = set()
        deadline = time.monotonic() + 60
        while len(seen) <= 2 * kill and time.monotonic() < deadline:
            seen.update(partial.name for partial in checkpoints.glob(".step-*.tmp"))
        os.kill(process, signal.SIGKILL)
        assert runs.wait() == -signal.SIGKILL
        cut_short += bool(list(checkpoints.glob(".step-*.tmp")))
    assert cut_short, "no kill hit a checkpoint"
    finish(runs, folder, undisturbed)


def test_killed_while_it_starts(
    runs: Runs, undisturbed: tuple[bytes, list[dict[str, Any]], float], tmp_path: Path
) -> None:
    """Before each of its first files is in its place, up to the first checkpoint."""
    folder = folder_of(tmp_path, "run")
    for name in ("run.json", "recipe.toml", "plan.json", "teacher.npz", "step-00000000"):
        runs.start(folder, dies_before=name)
        assert runs.wait() == -signal.SIGKILL
        assert not list(folder.rglob(name))
        assert list(folder.rglob(f".{name}.*"))
    finish(runs, folder, undisturbed)


def status(folder: Path) -> str:
    found: str = json.loads((folder / "pruned.run" / "run.json").read_text())["status"]
    return found


def test_a_full_disk(
    runs: Runs,
    undisturbed: tuple[bytes, list[dict[str, Any]], float],
    tmp_path: Path,
) -> None:
    """Files may not grow: the first checkpoint fails, and the run goes on when there is room."""
    folder = folder_of(tmp_path, "run")
    runs.start(folder, file_bytes=2048)
    assert runs.wait() == 2
    assert not list((folder / "pruned.run" / "checkpoints").iterdir())
    assert status(folder) == "failed"
    finish(runs, folder, undisturbed)


@pytest.mark.parametrize(
    ("full_at", "unwritten"),
    [
        ("train 7", "metrics.jsonl"),
        ("stage export", "pruned.onnx"),
        ("stage validate", "results.json"),
    ],
)
def test_a_disk_that_fills_up(
    runs: Runs,
    undisturbed: tuple[bytes, list[dict[str, Any]], float],
    tmp_path: Path,
    full_at: str,
    unwritten: str,
) -> None:
    """What cannot be written is named, and the run goes on when there is room."""
    folder = folder_of(tmp_path, "run")
    runs.start(folder, file_bytes=64, full_at=full_at, checkpoint_seconds=3600)
    assert runs.wait() == 2
    assert f"{unwritten}\n" in runs.error
    assert "free some space" in runs.error
    assert status(folder) == "running", "there is no room for another one"
    finish(runs, folder, undisturbed)


@pytest.mark.parametrize(
    ("file_bytes", "noted"), [(500_000, "failed"), (64, "running")], ids=["large", "any"]
)
def test_a_disk_too_full_for_the_report(
    runs: Runs,
    undisturbed: tuple[bytes, list[dict[str, Any]], float],
    tmp_path: Path,
    file_bytes: int,
    noted: str,
) -> None:
    """The run is not called finished until its report is there, though the model is complete."""
    folder = folder_of(tmp_path, "run")
    page = folder / "pruned.run" / "report.html"
    runs.start(folder, file_bytes=file_bytes, full_at="report", report=True)
    assert runs.wait() == 2
    assert "the report cannot be written" in runs.error
    assert "--resume" in runs.error
    assert (status(folder), page.exists()) == (noted, False)
    assert (folder / "pruned.onnx").read_bytes() == undisturbed[0]
    runs.start(folder, report=True)
    assert runs.wait() == 0
    assert status(folder) == "finished"
    assert 'class="status status-finished"' in page.read_text()
