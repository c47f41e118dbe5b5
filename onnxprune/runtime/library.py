"""The library of sparse operators: where it is, and how ONNX Runtime gets to know it."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

DOMAIN = "onnxprune"
"""Domain of the operators."""

OPERATORS = ("SparseConv", "SparseMatMul")

_OLDEST_RUNTIME = (1, 17)
_SUFFIXES = (".so", ".pyd", ".dylib", ".dll")


@cache
def library_path() -> Path | None:
    """The library's file; None where it was not built."""
    folder = Path(__file__).parent
    found = [path for path in folder.glob("_kernels*") if path.suffix in _SUFFIXES]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def missing_reason() -> str | None:
    """Why sparse kernels cannot be used here; None where they can."""
    if library_path() is None:
        return (
            "its library was not built, since no C++17 compiler was found when onnxprune was "
            "installed; install one and run `pip install --force-reinstall --no-deps onnxprune`"
        )
    try:
        import onnxruntime
    except ImportError:
        return "ONNX Runtime is missing: `pip install 'onnxprune[cpu]'`"
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < _OLDEST_RUNTIME:
        return f"ONNX Runtime {onnxruntime.__version__} is older than 1.17"
    return None


def available() -> bool:
    """Whether sparse kernels can be used here."""
    return missing_reason() is None


def instruction_set() -> str | None:
    """The instructions that the kernels use on this processor; None without the library.

    `avx512`, `avx2`, `neon` or `portable`. The environment variable `ONNXPRUNE_KERNELS` names
    another one that the processor has.
    """
    path = library_path()
    if path is None:
        return None
    import ctypes

    try:
        function = ctypes.CDLL(os.fspath(path)).OnnxpruneKernels
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_char_p
    return str(function().decode())


def register(sess_options: "onnxruntime.SessionOptions") -> None:
    """Make the sparse operators known to sessions with these options.

    Args:
        sess_options: Changed; registering twice does no harm.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        UsageError: The library is missing or does not load.
    """
    reason = missing_reason()
    if reason is not None:
        if "ONNX Runtime is missing" in reason:
            raise MissingDependencyError("onnxruntime", "cpu", "running a model")
        raise UsageError("the sparse runtime is not available", got=reason)
    try:
        sess_options.register_custom_ops_library(os.fspath(library_path() or ""))
    except Exception as error:
        raise UsageError(
            "ONNX Runtime cannot load the library of sparse operators",
            where=library_path(),
            got=str(error).strip().partition("\n")[0],
            remedy="reinstall onnxprune, so that the library is built for this machine",
        ) from error


def is_compiled(proto: "onnx.ModelProto") -> bool:
    """Whether a model has operators of this library."""
    return any(opset.domain == DOMAIN for opset in proto.opset_import)


def load_runtime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "cpu", "running a model") from None
    return onnxruntime
