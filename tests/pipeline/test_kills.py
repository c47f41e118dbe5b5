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

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS = 60
KILLS = 10
KILLS_IN_WRITES = 4

SERVER = """
import json, os, resource, sys
import torch
from onnxprune import pipeline
from onnxprune.errors import OnnxpruneError
from onnxprune.recipe import Recipe

pipeline.write_report = lambda *arguments: None
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        if job["file_bytes"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"],) * 2)
        try:
            recipe = Recipe.from_dict(job["recipe"])
            pipeline.prune(job["model"], job["output"], recipe, resume=True)
            os._exit(0)
        except OnnxpruneError as error:
            print("error:", error, file=sys.stderr, flush=True)
            os._exit(error.exit_code)
    print("process", child, flush=True)
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a process for every run, so that a killed one does not cost the import of PyTorch."""


class Runs:
    """Runs of the main job in processes of their own."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self.server = server

    def start(self, folder: Path, file_bytes: int = 0) -> int:
        """Start or continue the run in a folder; gives the process."""
        recipe = quick(
            folder / "data.npz",
            folder / "data.npz",
            finetune={
                **{"epochs": STEPS / 6, "batch_size": 8, "evaluations": 4, "ema": 0.5},
                **{"device": "cpu", "threads": 1, "checkpoint_seconds": 0, "optimizer": "adamw"},
            },
            schedule={"end": 1.0},
        )
        job = {
            "model": str(folder / "dense.onnx"),
            "output": str(folder / "pruned.onnx"),
            "recipe": recipe.to_dict(),
            "file_bytes": file_bytes,
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return self._number("process")

    def wait(self) -> int:
        """Exit code of the process that was started last; negative where a signal ended it."""
        return self._number("exit")

    def _number(self, kind: str) -> int:
        assert self.server.stdout is not None
        word, number = self.server.stdout.readline().split()
        assert word == kind
        return int(number)


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


def test_a_full_disk(
    runs: Runs,
    undisturbed: tuple[bytes, list[dict[str, Any]], float],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Files may not grow: the first checkpoint fails, and the run goes on when there is room."""
    folder = folder_of(tmp_path, "run")
    runs.start(folder, file_bytes=2048)
    assert runs.wait() == 2
    assert not list((folder / "pruned.run" / "checkpoints").iterdir())
    assert json.loads((folder / "pruned.run" / "run.json").read_text())["status"] == "failed"
    finish(runs, folder, undisturbed)
