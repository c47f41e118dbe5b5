"""A pruning run under torchrun: with one rank, and with as many as there are GPUs.

The global batch is the same for any number of ranks. Every rank notes a digest of all its masks
after each pruning event, and the file is compared with that of one process without torchrun.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from rows import Outcome, Settings
from small_run import SmallRun, make_small_run

FILE_LIMIT = 1e-3
"""Largest difference of a weight that both kept, relative to the largest of its tensor."""

FLIP_LIMIT = 1e-3
"""Largest share of weights that one removed and the other kept: gradients that are added in
another order differ in their last bits, and so may weights at the threshold."""

_WORKER = Path(__file__).with_name("ranks_worker.py")


def measure(item: str, settings: Settings) -> Outcome:
    """Compare the masks of all ranks, and the file."""
    ranks = 1 if item.endswith("1 rank") else _gpus(settings)
    if ranks == 1 and item.endswith("GPU"):
        return Outcome(None, {}, "there is one GPU, which the item before has used")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_small_run(folder, samples=256, size=16, width=16, seed=settings.seed)
        alone = _run(files, folder / "alone", settings, 0)
        spread = _run(files, folder / "spread", settings, ranks)
    return _compared(alone, spread, ranks)


def _gpus(settings: Settings) -> int:
    return torch.cuda.device_count() if settings.device == "cuda" else 2


def _run(
    files: SmallRun, folder: Path, settings: Settings, ranks: int
) -> tuple[list[list[str]], bytes]:
    """Prune with that many ranks (0: without torchrun); every rank's digests, and the file."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [
        *(sys.executable, *(launcher if ranks else []), str(_WORKER), str(folder), "prune"),
        *(str(files.model), "-o", str(folder / "pruned.onnx"), "--data", str(files.train)),
        *("--eval-data", str(files.evaluation), "--sparsity", "0.8", "--epochs", "4"),
        *("--device", settings.device, "--seed", str(settings.seed)),
        *("--set", "validate.latency=false", "--set", "schedule.events=4", "--threads", "1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # The worker's own words come first, and a summary of the launcher's last.
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[:400]}")
    notes = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(max(ranks, 1))]
    return notes, (folder / "pruned.onnx").read_bytes()


def _compared(
    alone: tuple[list[list[str]], bytes], spread: tuple[list[list[str]], bytes], ranks: int
) -> Outcome:
    (single,), notes = alone[0], spread[0]
    same_masks = all(digests == notes[0] for digests in notes) and bool(notes[0])
    difference, flips = _file_difference(alone[1], spread[1])
    measured = {"ranks": float(ranks), "events": float(len(single)), "file": difference}
    measured["flips"] = flips
    if not same_masks:
        return Outcome(False, measured, "the ranks differ in their masks")
    if ranks == 1 and notes[0] != single:
        return Outcome(False, measured, "the masks differ from those without torchrun")
    within = difference <= FILE_LIMIT and flips <= FLIP_LIMIT
    return Outcome(within, measured, "" if within else "the file differs from one process's")


def _file_difference(first: bytes, second: bytes) -> tuple[float, float]:
    """See `FILE_LIMIT` and `FLIP_LIMIT`."""
    ours, theirs = (
        {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in onnx.load_model_from_string(data).graph.initializer
        }
        for data in (first, second)
    )
    worst, flips, total = 0.0, 0, 0
    for name, array in ours.items():
        if array.dtype.kind == "f":
            other = theirs[name]
            flipped = (array == 0) != (other == 0)
            scale = max(float(np.abs(array).max()), 1e-12)
            worst = max(worst, float(np.abs(array - other)[~flipped].max(initial=0.0)) / scale)
            flips += int(flipped.sum())
            total += array.size
    return worst, flips / total
