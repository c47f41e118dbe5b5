"""Import ONNX models into PyTorch for training."""

import os

import onnx

from onnxprune.errors import ModelFileError, UnsupportedModelError
from onnxprune.importer.converter import DAMAGE, Converter
from onnxprune.importer.module import ImportedModel
from onnxprune.importer.ops import __all__ as _families
from onnxprune.importer.registry import Entry, entries
from onnxprune.model import OnnxModel, read

__all__ = ["Entry", "ImportedModel", "load", "supported_operators"]


def load(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel,
) -> ImportedModel:
    """Import an ONNX model as a trainable PyTorch module.

    Parameters keep the file's shapes and orientation. Half-precision tensors are held, and
    computed with, in float32; inputs are cast to float32 and outputs are cast back.

    Args:
        source: Path, serialised model, `ModelProto`, or a model that was read before.

    Returns:
        The module, in training mode as PyTorch modules are when they are created.

    Raises:
        ModelFileError: There is no such file, or it is not a sound ONNX model.
        UnsupportedModelError: Operators or the operator set version are not supported; the
            message lists all of them.
    """
    model = read(source)
    try:
        return ImportedModel(*Converter(model).run())
    except (MemoryError, RecursionError) as error:
        raise UnsupportedModelError(
            "the model is too large or too deep to be imported on this machine",
            where=model.label,
            got=f"{type(error).__name__}: {error}",
        ) from error
    except DAMAGE as error:
        raise ModelFileError(
            "the graph contradicts itself",
            where=model.label,
            got=f"{type(error).__name__}: {error}",
            remedy="check it with onnx.checker.check_model(path), or export it again",
        ) from error


def supported_operators() -> list[Entry]:
    """Operators that are implemented directly; others may work through their function bodies."""
    assert _families
    return entries()
