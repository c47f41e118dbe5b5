"""Write trained tensors back into the original graph, with sparsity metadata.

The package can be called like its function `export`, so that `onnxprune.export(imported, path)`
works whether or not the package has been imported.
"""

import os
import sys
from types import ModuleType

from onnxprune.export.inference import clear_training, training_nodes
from onnxprune.export.metadata import (
    KEY,
    DataMetadata,
    SparsityMetadata,
    describe_tensors,
    overall_sparsity,
    read_metadata,
    schema,
    write_metadata,
    zeros_elsewhere,
)
from onnxprune.export.pattern_check import pattern_holds
from onnxprune.export.storage import SPARSE_BREAK_EVEN, to_sparse
from onnxprune.export.taps import tapped
from onnxprune.export.truth import MetadataCheck, verify
from onnxprune.export.writeback import Exportable, export, write_back

__all__ = [
    "KEY",
    "SPARSE_BREAK_EVEN",
    "DataMetadata",
    "Exportable",
    "MetadataCheck",
    "SparsityMetadata",
    "clear_training",
    "describe_tensors",
    "export",
    "overall_sparsity",
    "pattern_holds",
    "read_metadata",
    "schema",
    "tapped",
    "to_sparse",
    "training_nodes",
    "verify",
    "write_back",
    "write_metadata",
    "zeros_elsewhere",
]


class _CallablePackage(ModuleType):
    def __call__(self, imported: Exportable, path: str | os.PathLike[str]) -> None:
        export(imported, path)


sys.modules[__name__].__class__ = _CallablePackage
