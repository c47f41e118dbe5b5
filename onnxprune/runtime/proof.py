"""Proof that a compiled model computes what its source does."""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto

from onnxprune import model as model_files
from onnxprune.errors import UnsupportedModelError
from onnxprune.model import OnnxModel
from onnxprune.random_inputs import batched_shapes, random_inputs
from onnxprune.runtime.compiler import Source
from onnxprune.runtime.library import is_compiled
from onnxprune.runtime.samples import working_graph
from onnxprune.runtime.sessions import open_proto

LARGEST_DIFFERENCE = 1e-4
"""Largest difference of an output, as a share of its root mean square."""

_SPLIT_BATCH = 3
_NOISE_FACTOR = 4.0
"""What is above `LARGEST_DIFFERENCE` may exceed the effect of ONNX Runtime's own optimisation by
this factor: some outputs are sensitive to the order of sums."""


def prove(
    source: Source,
    compiled: ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> float:
    """Run a model and its compiled form on random inputs.

    Args:
        source: The model before.
        compiled: The model after.
        shapes: Input name -> whole shape, for axes that the model leaves open.
        seed: Seed of the inputs.

    Returns:
        The largest difference of any output, as a share of the output's root mean square.

    Raises:
        UnsupportedModelError: The difference is more than rounding.
        UsageError: An open axis has no size.
        MissingKernelsError: The library of sparse kernels is not there.
    """
    loaded = model_files.read(source)
    feeds = _feeds(loaded, compiled, shapes, seed)
    expected = _outputs(loaded, loaded.proto, feeds)
    found = _outputs(loaded, compiled, feeds)
    differences = [difference(a, b) for a, b in zip(expected, found, strict=True)]
    largest = max(differences, default=0.0)
    if largest <= LARGEST_DIFFERENCE:
        return largest
    plain = _outputs(loaded, loaded.proto, feeds, optimise=False)
    noise = [difference(a, b) for a, b in zip(expected, plain, strict=True)]
    for spec, got, allowed in zip(loaded.outputs, differences, noise, strict=True):
        if not got <= max(LARGEST_DIFFERENCE, _NOISE_FACTOR * allowed):
            raise UnsupportedModelError(
                "the compiled model computes something else than its source",
                where=f"{loaded.label}, output {spec.name!r}",
                got=f"a difference of {got:.2g} of the output's root mean square",
                expected=f"at most {max(LARGEST_DIFFERENCE, _NOISE_FACTOR * allowed):.2g}",
                remedy="leave layers dense with --exclude until it is equal, and report this",
            )
    return largest


def rounding(
    source: Source,
    compiled: ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> float:
    """How far a compiled model with rounded values is from its source, on random inputs.

    How much is too much only the model's own data can tell, so there is no bound.

    Args:
        source: The model before.
        compiled: The model after, proven equal before its values were rounded.
        shapes: Input name -> whole shape, for axes that the model leaves open.
        seed: Seed of the inputs.

    Returns:
        The largest difference of any output, as a share of the output's root mean square.

    Raises:
        UnsupportedModelError: An output is not finite where the source's is.
    """
    loaded = model_files.read(source)
    feeds = _feeds(loaded, compiled, shapes, seed)
    expected = _outputs(loaded, loaded.proto, feeds)
    found = _outputs(loaded, compiled, feeds)
    largest = max(map(difference, expected, found), default=0.0)
    if not np.isfinite(largest):
        raise UnsupportedModelError(
            "with values rounded to float16 the model computes what is not finite",
            where=loaded.label,
            remedy="store its values as float32",
        )
    return largest


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Largest difference as a share of the root mean square; of integers the share that differs."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    if expected.dtype.kind != "f":
        return float(np.mean(expected != found))
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if (
        not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        or not np.isfinite(b[finite]).all()
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(a[finite] - b[finite]).max())
    scale = float(np.sqrt(np.mean(a[finite] ** 2)))
    return largest / scale if scale else (0.0 if largest == 0 else float("inf"))


def _feeds(
    loaded: OnnxModel,
    compiled: ModelProto,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Random inputs; of several samples if the compiled model computes them one by one."""
    if working_graph(compiled) is compiled.graph:
        return random_inputs(loaded.inputs, shapes=shapes, seed=seed)
    shapes = batched_shapes(loaded.inputs, shapes, _SPLIT_BATCH) if shapes else None
    return random_inputs(loaded.inputs, batch=_SPLIT_BATCH, shapes=shapes, seed=seed)


def _outputs(
    loaded: OnnxModel, proto: ModelProto, feeds: Mapping[str, np.ndarray], *, optimise: bool = True
) -> list[np.ndarray]:
    session = open_proto(proto, kernels=is_compiled(proto), optimise=optimise)
    names = [spec.name for spec in loaded.outputs]
    try:
        return [np.asarray(value) for value in session.run(names, dict(feeds))]
    except Exception as error:
        raise UnsupportedModelError(
            "ONNX Runtime cannot run the model on random inputs",
            where=loaded.label,
            got=str(error).strip().partition("\n")[0],
            remedy="give the sizes of your application with --shape NAME=SIZES",
        ) from error
