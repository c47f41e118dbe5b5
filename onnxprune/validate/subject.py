"""What the checks of a policy look at, and what they answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.export.liveness import Reading, needed_readings
from onnxprune.export.truth import MetadataCheck, verify
from onnxprune.model import OnnxModel, ValueSpec
from onnxprune.runtime import is_compiled
from onnxprune.runtime.dense_view import dense_view
from onnxprune.runtime.record_check import RecordCheck, verify_record
from onnxprune.tensors import GraphTensor, find_tensors
from onnxprune.validate.accuracy import EvaluationResult, evaluate
from onnxprune.validate.batches import SamplesLike
from onnxprune.validate.computed_weights import ComputedWeight, computed_weights
from onnxprune.validate.detection_agreement import DetectionAgreement
from onnxprune.validate.policy import Policy
from onnxprune.validate.task_metrics import TaskMetric


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        passed: Whether what was demanded holds.
        message: What was found, in a sentence or a few lines.
        measured: The value that was compared with the demand, as JSON has it; None for none.
    """

    passed: bool
    message: str
    measured: Any = None


class NotChecked(Exception):
    """Something that a check needs was not given."""


@dataclass(frozen=True)
class Subject:
    """A model under a policy, with what it is compared with.

    Attributes:
        model: The model.
        policy: What it has to keep to.
        baseline: The dense model.
        samples: Data to run both on.
        metrics: The metric of `[accuracy]`, where that is none of class scores.
        agreement: How `[agreement]` compares detectors; None for other models.
        lacking: Why there is no `baseline` or no `data`, where that is so.
        provider: Execution provider where the policy names none; None is the CPU.
        threads: Threads where the policy says nothing; None leaves it to ONNX Runtime.
        batch_size: Samples a call while accuracy is measured.
        shapes: Input name -> whole shape, where the policy has none.
    """

    model: OnnxModel
    policy: Policy
    baseline: OnnxModel | None = None
    samples: SamplesLike | None = None
    metrics: Sequence[TaskMetric] = ()
    agreement: DetectionAgreement | None = None
    lacking: Mapping[str, str] = field(default_factory=dict)
    provider: str | None = None
    threads: int | None = None
    batch_size: int = 32
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def need_baseline(self) -> OnnxModel:
        """The dense model.

        Raises:
            NotChecked: There is none.
        """
        if self.baseline is None:
            raise NotChecked(self.lacking.get("baseline", "it needs --baseline DENSE"))
        return self.baseline

    def need_samples(self) -> SamplesLike:
        """The data.

        Raises:
            NotChecked: There are none.
        """
        if self.samples is None:
            raise NotChecked(self.lacking.get("data", "it needs --data SPEC"))
        return self.samples

    @cached_property
    def tensors(self) -> dict[str, GraphTensor]:
        """The stored tensors of the model by name; of a compiled one those of `layers`."""
        return find_tensors(self.layers)

    @cached_property
    def layers(self) -> onnx.ModelProto:
        """The model, a compiled one as the layers that its sparse operators stand for."""
        proto = self.model.proto
        return dense_view(proto) if is_compiled(proto) else proto

    @cached_property
    def needed(self) -> set[Reading]:
        """What nodes read that outputs of `layers` depend on."""
        return needed_readings(self.layers)

    @cached_property
    def computed_weights(self) -> list[ComputedWeight]:
        """Weights of `layers` that the graph computes from stored values."""
        return computed_weights(self.layers)

    @cached_property
    def metadata(self) -> MetadataCheck:
        """The model's metadata against fact."""
        return verify(self.model.proto, None if self.baseline is None else self.baseline.proto)

    @cached_property
    def record(self) -> RecordCheck:
        """What a compiled model says of how it was made, against fact."""
        return verify_record(self.model.proto)

    @cached_property
    def evaluation(self) -> EvaluationResult:
        """Accuracy of the dense model, where there is one, and of the model.

        Raises:
            NotChecked: There are no data.
            DataError: They do not fit.
            ModelError: A model cannot be loaded or run.
            UsageError: The provider is not available.
        """
        models = [model for model in (self.baseline, self.model) if model is not None]
        return evaluate(
            [runtime_source(model) for model in models],
            self.need_samples(),
            batch_size=self.batch_size,
            provider=self.provider,
            threads=self.threads,
            metrics=self.metrics,
            agreement=self.agreement,
        )

    @cached_property
    def input_shapes(self) -> dict[str, list[int]]:
        """Whole shapes for inputs that leave an axis open: as the policy says, or as data have."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        if self.policy.inputs is not None:
            shapes |= self.policy.inputs.shapes
        if self.samples is not None:
            sample = self.samples[0].inputs
            for spec in self.model.inputs:
                if _is_open(spec) and spec.name in sample:
                    shapes.setdefault(spec.name, [1, *np.shape(sample[spec.name])])
        return {spec.name: shapes[spec.name] for spec in self.model.inputs if spec.name in shapes}


def _is_open(spec: ValueSpec) -> bool:
    """Whether a size other than the batch's is missing."""
    return spec.shape is None or not all(isinstance(size, int) for size in spec.shape[1:])


def runtime_source(model: OnnxModel) -> Path | OnnxModel:
    """What ONNX Runtime shall load: the very file, where there is one."""
    return model.path if model.path is not None else model


def counted(count: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str], limit: int = 6, separator: str = "; ") -> str:
    """The first few of many, with the number of the others."""
    rest = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + rest
