"""The dense model's outputs, computed once under ONNX Runtime and kept in the run directory."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from onnxprune.calibration import Samples
from onnxprune.errors import DataError, UnsupportedModelError
from onnxprune.finetune import Batch, BatchSource, takes_batches
from onnxprune.model import OnnxModel, atomic_write
from onnxprune.validate import Session


def compute_outputs(
    session: Session,
    samples: Samples,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """Every float output for every sample, by output name, as float32 of `(samples, ...)`.

    Args:
        session: The dense model.
        samples: Its inputs, in the order of the result.
        batch_size: Samples a call, unless the model's inputs fix it.
        on_progress: Called with (samples done, samples in all) after each batch.

    Raises:
        DataError: The model gives NaN or infinity for a sample, from which nothing can be learnt.
        UnsupportedModelError: No float output has a row for each sample.
    """
    fixed = fixed_batch(session)
    collected: dict[str, list[np.ndarray]] = {}
    done = 0
    for batch in BatchSource(samples, fixed or batch_size).in_order():
        feeds = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
        feeds = padded(feeds, fixed)
        rows = len(next(iter(feeds.values())))
        for name, array in session.run(feeds).items():
            if np.issubdtype(array.dtype, np.floating) and array.shape[:1] == (rows,):
                outputs = array[: len(batch)].astype(np.float32)
                _check_finite(outputs, name, batch, samples)
                collected.setdefault(name, []).append(outputs)
        done += len(batch)
        on_progress(done, len(samples))
    if not collected:
        raise UnsupportedModelError(
            "no float output has a row for each sample",
            where=session.label,
            got=", ".join(f"{spec.name} {spec.describe()}" for spec in session.outputs),
        )
    return {name: np.concatenate(arrays) for name, arrays in collected.items()}


def _check_finite(outputs: np.ndarray, name: str, batch: Batch, samples: Samples) -> None:
    bad = np.flatnonzero(~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1))
    if not bad.size:
        return
    row = int(bad[0])
    inputs = [key for key, tensor in batch.inputs.items() if not tensor[row].isfinite().all()]
    raise DataError(
        f"the dense model's output {name!r} is not finite for a sample",
        where=samples.place(int(batch.indices[row])),
        got="NaN or infinity"
        + (f", as in input {', '.join(map(repr, inputs))}" if inputs else " from finite inputs"),
        expected="finite numbers",
        remedy="leave such samples out, or repair the model",
    )


def save_outputs(outputs: dict[str, np.ndarray], path: Path) -> None:
    """Write outputs as an `.npz` file, atomically; output names need not be file names."""
    arrays = {f"output_{index}": array for index, array in enumerate(outputs.values())}
    arrays["names"] = np.array(list(outputs))
    atomic_write(path, lambda stream: np.savez(stream, **arrays))  # type: ignore[arg-type]


def load_outputs(path: Path, count: int) -> dict[str, np.ndarray] | None:
    """Outputs for `count` samples that `save_outputs` wrote; None if the file is not of use."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = [str(name) for name in file["names"]]
            outputs = {name: file[f"output_{index}"] for index, name in enumerate(names)}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return outputs if all(len(array) == count for array in outputs.values()) else None


def fixed_batch(source: OnnxModel | Session) -> int | None:
    """The batch size that a model's inputs are fixed to; None if it is free."""
    sizes = {spec.shape[0] for spec in source.inputs if spec.shape}
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if len(sizes) == 1 and fixed else None


def only_batch(module: nn.Module, source: OnnxModel, samples: Samples | None) -> int | None:
    """The only batch size that an imported graph takes, found by trying; None for any."""
    if samples is None or len(samples) < 2:
        return None
    pair = next(BatchSource(samples, 2).in_order())
    return None if takes_batches(module, pair) else fixed_batch(source) or 1


def padded(feeds: dict[str, np.ndarray], batch: int | None) -> dict[str, np.ndarray]:
    """Inputs filled up to a fixed batch size by repeating the last sample."""
    if batch is None:
        return feeds
    return {
        name: np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])
        for name, array in feeds.items()
    }
