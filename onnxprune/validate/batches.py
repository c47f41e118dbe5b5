"""Samples in batches, and the calls that a batch takes of a model with a batch size of its own."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import DataError, UnsupportedModelError
from onnxprune.model import ValueSpec
from onnxprune.stacking import Padding, SampleLike, stack
from onnxprune.validate.session import Session


class SamplesLike(Protocol):
    """A set of samples, such as `onnxprune.calibration.Samples`.

    If it has an attribute `padding`, that says which inputs are made from others.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> SampleLike: ...


def batches(
    samples: SamplesLike, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Batches of stacked inputs and targets; a new shape begins a new batch."""
    held: list[SampleLike] = []
    padding: Padding | None = getattr(samples, "padding", None)

    def stacked() -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        batch = stack(held, padding)
        return batch.inputs, batch.labels

    for index in range(len(samples)):
        sample = samples[index]
        if held and (len(held) == batch_size or _shapes(sample) != _shapes(held[0])):
            yield stacked()
            held = []
        held.append(sample)
    yield stacked()


def _shapes(sample: SampleLike) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.inputs.items()}


def batch_outputs(
    session: Session, feeds: Mapping[str, np.ndarray], count: int, *, all_of_them: bool
) -> dict[str, np.ndarray]:
    """Outputs of a batch of any size, also from a model with a fixed batch size.

    Args:
        session: The model.
        feeds: Input name -> `(count, ...)`; floats are converted to the model's own precision.
        count: Number of samples.
        all_of_them: All outputs with a batch axis, or the first one only.

    Returns:
        Output name -> `(count, ...)`, the first output first.

    Raises:
        UnsupportedModelError: The first output has no batch axis.
    """
    size = _fixed_batch(session) or count
    parts: dict[str, list[np.ndarray]] = {}
    for rows, outputs in calls(session, feeds, count):
        found = list(outputs.items())
        for index, (name, output) in enumerate(found if all_of_them else found[:1]):
            try:
                cut = _rows(output, rows.stop - rows.start, size, session)
                parts.setdefault(name, []).append(cut)
            except UnsupportedModelError:
                if index == 0:
                    raise
    return {
        name: own[0] if len(own) == 1 else np.concatenate(own)
        for name, own in parts.items()
        if sum(map(len, own)) == count
    }


def calls(
    session: Session, feeds: Mapping[str, np.ndarray], count: int
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """The rows and outputs of each call that a batch takes.

    A model with a fixed batch size runs at that one, and its last outputs have rows of padding.

    Args:
        session: The model.
        feeds: Input name -> `(count, ...)`; floats are converted to the model's own precision.
        count: Number of samples.
    """
    size = _fixed_batch(session) or count
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        piece = {spec.name: _feed(feeds[spec.name][rows], spec, size) for spec in session.inputs}
        yield rows, session.run(piece)


def _fixed_batch(session: Session) -> int | None:
    sizes = {spec.shape[0] for spec in session.inputs if spec.shape}
    fixed = {size for size in sizes if isinstance(size, int)}
    if len(fixed) > 1:
        raise UnsupportedModelError(
            "the inputs differ in their fixed batch size",
            where=session.label,
            got=", ".join(f"{spec.name} {spec.describe()}" for spec in session.inputs),
            expected="one size of the first axis of all inputs",
        )
    return fixed.pop() if fixed else None


def _feed(rows: np.ndarray, spec: ValueSpec, size: int) -> np.ndarray:
    """Rows for one call: padded with the last row to `size`; one value for a scalar input."""
    if spec.shape == ():
        if (rows != rows[0]).any():
            raise DataError(
                "a scalar input cannot differ within a batch",
                where=f"input {spec.name!r}",
                got=np.unique(rows),
                remedy="use a batch size of 1",
            )
        rows = rows[0]
    elif len(rows) < size:
        rows = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
    if spec.dtype is not None and rows.dtype != spec.dtype and rows.dtype.kind == "f":
        rows = rows.astype(spec.dtype)
    return rows


def _rows(output: Any, rows: int, size: int, session: Session) -> np.ndarray:
    name = session.outputs[0].name
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "biuf":
        raise UnsupportedModelError(
            "the first output is no tensor of numbers",
            where=f"{session.label}, output {name!r}",
            got=type(output).__name__,
        )
    if output.ndim and output.shape[0] == size:
        return output[:rows]
    if size == 1:
        return output[None]
    raise UnsupportedModelError(
        "the first output has no batch axis",
        where=f"{session.label}, output {name!r}",
        got=f"shape {output.shape} for {size} samples",
        expected=f"({size}, ...)",
        remedy="use a batch size of 1",
    )
