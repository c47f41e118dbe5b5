"""Prune production ONNX models while fine-tuning them, write them back, and prove the result.

The public names load what they need on first use, so that importing the package is instant and
validation works without PyTorch::

    import onnxprune

    imported = onnxprune.load("model.onnx")      # a trainable torch module
    ...
    onnxprune.export(imported, "tuned.onnx")     # the same graph with the trained tensors
"""

import importlib
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__

if TYPE_CHECKING:
    from onnxprune import runtime
    from onnxprune.calibration import open_data, recalibrate
    from onnxprune.checking import check
    from onnxprune.errors import (
        DataError,
        Interrupted,
        ModelError,
        OnnxpruneError,
        UsageError,
    )
    from onnxprune.export import export
    from onnxprune.importer import ImportedModel, load
    from onnxprune.pipeline import prune
    from onnxprune.recipe import Recipe
    from onnxprune.validate import bench, evaluate, inspect_model, write_report

_HOMES = {
    "DataError": "onnxprune.errors",
    "ImportedModel": "onnxprune.importer",
    "Interrupted": "onnxprune.errors",
    "ModelError": "onnxprune.errors",
    "OnnxpruneError": "onnxprune.errors",
    "Recipe": "onnxprune.recipe",
    "UsageError": "onnxprune.errors",
    "bench": "onnxprune.validate",
    "check": "onnxprune.checking",
    "evaluate": "onnxprune.validate",
    "export": "onnxprune.export",
    "inspect_model": "onnxprune.validate",
    "load": "onnxprune.importer",
    "open_data": "onnxprune.calibration",
    "prune": "onnxprune.pipeline",
    "recalibrate": "onnxprune.calibration",
    "runtime": "onnxprune.runtime",
    "write_report": "onnxprune.validate",
}

__all__ = [
    "DataError",
    "ImportedModel",
    "Interrupted",
    "ModelError",
    "OnnxpruneError",
    "Recipe",
    "UsageError",
    "__version__",
    "bench",
    "check",
    "evaluate",
    "export",
    "inspect_model",
    "load",
    "open_data",
    "prune",
    "recalibrate",
    "runtime",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562).

    `export` is a sub-package, too; it can be called as the function of that name. `runtime` is one.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = home if name in ("export", "runtime") else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
