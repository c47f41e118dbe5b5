"""Sparse CPU kernels for ONNX Runtime: pruned models that run faster.

::

    import onnxprune.runtime

    session = onnxprune.runtime.session("pruned.onnx")   # an onnxruntime.InferenceSession
    session.run(None, {"x": image})
"""

from onnxprune.runtime.compiler import Compilation, LayerRecord, compile_model
from onnxprune.runtime.library import (
    available,
    instruction_set,
    is_compiled,
    library_path,
    missing_reason,
    register,
)
from onnxprune.runtime.sessions import SparseRuntimeWarning, session

__all__ = [
    "Compilation",
    "LayerRecord",
    "SparseRuntimeWarning",
    "available",
    "compile_model",
    "instruction_set",
    "is_compiled",
    "library_path",
    "missing_reason",
    "register",
    "session",
]
