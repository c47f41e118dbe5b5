"""The main job in several processes, as `torchrun` starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from .helpers import Arrays, assert_pruned, log, normal, save, text_model, weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
EPOCHS, STEPS = 6, 60


def network() -> tuple[onnx.ModelProto, Arrays]:
    """Convolution, BatchNorm and a classifier, nothing at random, and 80 samples that it can learn.

    The batch of 8 does not divide evenly by 3.
    """
    graph = """g (float[N,2,6,6] x) => (float[N,3] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        n = BatchNormalization(c, scale, shift, mean, var)
        r = Relu(n)
        f = GlobalAveragePool(r)
        v = Flatten(f)
        y = MatMul(v, head)
        unused = Mul(v, spare)
    }"""
    ones = np.ones(16, dtype=np.float32)
    arrays = {
        **{"w": normal(16, 2, 3, 3, scale=0.5), "head": normal(16, 3), "spare": normal(16)},
        **{"scale": ones, "shift": normal(16), "mean": 0 * ones, "var": ones},
    }
    label = np.arange(80) % 3
    x = normal(80, 2, 6, 6, seed=5) + 2 * normal(3, 2, 6, 6, seed=6)[label]
    return text_model(graph, arrays), {"x": x, "label": label}


def command(folder: Path, name: str, processes: int, *options: str) -> list[str]:
    """The command line that prunes the model of a folder."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launcher += ["--standalone", "--max-restarts", "2"]
    arguments = [
        "prune",
        str(folder / "dense.onnx"),
        "-o",
        str(folder / f"{name}.onnx"),
        "--resume",
    ]
    arguments += ["--data", str(folder / "data.npz"), "--eval-data", str(folder / "data.npz")]
    arguments += ["--epochs", str(EPOCHS), "--device", "cpu", "--threads", "1", "--json"]
    settings = ["finetune.batch_size=8", "finetune.checkpoint_seconds=0", "validate.latency=false"]
    settings += ["finetune.lr=0.05", *options]
    for setting in settings:
        arguments += ["--set", setting]
    launched = [*launcher, "-m", "onnxprune"] if processes > 1 else ["-m", "onnxprune"]
    return [sys.executable, *launched, *arguments]


TIMEOUT_S = 200
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(folder: Path, name: str, processes: int, *options: str) -> dict[str, Any]:
    """Results of a run, from its JSON, which must be printed once."""
    with started(command(folder, name, processes, *options)) as running:
        output, errors = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 0, errors[-3000:]
    results: dict[str, Any] = json.loads(output)
    return results


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the test, nor do those that it starts."""
    pipe = subprocess.PIPE
    running = subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    save(folder, *network())
    return folder


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Any]:
    return run(folder, "single", 1)


@pytest.fixture(scope="module")
def pair(folder: Path, single: dict[str, Any]) -> dict[str, Any]:
    return run(folder, "pair", 2)


def test_two_processes_give_the_file_of_one(
    folder: Path, single: dict[str, Any], pair: dict[str, Any]
) -> None:
    """The same masks; weights up to the order of sums; losses and accuracy, too."""
    assert_pruned(folder / "dense.onnx", folder / "pair.onnx", 0.8)
    ones, twos = weights(folder / "single.onnx"), weights(folder / "pair.onnx")
    for name, one in ones.items():
        assert np.array_equal(one == 0, twos[name] == 0), name
        np.testing.assert_allclose(twos[name], one, rtol=2e-3, atol=2e-4)
    logs = [log(folder / f"{name}.run") for name in ("single", "pair")]
    losses = [[e["loss"] for e in entries if e["kind"] == "train"] for entries in logs]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert pair["validation"]["pruned"]["top1"] == single["validation"]["pruned"]["top1"]
    assert losses[0][-1] < 0.8 * losses[0][0]


def test_three_processes_with_unequal_parts(folder: Path, single: dict[str, Any]) -> None:
    run(folder, "three", 3)
    ones, threes = weights(folder / "single.onnx"), weights(folder / "three.onnx")
    for name, one in ones.items():
        assert np.array_equal(one == 0, threes[name] == 0), name


def test_sharded_parameters_give_the_same_file(
    folder: Path, single: dict[str, Any], pair: dict[str, Any]
) -> None:
    """Each process holds half of the parameters; the file is that of processes with copies."""
    run(folder, "sharded", 2, 'finetune.sharding="fsdp"', 'finetune.optimizer="adamw"')
    run(folder, "copies", 2, 'finetune.optimizer="adamw"')
    ones, twos = weights(folder / "copies.onnx"), weights(folder / "sharded.onnx")
    for name, one in ones.items():
        assert np.array_equal(one == 0, twos[name] == 0), name
        np.testing.assert_allclose(twos[name], one, rtol=2e-3, atol=2e-4)


def test_a_killed_process_is_restarted_and_the_file_is_the_same(
    folder: Path, pair: dict[str, Any]
) -> None:
    """torchrun starts all processes again, and they continue from the last checkpoint."""
    with started(command(folder, "killed", 2)) as running:
        wait_for_step(folder / "killed.run" / "checkpoints", STEPS // 3)
        os.kill(children(running.pid)[-1], signal.SIGKILL)
        output, errors = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 0, errors[-3000:]
    notes = json.loads(output)["notes"]
    assert any("resumed after step" in note for note in notes)
    assert (folder / "killed.onnx").read_bytes() == (folder / "pair.onnx").read_bytes()


def test_blocks_that_were_chosen_before_survive_sharding_and_a_kill(folder: Path) -> None:
    """The masks that a run moves towards are whole in checkpoints and in parts on processes."""
    options = ['sparsity.pattern="block:4x1"', 'sparsity.pattern_choice="before"']
    options += ["finetune.lr=0.2", "schedule.end=0.9"]
    run(folder, "blocks", 2, *options)
    sharded = [*options, 'finetune.sharding="fsdp"']
    with started(command(folder, "parts", 2, *sharded)) as running:
        wait_for_step(folder / "parts.run" / "checkpoints", STEPS // 3)
        os.kill(children(running.pid)[-1], signal.SIGKILL)
        output, errors = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 0, errors[-3000:]
    assert any("resumed after step" in note for note in json.loads(output)["notes"])
    ones, twos = weights(folder / "blocks.onnx"), weights(folder / "parts.onnx")
    for name, one in ones.items():
        assert np.array_equal(one == 0, twos[name] == 0), name
    lost = (ones["w"] == 0).reshape(4, 4, -1).sum(axis=1)
    assert (lost.sum(), lost[lost < 4].sum()) == (231, 3)


def wait_for_step(checkpoints: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(int(path.name[5:]) >= step for path in checkpoints.glob("step-*")):
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.02)


def children(process: int) -> list[int]:
    """Processes that a process has started, oldest first."""
    tasks = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in tasks.split()]


def test_an_error_in_one_place_ends_all(folder: Path) -> None:
    """The first process cannot write; the other must not wait for it for hours."""
    (folder / "blocked.run").write_text("a file where the run directory should be")
    with started(command(folder, "blocked", 2)) as running:
        _, errors = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode != 0
    assert "the run directory is a file" in errors
    assert not (folder / "blocked.onnx").exists()
