"""ONNX Runtime sessions that make use of zeros."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from onnxprune import model as model_files
from onnxprune.errors import DenseSpeedWarning, UnsupportedModelError
from onnxprune.mapped import drop_pages
from onnxprune.payload import iter_tensors
from onnxprune.runtime.compiler import with_sparse_operators
from onnxprune.runtime.library import (
    check_kernels,
    import_runtime,
    is_compiled,
    missing_reason,
    register,
)
from onnxprune.runtime.plan import CompileOptions

if TYPE_CHECKING:
    import onnxruntime

_CPU = "CPUExecutionProvider"


def session(
    path: str | os.PathLike[str],
    sess_options: "onnxruntime.SessionOptions | None" = None,
    providers: Sequence[Any] | None = None,
) -> "onnxruntime.InferenceSession":
    """Open a model so that its zeros make it faster on the CPU.

    A compiled model is opened with the sparse kernels. A plain one is compiled in memory first; one
    in which no layer is sparse enough, and one for another provider than the CPU, is opened as it
    is. Compiling takes time at every start and compares nothing with the source: `onnxprune
    compile` does both once.

    Args:
        path: The `.onnx` file.
        sess_options: Options of the session; the library of kernels is added to them.
        providers: Execution providers; by default the CPU.

    Raises:
        ModelFileError: The file is missing, damaged or not ONNX.
        UnsupportedModelError: ONNX Runtime cannot load the model.
        MissingKernelsError: The model is compiled and the library of sparse kernels is not there.
        MissingDependencyError: onnxruntime is not installed.

    Warns:
        DenseSpeedWarning: The library is not there, so a plain model is no faster than a dense one.
    """
    runtime = import_runtime()
    loaded = model_files.read(path, light=True)
    options = sess_options if sess_options is not None else runtime.SessionOptions()
    wanted = list(providers) if providers is not None else [_CPU]
    if is_compiled(loaded.proto):
        register(options, check_kernels())
        return _open(os.fspath(path), options, wanted, loaded.label)
    reason = missing_reason()
    if reason is not None:
        warnings.warn(
            f"{loaded.label} runs in plain ONNX Runtime, which gains nothing from zeros: {reason}",
            DenseSpeedWarning,
            stacklevel=2,
        )
    names = [provider if isinstance(provider, str) else provider[0] for provider in wanted]
    if reason is not None or names != [_CPU]:
        return _open(os.fspath(path), options, wanted, loaded.label)
    chosen = CompileOptions(threads=options.intra_op_num_threads or None)
    compiled = with_sparse_operators(loaded, chosen)
    drop_pages(iter_tensors(loaded.proto))
    if compiled is None:
        return _open(os.fspath(path), options, wanted, loaded.label)
    register(options, check_kernels())
    label = loaded.label
    with _content(compiled) as content:
        del compiled, loaded
        return _open(content, options, wanted, label)


def open_proto(
    proto: ModelProto, *, kernels: bool, optimise: bool = True, threads: int = 0
) -> "onnxruntime.InferenceSession":
    """Open a model in memory on the CPU, quietly.

    Args:
        proto: The model.
        kernels: Whether it needs the sparse kernels.
        optimise: Whether ONNX Runtime optimises the graph.
        threads: Threads within an operator; 0 leaves it to ONNX Runtime.
    """
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if kernels:
        register(options, check_kernels())
    with _content(proto) as content:
        return _open(content, options, [_CPU], "the model in memory")


@contextlib.contextmanager
def _content(proto: ModelProto) -> Iterator[str | bytes]:
    """What ONNX Runtime can load: bytes, or a file for what bytes cannot hold."""
    if model_files.fits_in_one_message(proto):
        content = model_files.serialized(proto)
        del proto  # by now it is as large as what ONNX Runtime makes of it
        yield content
        return
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        model_files.write(proto, path)
        yield str(path)


def _open(content: str | bytes, options: Any, providers: list[Any], label: str) -> Any:
    try:
        return import_runtime().InferenceSession(content, options, providers=providers)
    except Exception as error:
        raise UnsupportedModelError(
            "ONNX Runtime cannot load the model",
            where=label,
            got=str(error).strip().partition("\n")[0],
        ) from error
