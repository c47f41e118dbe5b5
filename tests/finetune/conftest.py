"""Ranks that are processes, which talk over gloo as on a machine without GPUs."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHILD = """
import importlib.util, pickle, sys, warnings
import torch
import torch.distributed as dist
from onnxprune.finetune.ranks import Ranks

path, name, folder, rank, world = sys.argv[1:]
spec = importlib.util.spec_from_file_location("work", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=int(world)
)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    ranks = Ranks(torch.device("cpu"))
    result = getattr(module, name)(ranks)
with open(f"{folder}/{rank}", "wb") as file:
    pickle.dump(result, file)
ranks.barrier()
ranks.close()
assert not dist.is_initialized()
"""


@pytest.fixture(scope="module")
def run_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Calls a function of a test module with `Ranks`, in several processes.

    Warnings are errors there, too. It returns what the function returned on each rank.
    """

    def run(work: Callable[[Any], Any], world: int = 2) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")
        source = [work.__code__.co_filename, work.__name__, str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, *source, str(rank), str(world)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        try:
            errors = [process.communicate(timeout=120)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * world, "\n".join(errors)
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(world)]

    return run
