"""The library of sparse kernels: where it is, whether it loads, and how a session gets it."""

import ctypes
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import MissingDependencyError, MissingKernelsError

if TYPE_CHECKING:
    import onnxruntime
    from onnx import ModelProto

DOMAIN = "onnxprune"
"""Domain of the sparse operators."""

VERSION = 1
"""Version of their operator set."""

_STEM = "_kernels"
_REGISTERED = "onnxprune.registered"
"""Entry in session options that know the operators; a second time, ONNX Runtime refuses them."""

_SUFFIXES = (".so", ".pyd", ".dylib", ".dll")
_REMEDY = (
    "install a C++17 compiler and then the package again; `pip install --force-reinstall --no-deps "
    "-v .` in a clone of the repository shows what the compiler says"
)


def library_path() -> Path:
    """The library's file; of several builds the newest.

    Raises:
        MissingKernelsError: It was not built.
    """
    folder = Path(__file__).parent
    found = [path for path in folder.glob(f"{_STEM}*") if path.name.endswith(_SUFFIXES)]
    if not found:
        raise MissingKernelsError(
            "the library of sparse kernels was not built",
            where=folder,
            expected=f"a file {_STEM}*.so, .pyd or .dylib",
            remedy=_REMEDY,
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def available() -> bool:
    """Whether sparse kernels can be used on this machine."""
    return missing_reason() is None


def missing_reason() -> str | None:
    """Why sparse kernels cannot be used; None if they can."""
    try:
        check_kernels()
    except (MissingKernelsError, MissingDependencyError) as error:
        return error.what if error.got is None else f"{error.what}: {error.got}"
    return None


def check_kernels() -> Path:
    """The library's file, once ONNX Runtime has loaded it.

    Raises:
        MissingKernelsError: It was not built, or ONNX Runtime refuses it.
        MissingDependencyError: onnxruntime is not installed.
    """
    path = library_path()
    _load(path, path.stat().st_mtime_ns)
    return path


@functools.lru_cache(maxsize=4)
def _load(path: Path, _built_ns: int) -> None:
    register(import_runtime().SessionOptions(), path)


def register(
    sess_options: "onnxruntime.SessionOptions", path: str | os.PathLike[str] | None = None
) -> None:
    """Make the sparse operators known to sessions that are opened with these options.

    Options that know them already stay as they are.

    Args:
        sess_options: `onnxruntime.SessionOptions`; changed in place.
        path: The library's file; by default the one of this package.

    Raises:
        MissingKernelsError: The library was not built, or ONNX Runtime refuses it.
    """
    file = library_path() if path is None else Path(path)
    if _is_registered(sess_options):
        return
    try:
        sess_options.register_custom_ops_library(str(file))
        sess_options.add_session_config_entry(_REGISTERED, "1")
    except Exception as error:
        raise MissingKernelsError(
            "ONNX Runtime does not load the library of sparse kernels",
            where=file,
            got=str(error).strip().partition("\n")[0],
            remedy=_REMEDY,
        ) from error


def _is_registered(sess_options: "onnxruntime.SessionOptions") -> bool:
    try:
        return bool(sess_options.get_session_config_entry(_REGISTERED) == "1")
    except RuntimeError:  # there is no such entry
        return False


def instruction_set() -> str:
    """The instruction set that the kernels of this machine use, such as `avx2`.

    Raises:
        MissingKernelsError: The library was not built.
    """
    function = ctypes.CDLL(str(check_kernels())).OnnxpruneKernels
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode("ascii")


def is_compiled(proto: "ModelProto") -> bool:
    """Whether a model has sparse operators, so that a session needs the library."""
    return any(opset.domain == DOMAIN for opset in proto.opset_import)


def import_runtime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "cpu", "running a model") from None
    return onnxruntime
