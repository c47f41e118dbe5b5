"""Sparse CPU kernels for ONNX Runtime.

One line makes a pruned model faster::

    session = onnxprune.runtime.session("pruned.onnx")

`compile_model` puts the sparse operators into a model ahead of time, `register` makes them known to
options that a caller builds. None of this needs PyTorch.
"""

from onnxprune.runtime.artifact import compile_file
from onnxprune.runtime.compiler import CompiledModel, compile_model
from onnxprune.runtime.cost import Thresholds
from onnxprune.runtime.half import with_half_values
from onnxprune.runtime.library import (
    available,
    instruction_set,
    is_compiled,
    library_path,
    missing_reason,
    register,
)
from onnxprune.runtime.plan import CompileOptions
from onnxprune.runtime.proof import prove
from onnxprune.runtime.record import CompiledRecord, LayerRecord, read_record
from onnxprune.runtime.sessions import session
from onnxprune.runtime.tuning import tune

__all__ = [
    "CompileOptions",
    "CompiledModel",
    "CompiledRecord",
    "LayerRecord",
    "Thresholds",
    "available",
    "compile_file",
    "compile_model",
    "instruction_set",
    "is_compiled",
    "library_path",
    "missing_reason",
    "prove",
    "read_record",
    "register",
    "session",
    "tune",
    "with_half_values",
]
