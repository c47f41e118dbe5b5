"""Put sparse operators in the place of layers whose weights are mostly zero."""

import os
from dataclasses import dataclass, replace

from onnx import ModelProto

from onnxprune import model as model_files
from onnxprune.errors import UnsupportedModelError
from onnxprune.export.metadata import read_metadata
from onnxprune.model import OnnxModel
from onnxprune.runtime.front import optimized
from onnxprune.runtime.library import is_compiled
from onnxprune.runtime.plan import CompileOptions, Plan
from onnxprune.runtime.record import CompiledRecord, write_record
from onnxprune.runtime.rewriting import rewrite
from onnxprune.version import __version__

Source = str | os.PathLike[str] | bytes | ModelProto | OnnxModel


@dataclass(frozen=True)
class CompiledModel:
    """A model with sparse operators.

    Attributes:
        proto: The model; a copy of the source where no layer was replaced.
        record: What became of each layer.
    """

    proto: ModelProto
    record: CompiledRecord

    def with_difference(self, largest: float) -> "CompiledModel":
        """The same with the measured difference to its source in its metadata; changes `proto`."""
        return self._with(largest_difference=largest)

    def with_samples_reason(self, reason: str) -> "CompiledModel":
        """The same with another reason to compute samples together; changes `proto`."""
        return self._with(samples_reason=reason)

    def _with(self, **update: object) -> "CompiledModel":
        record = self.record.model_copy(update=update)
        if record.replaced:
            write_record(self.proto, record)
        return replace(self, record=record)


def compile_model(source: Source, options: CompileOptions | None = None) -> CompiledModel:
    """Replace layers by sparse operators where that pays, in a copy of the model.

    The library of kernels is not needed for it. `prove` compares the result with its source.

    Args:
        source: The model, usually a pruned one.
        options: What is replaced, and how.

    Raises:
        ModelFileError: The file is missing, damaged or not ONNX.
        UnsupportedModelError: It is compiled already, or ONNX Runtime cannot load it.
    """
    loaded = read_plain(source)
    return replaced(loaded, Plan(optimized(loaded), options or CompileOptions()))


def with_sparse_operators(source: OnnxModel, options: CompileOptions) -> ModelProto | None:
    """The model as `compile_model` makes it but for its metadata; None where no layer gains.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot load it.
    """
    plan = Plan(optimized(source), options)
    if not plan.chosen:
        return None
    rewrite(plan)
    return plan.proto


def read_plain(source: Source) -> OnnxModel:
    """Read a model that is not compiled.

    Raises:
        ModelFileError: The file is missing, damaged or not ONNX.
        UnsupportedModelError: It is compiled already.
    """
    loaded = model_files.read(source)
    if is_compiled(loaded.proto):
        raise UnsupportedModelError(
            "the model is compiled already",
            where=loaded.label,
            remedy="compile the pruned model that it was made from",
        )
    return loaded


def replaced(source: OnnxModel, plan: Plan) -> CompiledModel:
    """Carry out a plan, whose model becomes the compiled one."""
    record = CompiledRecord(
        schema_version=1,
        tool_version=__version__,
        source_sha256=source.sha256,
        replaced=len(plan.chosen),
        layers=plan.records(),
        samples="together" if plan.mixing else "split",
        samples_reason=plan.mixing,
        sparsity=read_metadata(source.proto),
    )
    if not plan.chosen:
        untouched = ModelProto()
        untouched.CopyFrom(source.proto)
        return CompiledModel(untouched, record)
    rewrite(plan)
    write_record(plan.proto, record)
    return CompiledModel(plan.proto, record)
