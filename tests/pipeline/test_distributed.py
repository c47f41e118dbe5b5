"""The main job in several processes.

Where it matters who starts them it is `torchrun` or `accelerate launch`; else they are forks, since
each process that a launcher starts has to import PyTorch.
"""

import json
import os
import shutil
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
from safetensors.numpy import load_file

from onnxprune.errors import Interrupted
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe
from tests.forks import ForkServer

from . import test_closing as closing
from .helpers import Arrays, assert_pruned, log, normal, save, stop_after, text_model, weights

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
    pytest.mark.xdist_group("distributed"),
]
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


TORCHRUN = "torch.distributed.run --standalone --max-restarts 2 --nproc-per-node"
ACCELERATE = "accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes"


def arguments_of(folder: Path, name: str, *options: str) -> list[str]:
    """The arguments of `onnxprune` that prune the model of a folder.

    By gmp if nothing else is said: with sharded parameters cascade-gmp has no closure.
    """
    arguments = [
        "prune",
        str(folder / "dense.onnx"),
        "-o",
        str(folder / f"{name}.onnx"),
        "--resume",
    ]
    arguments += ["--data", str(folder / "data.npz"), "--eval-data", str(folder / "data.npz")]
    arguments += ["--epochs", str(EPOCHS), "--device", "cpu", "--threads", "1", "--json"]
    settings = ["finetune.batch_size=8", "finetune.lr=0.05", "validate.latency=false"]
    settings += ['sparsity.method="gmp"', *options]
    for setting in settings:
        arguments += ["--set", setting]
    return arguments


CHECKPOINTS = "finetune.checkpoint_seconds=0"
"""One after every step, for runs that do not get to their end."""


def command(folder: Path, name: str, *options: str, launcher: str = TORCHRUN) -> list[str]:
    """The command line of a launcher that prunes the model of a folder in two processes."""
    launched = ["-m", *launcher.split(), "2", "-m", "onnxprune"]
    return [sys.executable, *launched, *arguments_of(folder, name, *options)]


TIMEOUT_S = 200
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def launch(folder: Path, name: str, *, launcher: str = TORCHRUN) -> dict[str, Any]:
    """Results of a run in two processes, from its JSON, which must be printed once."""
    with started(command(folder, name, launcher=launcher)) as running:
        output, errors = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 0, errors[-3000:]
    results: dict[str, Any] = json.loads(output)
    return results


def run(
    forks: ForkServer, folder: Path, name: str, processes: int, *options: str
) -> dict[str, Any]:
    """The same in any number of forks; only the first of them prints the results."""
    arguments = arguments_of(folder, name, *options)
    ended = [fork.wait() for fork in forks.start_ranks(arguments, processes)]
    assert [rank.code for rank in ended] == [0] * processes, ended[0].errors[-3000:]
    assert [rank.output for rank in ended[1:]] == [""] * (processes - 1)
    results: dict[str, Any] = json.loads(ended[0].output)
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
def single(forks: ForkServer, folder: Path) -> dict[str, Any]:
    return run(forks, folder, "single", 1)


@pytest.fixture(scope="module")
def pair(folder: Path, single: dict[str, Any]) -> dict[str, Any]:
    return launch(folder, "pair")


def test_two_processes_give_the_file_of_one(
    folder: Path, single: dict[str, Any], pair: dict[str, Any]
) -> None:
    """The same masks; weights up to the order of sums; losses and accuracy, too."""
    losses = assert_like_single(folder, "pair")
    assert losses[-1] < 0.8 * losses[0]
    assert pair["validation"]["pruned"]["top1"] == single["validation"]["pruned"]["top1"]


def assert_like_single(folder: Path, name: str) -> list[float]:
    """A run ends with the zeros of one in a single process, and went the same way; its losses."""
    assert_pruned(folder / "dense.onnx", folder / f"{name}.onnx", 0.8)
    expected, found = weights(folder / "single.onnx"), weights(folder / f"{name}.onnx")
    for tensor, values in expected.items():
        assert np.array_equal(values == 0, found[tensor] == 0), tensor
        np.testing.assert_allclose(found[tensor], values, rtol=2e-3, atol=2e-4)
    losses = []
    for run_name in ("single", name):
        entries = [e for e in log(folder / f"{run_name}.run") if e["kind"] == "train"]
        assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
        losses.append([entry["loss"] for entry in entries])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    return losses[1]


def test_three_processes_with_unequal_parts(
    forks: ForkServer, folder: Path, single: dict[str, Any]
) -> None:
    run(forks, folder, "three", 3)
    ones, threes = weights(folder / "single.onnx"), weights(folder / "three.onnx")
    for name, one in ones.items():
        assert np.array_equal(one == 0, threes[name] == 0), name


def test_four_processes_give_the_file_of_one(
    forks: ForkServer, folder: Path, single: dict[str, Any]
) -> None:
    """Two samples of each batch on every one; the sums have more parts."""
    results = run(forks, folder, "four", 4)
    assert_like_single(folder, "four")
    assert results["validation"]["pruned"]["top1"] == single["validation"]["pruned"]["top1"]


def test_sharded_parameters_give_the_same_file(forks: ForkServer, folder: Path) -> None:
    """Each process holds half of the parameters; the file is that of processes with copies."""
    run(forks, folder, "sharded", 2, 'finetune.sharding="fsdp"', 'finetune.optimizer="adamw"')
    run(forks, folder, "copies", 2, 'finetune.optimizer="adamw"')
    ones, twos = weights(folder / "copies.onnx"), weights(folder / "sharded.onnx")
    for name, one in ones.items():
        assert np.array_equal(one == 0, twos[name] == 0), name
        np.testing.assert_allclose(twos[name], one, rtol=2e-3, atol=2e-4)


@pytest.mark.usefixtures("no_report")
def test_a_run_goes_on_in_fewer_processes(folder: Path, single: dict[str, Any]) -> None:
    """A scheduler ends a run in two processes; one goes on with it."""
    with started(command(folder, "fewer", CHECKPOINTS)) as running:
        wait_for_step(folder / "fewer.run" / "checkpoints", STEPS // 3)
        os.kill(running.pid, signal.SIGTERM)
        running.communicate(timeout=TIMEOUT_S)
    assert json.loads((folder / "fewer.run" / "run.json").read_text())["status"] == "interrupted"
    step, pruned = newest_checkpoint(folder / "fewer.run")
    assert STEPS // 3 <= step < STEPS
    recipe = Recipe.from_toml(folder / "single.run" / "recipe.toml")
    results = prune(folder / "dense.onnx", folder / "fewer.onnx", recipe, resume=True)
    assert_continued(folder, "fewer", results, step, pruned)


@pytest.fixture(scope="module")
def interrupted(folder: Path, single: dict[str, Any]) -> Path:
    """The run directory of a run in one process that was interrupted while it pruned."""
    recipe = Recipe.from_toml(folder / "single.run" / "recipe.toml")
    on_progress, stop = stop_after(STEPS // 3)
    with pytest.raises(Interrupted):
        prune(
            folder / "dense.onnx",
            folder / "interrupted.onnx",
            recipe,
            on_progress=on_progress,
            stop=stop,
        )
    return folder / "interrupted.run"


@pytest.mark.parametrize("parts", [False, True], ids=["copies", "parts"])
def test_a_run_goes_on_in_more_processes(
    forks: ForkServer, folder: Path, interrupted: Path, parts: bool
) -> None:
    """What one process saved is spread over two, however these are started."""
    name = "more-parts" if parts else "more"
    shutil.copytree(interrupted, folder / f"{name}.run")
    step, pruned = newest_checkpoint(interrupted)
    assert step == STEPS // 3
    if parts:
        results = run(forks, folder, name, 2, 'finetune.sharding="fsdp"')
    else:
        results = launch(folder, name, launcher=ACCELERATE)
    assert_continued(folder, name, results, step, pruned)


def newest_checkpoint(run_dir: Path) -> tuple[int, Arrays]:
    """Step of a run's newest checkpoint, and where the weights are pruned in it, by tensor."""
    newest = max((run_dir / "checkpoints").glob("step-*"))
    tensors = load_file(newest / "state.safetensors")
    masks = {name: mask for name, mask in tensors.items() if name.startswith("mask.")}
    return int(newest.name[5:]), {name[5:]: ~mask for name, mask in masks.items()}


def assert_continued(
    folder: Path, name: str, results: dict[str, Any], step: int, pruned: Arrays
) -> None:
    """The run began with the masks of the checkpoint, and ended as one without a break."""
    assert any(f"resumed after step {step} of {STEPS}" in note for note in results["notes"])
    assert sum(int(where.sum()) for where in pruned.values()) > 0
    found = weights(folder / f"{name}.onnx")
    for tensor, where in pruned.items():
        assert not found[tensor][where].any(), tensor
    assert_like_single(folder, name)


def test_a_killed_process_is_restarted_and_the_file_is_the_same(
    folder: Path, pair: dict[str, Any]
) -> None:
    """torchrun starts all processes again, and they continue from the last checkpoint."""
    with started(command(folder, "killed", CHECKPOINTS)) as running:
        wait_for_step(folder / "killed.run" / "checkpoints", STEPS // 3)
        os.kill(children(running.pid)[-1], signal.SIGKILL)
        output, errors = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 0, errors[-3000:]
    notes = json.loads(output)["notes"]
    assert any("resumed after step" in note for note in notes)
    assert (folder / "killed.onnx").read_bytes() == (folder / "pair.onnx").read_bytes()


def test_blocks_that_were_chosen_before_survive_sharding_and_a_kill(
    forks: ForkServer, folder: Path
) -> None:
    """The masks that a run moves towards are whole in checkpoints and in parts on processes."""
    options = ['sparsity.pattern="block:4x1"', 'sparsity.pattern_choice="before"']
    options += ["finetune.lr=0.2", "schedule.end=0.9"]
    run(forks, folder, "blocks", 2, *options)
    sharded = [*options, 'finetune.sharding="fsdp"']
    first, second = forks.start_ranks(arguments_of(folder, "parts", *sharded, CHECKPOINTS), 2)
    wait_for_step(folder / "parts.run" / "checkpoints", STEPS // 3)
    second.send(signal.SIGKILL)
    assert second.wait().code == -signal.SIGKILL
    assert "another process of the run is gone" in first.wait().errors
    results = run(forks, folder, "parts", 2, *sharded)
    assert any("resumed after step" in note for note in results["notes"])
    ones, twos = weights(folder / "blocks.onnx"), weights(folder / "parts.onnx")
    for name, one in ones.items():
        assert np.array_equal(one == 0, twos[name] == 0), name
    lost = (ones["w"] == 0).reshape(4, 4, -1).sum(axis=1)
    assert (lost.sum(), lost[lost < 4].sum()) == (231, 3)


def test_closure_and_harvest_in_two_processes_are_those_of_one(
    forks: ForkServer, tmp_path: Path
) -> None:
    """Each process judges its copy for itself, and all find the same weights."""
    save(tmp_path, *closing.network())
    options = ['sparsity.method="cascade-gmp"', f"sparsity.target={closing.SPARSITY}"]
    options += ["cascade.tau=0.6", "cascade.harvest_cost=10.0", "schedule.events=6"]
    taken = []
    for name, processes in (("single", 1), ("pair", 2)):
        run(forks, tmp_path, name, processes, *options)
        entries = [e for e in log(tmp_path / f"{name}.run") if e["kind"] == "event"]
        taken.append([(e["step"], e["closed"], e["harvested"], e["kept"]) for e in entries])
    assert taken[0] == taken[1]
    assert sum(closed for _, closed, _, _ in taken[0]) > 10
    assert sum(harvested for _, _, harvested, _ in taken[0]) > 0
    ones, twos = weights(tmp_path / "single.onnx"), weights(tmp_path / "pair.onnx")
    for tensor, one in ones.items():
        assert np.array_equal(one == 0, twos[tensor] == 0), tensor


def wait_for_step(checkpoints: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(int(path.name[5:]) >= step for path in checkpoints.glob("step-*")):
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.02)


def children(process: int) -> list[int]:
    """Processes that a process has started, oldest first."""
    tasks = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in tasks.split()]


def test_an_error_in_one_place_ends_all(forks: ForkServer, folder: Path) -> None:
    """The first process cannot write; the other must not wait for it for hours."""
    (folder / "blocked.run").write_text("a file where the run directory should be")
    for fork in forks.start_ranks(arguments_of(folder, "blocked"), 2):
        ended = fork.wait()
        assert ended.code == 2
        assert "the run directory is a file" in ended.errors
    assert not (folder / "blocked.onnx").exists()
