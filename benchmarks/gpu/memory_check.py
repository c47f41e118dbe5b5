"""Too little memory on the GPU: the micro-batch halves, and the run ends all the same.

The process may take 60 % of what a step of the whole batch needs. That such a step then
fails is tried first.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from rows import Outcome, Settings
from small_run import make_small_run

import onnxprune

BATCH = 64
_SHARE = 0.6


def measure(item: str, settings: Settings) -> Outcome:
    """Run a job for which the memory does not suffice at once."""
    if settings.device != "cuda":
        return Outcome(None, {}, "only a GPU's memory can be limited")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_small_run(folder, samples=2 * BATCH, size=128, width=32, seed=settings.seed)
        x = torch.from_numpy(np.load(files.train)["x"][:BATCH])
        need = _step_bytes(files.model, x)
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(_SHARE * need / total)
        if not _step_fails(files.model, x):
            return Outcome(None, {}, "a step of the whole batch fits all the same")
        recipe = onnxprune.Recipe.from_dict(
            {
                "data": {"train": str(files.train), "eval": str(files.evaluation)},
                "finetune": {"epochs": 1, "batch_size": BATCH, "device": "cuda"},
                "validate": {"latency": False},
            }
        )
        results = onnxprune.prune(files.model, folder / "pruned.onnx", recipe)
    notes = [note for note in results["notes"] if "memory" in note or "micro" in note]
    measured = {"needed_mb": need / 2**20, "allowed_mb": _SHARE * need / 2**20}
    if not notes:
        return Outcome(False, measured, "the run ended and does not say how")
    return Outcome(True, measured, details={"notes": notes})


def _step_bytes(model: Path, x: torch.Tensor) -> int:
    """Bytes that PyTorch reserves for a step of the whole batch."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _step(model, x)
    reserved = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    return reserved


def _step_fails(model: Path, x: torch.Tensor) -> bool:
    try:
        _step(model, x)
    except torch.OutOfMemoryError:
        return True
    finally:
        torch.cuda.empty_cache()
    return False


def _step(model: Path, x: torch.Tensor) -> None:
    imported = onnxprune.load(model).to("cuda").train()
    imported(x.to("cuda")).square().mean().backward()
