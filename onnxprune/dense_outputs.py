"""The dense model as a teacher: under ONNX Runtime, once or in each step, or in PyTorch."""

import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from onnxprune.calibration import Samples, subset
from onnxprune.corrupt import CorruptSamples
from onnxprune.errors import DataError
from onnxprune.finetune import (
    ArrayTeacher,
    Batch,
    BatchSource,
    CachedTeacher,
    ModuleTeacher,
    Ranks,
    Teacher,
    first_batch,
    takes_batches,
)
from onnxprune.importer import ImportedModel
from onnxprune.job import Job
from onnxprune.model import OnnxModel, atomic_write
from onnxprune.validate import Session, open_session


def compute_outputs(
    session: Session,
    samples: Samples,
    names: Collection[str],
    batch_size: int,
    on_progress: Callable[[int, int], None],
    corrupt: CorruptSamples | None = None,
) -> dict[str, np.ndarray]:
    """Values for every sample, by name, as float32 of `(samples, ...)`.

    Args:
        session: The dense model.
        samples: Its inputs, in the order of the result.
        names: Which of its outputs are taken.
        batch_size: Samples a call, unless the model's inputs fix it.
        on_progress: Called with (samples done, samples in all) after each batch.
        corrupt: Tally of samples that cannot be read. In the place of such a sample stand the
            values of the next readable one, as in training.

    Raises:
        DataError: The model gives NaN or infinity for a sample, from which nothing can be learnt,
            or values of different shapes.
    """
    teacher = ArrayTeacher(session.run, names, fixed_batch(session))
    collected: dict[str, list[np.ndarray]] = {name: [] for name in names}
    done = 0
    size = fixed_batch(session) or batch_size
    for batch in BatchSource(samples, size, corrupt=corrupt).in_order():
        for name, tensor in teacher(batch).items():
            outputs = tensor.numpy()
            _check_finite(outputs, name, batch, samples)
            collected[name].append(outputs)
        done += len(batch)
        on_progress(done, len(samples))
    return {name: _joined(name, arrays) for name, arrays in collected.items()}


def _joined(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    shapes = sorted({array.shape[1:] for array in arrays})
    if len(shapes) > 1:
        raise DataError(
            "the dense model's values differ in shape from sample to sample, and cannot be kept",
            where=f"tensor {name!r}",
            got=", ".join(map(str, shapes[:5])),
            remedy="set [distill] teacher = 'torch' or 'runtime'",
        )
    return np.concatenate(arrays)


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


@dataclass(frozen=True)
class DenseModel:
    """The dense model, from which a run learns.

    Attributes:
        job: The job.
        module: The model as it is before training, imported from `job.traced`.
        only_batch: The only batch size that it takes in PyTorch, None for any.
        on_progress: Called with (samples done, samples in all) while values are computed.
        ranks: The processes of the run, which share that work.
        corrupt: Tally of samples that cannot be read.
    """

    job: Job
    module: ImportedModel
    only_batch: int | None
    on_progress: Callable[[int, int], None]
    ranks: Ranks
    corrupt: CorruptSamples

    def kind(self, names: Collection[str]) -> tuple[str, str | None]:
        """Where it runs for the training samples: `cached`, `torch` or `runtime`, and why.

        Returns:
            What the recipe says, or what its `auto` comes to, with the reason not to keep values.
        """
        kind, samples = self.job.recipe.distill.teacher, self.job.train
        if kind != "auto" or samples is None:
            return kind, None
        count = fixed_batch(self.job.source) or 1
        if self.job.recipe.augment.transforms:
            return "torch", "the samples are augmented"
        if samples.varies:
            return "torch", "a sample is another one each time it is read"
        if differ_in_length(samples):
            return "torch", "the samples differ in length"
        values = self._computed(subset(samples, [0] * count), names)
        size = sum(array.nbytes for array in values.values()) / count
        if size * len(samples) > self.job.recipe.finetune.cache_mb * 2**20:
            return "torch", "the dense model's outputs are too large to keep"
        return "cached", None

    def values(self, samples: Samples, names: Collection[str]) -> dict[str, np.ndarray]:
        """Its values for all of some samples, from ONNX Runtime; see `compute_outputs`.

        Each process computes a part, and all of them get the whole.
        """
        rank, world = self.ranks.rank, self.ranks.world
        if world == 1 or len(samples) < world:
            return self._computed(samples, names)
        start, end = (len(samples) * number // world for number in (rank, rank + 1))
        part = subset(samples, range(start, end))
        own = self.ranks.run_on_all(lambda: self._computed(part, names))
        parts = self.ranks.gather_objects(own)
        return {name: _joined(name, [values[name] for values in parts]) for name in names}

    def _computed(self, samples: Samples, names: Collection[str]) -> dict[str, np.ndarray]:
        size = self.job.recipe.finetune.batch_size
        return compute_outputs(
            self._session(), samples, names, size, self.on_progress, self.corrupt
        )

    def on_evaluation(self, samples: Samples, names: Collection[str]) -> Teacher:
        """The model as a teacher on the few samples that are used on the way."""
        if differ_in_length(samples) or samples.varies:
            return self.running(self.job.recipe.distill.teacher, names)
        return CachedTeacher(self.values(samples, names))

    def running(self, kind: str, names: Collection[str]) -> Teacher:
        """The model as a teacher that runs on every batch, under ONNX Runtime or in PyTorch."""
        if kind == "runtime":
            return ArrayTeacher(self._session().run, names, fixed_batch(self.job.source))
        return ModuleTeacher(self.module, names, self.only_batch)

    def cached(self, samples: Samples, names: Collection[str]) -> Teacher:
        """The model as a teacher on training samples, whose values the run directory keeps."""
        path = self.job.run.teacher
        outputs = load_outputs(path, len(samples)) if self.job.resume else None
        missing = outputs is None or outputs.keys() != set(names)
        if self.ranks.any(missing) or outputs is None:
            computed = self.values(samples, names)
            self.ranks.run_on_main(lambda: save_outputs(computed, path))
            return CachedTeacher(computed)
        return CachedTeacher(outputs)

    def _session(self) -> Session:
        settings = self.job.recipe.validation
        return open_session(self.job.traced, settings.provider, settings.threads)


def differ_in_length(samples: Samples) -> bool:
    """Whether batches are padded, so that values of a sample depend on its batch's length."""
    return bool(first_batch(samples, 1).lengths)


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
    pair = first_batch(samples, 2)
    return None if takes_batches(module, pair) else fixed_batch(source) or 1


def padded(feeds: dict[str, np.ndarray], batch: int | None) -> dict[str, np.ndarray]:
    """Inputs filled up to a fixed batch size by repeating the last sample."""
    if batch is None:
        return feeds
    return {
        name: np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])
        for name, array in feeds.items()
    }
