"""From a data spec to samples that fit a model."""

from collections.abc import Sequence
from pathlib import Path

from onnxprune.calibration.arrays import ArrayShards
from onnxprune.calibration.fit import Targets
from onnxprune.calibration.images import open_image_folder
from onnxprune.calibration.python_source import open_python
from onnxprune.calibration.samples import Samples, draw, subset
from onnxprune.calibration.spec import parse_spec
from onnxprune.calibration.torchvision_source import TorchvisionSamples
from onnxprune.errors import DataError, UsageError
from onnxprune.model import ValueSpec
from onnxprune.recipe import Preprocess
from onnxprune.stacking import Padding


def open_data(
    spec: str,
    *,
    inputs: Sequence[ValueSpec],
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    allow_python: bool = False,
    limit: int | None = None,
    seed: int = 0,
    targets: Targets = "class",
    padding: Padding | None = None,
) -> Samples:
    """Open a data set and check that it fits a model.

    Args:
        spec: A folder of class folders, or of images without labels; an `.npz` file or a folder of
            `.npz` shards with arrays named like the inputs and, optionally, `label`;
            `torchvision:NAME?root=FOLDER`; or `python:package.module:function`.
        inputs: The model's inputs; their first axis is the batch.
        preprocess: From image to input; what it does not set follows the model (see
            `images.resolve_preprocess`). The complete one is the result's `preprocess`.
        classes: Class names in the order of the model's outputs.
        num_classes: Number of the model's scores, which labels must stay below; 1 stands for a
            binary model with labels 0 and 1; None does not check.
        allow_python: Whether `python:` specs may run code.
        limit: Use at most this many samples, drawn with `seed` and stratified by label; of an
            iterator the first ones.
        seed: Seed of that draw.
        targets: Whether labels are class indices or, of `.npz` and `python:` data, arrays of any
            shape: floats, or integers such as sequences filled up with -1.
        padding: How samples of different lengths become one batch; from `stacking.make_padding`.

    Raises:
        DataError: Missing or damaged data, or data that do not fit the model.
        UsageError: A `python:` spec without `allow_python`, or a `limit` below 1.
        MissingDependencyError: A `torchvision:` spec without torchvision.
    """
    if limit is not None and limit < 1:
        raise UsageError("the limit of samples must be at least 1", got=limit)
    names = None if classes is None else list(classes)
    parsed = parse_spec(spec)
    samples: Samples
    if parsed.kind == "python":
        if not allow_python:
            raise UsageError(
                "this data spec runs Python code, which has to be allowed",
                got=spec,
                remedy="pass --allow-python if you trust this code",
            )
        samples = open_python(parsed.target, inputs, names, num_classes, limit, targets, padding)
    elif parsed.kind == "torchvision":
        _refuse_targets(spec, targets)
        samples = TorchvisionSamples(
            parsed.target, parsed.parameters, inputs, preprocess, names, num_classes
        )
    else:
        samples = _open_path(
            Path(parsed.target), inputs, preprocess, names, num_classes, targets, padding
        )
    if limit is not None and limit < len(samples):
        return subset(samples, draw(samples, limit, seed))
    return samples


def _open_path(
    path: Path,
    inputs: Sequence[ValueSpec],
    preprocess: Preprocess | None,
    classes: list[str] | None,
    num_classes: int | None,
    targets: Targets,
    padding: Padding | None,
) -> Samples:
    if path.is_dir():
        shards = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".npz")
        if shards:
            return ArrayShards(str(path), shards, inputs, classes, num_classes, targets, padding)
        folder = open_image_folder(path, inputs, preprocess, classes, num_classes)
        if folder.labelled:
            _refuse_targets(path, targets)
        return folder
    if not path.exists():
        raise DataError(
            "no such data",
            where=path,
            expected="a folder, an .npz file, torchvision:NAME or python:package.module:function",
        )
    if path.suffix.lower() != ".npz":
        raise DataError(
            "this kind of data file is not known",
            where=path,
            got=f"a file ending in {path.suffix!r}",
            expected="an .npz file, or a folder",
        )
    return ArrayShards(str(path), [path], inputs, classes, num_classes, targets, padding)


def _refuse_targets(where: object, targets: Targets) -> None:
    if targets == "array":
        raise DataError(
            "the loss needs targets, but these data have a class for each sample",
            where=where,
            got="classes",
            expected="an array `label` in .npz files, or python:package.module:function",
        )
