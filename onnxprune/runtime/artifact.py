"""From a file to a compiled file, proven equal."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnxprune import model as model_files
from onnxprune.runtime.compiler import CompiledModel, compile_model, read_plain
from onnxprune.runtime.half import StoredValues, with_half_values
from onnxprune.runtime.library import check_kernels
from onnxprune.runtime.plan import CompileOptions
from onnxprune.runtime.proof import prove, rounding
from onnxprune.runtime.tuning import tune


def compile_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: CompileOptions | None = None,
    *,
    values: StoredValues = "float32",
    tune_seconds: float | None = None,
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> CompiledModel:
    """Compile a model file, compare it with its source, and write it.

    Where no layer gains, the output is the model as it was.

    Args:
        path: The `.onnx` file.
        output: Where to write.
        options: What is replaced, and how.
        values: How values that are not zero are stored; see `with_half_values`.
        tune_seconds: Measure for at most so long what is fastest; None goes by `options` alone.
        threads: Threads within an operator while measuring; None leaves it to ONNX Runtime.
        shapes: Input name -> whole shape, for axes that the model leaves open.
        on_progress: Called with the share of the time for measuring that is used up.

    Raises:
        ModelFileError: The file is missing, damaged or not ONNX.
        UnsupportedModelError: It is compiled already, ONNX Runtime cannot load it, or the result
            computes something else.
        UsageError: An open axis has no size.
        OutputError: The output cannot be written.
        MissingKernelsError: The library of sparse kernels is not there.
    """
    check_kernels()
    model_files.check_writable(Path(output))
    loaded = read_plain(path)
    if tune_seconds is None:
        compiled = compile_model(loaded, options)
    else:
        compiled = tune(
            loaded,
            options,
            threads=threads,
            seconds=tune_seconds,
            shapes=shapes,
            on_progress=on_progress,
        )
    if compiled.record.replaced:
        compiled = compiled.with_difference(prove(loaded, compiled.proto, shapes=shapes))
        if values == "float16":
            compiled = with_half_values(compiled)
            compiled = compiled.with_difference(rounding(loaded, compiled.proto, shapes=shapes))
    model_files.write(compiled.proto, output)
    return compiled
