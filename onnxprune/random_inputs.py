"""Random inputs for a model, from what its graph says of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.model import ValueSpec


def random_inputs(
    inputs: Sequence[ValueSpec],
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Random arrays that a model accepts.

    Floats are standard normal, booleans fair coins, integers 0 or 1 (which every embedding has).
    An axis that shares its name with another takes that one's size.

    Args:
        inputs: The model's inputs.
        batch: Size of an open first axis.
        shapes: Input name -> whole shape, for what else is open.
        seed: Seed of the values.

    Raises:
        UsageError: An open axis has no size, or a shape does not fit.
    """
    shapes = shapes or {}
    known: dict[str, int] = {}
    for spec in inputs:
        if spec.name in shapes:
            known |= _named_sizes(spec, tuple(shapes[spec.name]))
    for spec in inputs:
        if spec.shape and isinstance(spec.shape[0], str):
            known.setdefault(spec.shape[0], batch)
    first = {spec.shape[0] for spec in inputs if spec.shape and spec.name not in shapes}
    if batch != 1 and first and batch not in first and all(isinstance(d, int) for d in first):
        raise UsageError(
            "the model has a fixed batch size",
            got=f"batch {batch}",
            expected=", ".join(f"{spec.name} {spec.describe()}" for spec in inputs),
        )
    rng = np.random.default_rng(seed)
    return {
        spec.name: _random(spec, _full_shape(spec, batch, shapes.get(spec.name), known), rng)
        for spec in inputs
    }


def batched_shapes(
    inputs: Sequence[ValueSpec], shapes: Mapping[str, Sequence[int]], batch: int
) -> dict[str, list[int]]:
    """Whole shapes at another batch size: open first axes take it.

    Args:
        inputs: The model's inputs.
        shapes: Input name -> whole shape, at any batch size.
        batch: The size.

    Raises:
        UsageError: No input leaves its first axis open.
    """
    open_first = {s.name for s in inputs if not s.shape or not isinstance(s.shape[0], int)}
    if not open_first:
        raise UsageError(
            "the model has a fixed batch size, and cannot be measured at several",
            got=f"batch {batch}",
            expected=", ".join(f"{spec.name} {spec.describe()}" for spec in inputs),
            remedy="leave out --batch",
        )
    return {
        name: [batch, *shape[1:]] if name in open_first and shape else list(shape)
        for name, shape in shapes.items()
    }


def _named_sizes(spec: ValueSpec, shape: tuple[int, ...]) -> dict[str, int]:
    """Sizes that a given shape means for the input's named axes."""
    wanted = spec.shape if spec.shape is not None else (None,) * len(shape)
    if (
        len(shape) != len(wanted)
        or min(shape, default=1) < 1
        or any(
            isinstance(want, int) and want != size for want, size in zip(wanted, shape, strict=True)
        )
    ):
        raise UsageError(
            "a shape does not fit the input",
            where=f"input {spec.name!r}",
            got=shape,
            expected=spec.describe(),
        )
    return {want: size for want, size in zip(wanted, shape, strict=True) if isinstance(want, str)}


def _full_shape(
    spec: ValueSpec, batch: int, given: Sequence[int] | None, known: Mapping[str, int]
) -> tuple[int, ...]:
    if given is not None:
        return tuple(given)
    if spec.shape is None:
        raise _open_axis(spec)
    sizes = []
    for axis, dim in enumerate(spec.shape):
        size = known.get(dim) if isinstance(dim, str) else dim
        if size is None and axis == 0:
            size = batch
        if size is None:
            raise _open_axis(spec)
        sizes.append(size)
    return tuple(sizes)


def _open_axis(spec: ValueSpec) -> UsageError:
    sizes = ["1" if dim is None or isinstance(dim, str) else str(dim) for dim in spec.shape or ()]
    example = ",".join(sizes) or "1,3,224,224"
    return UsageError(
        "the model leaves an axis open, whose size has to be given",
        where=f"input {spec.name!r}",
        got=spec.describe(),
        remedy=f"--shape {spec.name}={example} with the sizes of your application",
    )


def _random(spec: ValueSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = None if spec.dtype is None else spec.dtype.kind
    if spec.dtype is not None and kind == "f":
        return rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    if spec.dtype is not None and kind in ("i", "u", "b"):
        return rng.integers(2, size=shape).astype(spec.dtype)
    raise UsageError(
        "random values of this type cannot be made",
        where=f"input {spec.name!r}",
        got=spec.describe(),
        remedy="give the inputs yourself",
    )
