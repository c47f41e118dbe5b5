"""ONNX Runtime sessions that know the sparse operators."""

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxprune import model as model_files
from onnxprune.errors import ModelFileError
from onnxprune.runtime.compiler import compile_model
from onnxprune.runtime.library import is_compiled, load_runtime, missing_reason, register

if TYPE_CHECKING:
    import onnxruntime


class SparseRuntimeWarning(UserWarning):
    """A pruned model runs in plain ONNX Runtime, so it is no faster than the dense one."""


def session(
    path: str | os.PathLike[str],
    sess_options: "onnxruntime.SessionOptions | None" = None,
    providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
) -> "onnxruntime.InferenceSession":
    """Open a model with the sparse operators: `onnxruntime.InferenceSession` in one line.

    A compiled model is opened as it is. A pruned one is compiled in memory first, by the static
    cost model; where no layer gains, the file is opened as it is.

    Args:
        path: The `.onnx` file.
        sess_options: Options of ONNX Runtime; the sparse operators are registered in them. By
            default new ones.
        providers: Execution providers; by default that of the CPU. Sparse operators run on the CPU,
            so a model is compiled in memory only where that is the only provider.

    Raises:
        ModelFileError: The model cannot be read or ONNX Runtime refuses it.
        UsageError: The model is compiled, and the sparse runtime is not available.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    runtime = load_runtime()
    options = sess_options if sess_options is not None else runtime.SessionOptions()
    wanted = list(providers) if providers is not None else ["CPUExecutionProvider"]
    loaded = model_files.read(path)
    reason = missing_reason()
    content: str | bytes = os.fspath(path)
    if is_compiled(loaded.proto):
        register(options)
    elif reason is not None:
        warnings.warn(
            f"{path} runs in plain ONNX Runtime, no faster than the dense model: {reason}",
            SparseRuntimeWarning,
            stacklevel=2,
        )
    elif wanted == ["CPUExecutionProvider"]:
        compiled = compile_model(loaded)
        if compiled.sparse_layers and model_files.fits_in_one_message(compiled.proto):
            register(options)
            content = model_files.serialized(compiled.proto)
    try:
        return runtime.InferenceSession(content, options, providers=wanted)
    except Exception as error:
        raise ModelFileError(
            "ONNX Runtime refuses the model",
            where=path,
            got=str(error).strip().partition("\n")[0],
        ) from error
