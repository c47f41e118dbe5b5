"""What a run learns from: its objective, put together from recipe, model and data.

Whatever does not go together is found here, on a few samples, before anything is trained.
"""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from onnxprune.calibration import Samples
from onnxprune.dense_outputs import fixed_batch
from onnxprune.errors import UnsupportedModelError, UsageError
from onnxprune.finetune import (
    Batch,
    BinaryCrossEntropy,
    CrossEntropy,
    Ctc,
    Distillation,
    Ending,
    Objective,
    PythonLoss,
    SquaredError,
    TaskLoss,
    class_axis,
    first_batch,
    observed_endings,
    probe_outputs,
)
from onnxprune.importer import ImportedModel
from onnxprune.job import Job, has_classes
from onnxprune.model import ValueSpec

_PROBED_SAMPLES = 8
_LOGIT_RANGE = (2.0, 50.0)
"""Between the largest and the smallest value of a row: what logits of a trained classifier span,
and neither normalised embeddings or coordinates, nor pixels or prices."""


def make_objective(job: Job, module: ImportedModel, only_batch: int | None) -> Objective:
    """The loss of a run, tried on a few of its samples.

    Args:
        job: The job.
        module: The model that is trained, imported from `job.traced`; put into evaluation mode.
        only_batch: The only batch size that it takes, None for any.

    Raises:
        DataError: The targets do not fit the output and the loss.
        UsageError: The recipe names tensors that cannot be compared, or the user's loss fails.
        UnsupportedModelError: The model does not run, or gives nothing that can be compared.
    """
    output = job.loss_output.name
    source = job.train if job.train is not None else job.eval
    if source is None:
        return Objective(output, None, Distillation(job.recipe.distill, ()), learns_task=False)
    size = only_batch or fixed_batch(job.source)
    batch = _probe(source, size)
    outputs = probe_outputs(module, batch)
    endings = observed_endings(module.output_activations, outputs)
    measured = batch
    if not source.labelled and job.eval is not None and job.eval.labelled:
        measured = _probe(job.eval, size)
    objective = Objective(
        output,
        _task(job, module, endings, measured)
        if job.learns_task or measured.labels is not None
        else None,
        _distillation(job, endings, outputs, batch),
        job.learns_task,
    )
    if objective.distill_weight > 0 and job.total_steps:
        _check_compared(objective.distillation, outputs, batch, job)
    return objective


def _probe(samples: Samples, size: int | None) -> Batch:
    """The first samples: as many as the model takes, or a few."""
    return first_batch(samples, size or _PROBED_SAMPLES).padded(size or 0)


def _task(job: Job, module: ImportedModel, endings: Mapping[str, Ending], batch: Batch) -> TaskLoss:
    """The loss on targets, checked on a batch."""
    outputs = {
        name: tensor.detach().requires_grad_(tensor.is_floating_point())
        for name, tensor in probe_outputs(module, batch).items()
    }
    name, settings = job.loss_output.name, job.recipe.finetune
    output, ending = outputs[name], endings[name]
    task: TaskLoss
    if job.loss_function is not None:
        task = PythonLoss(settings.loss.removeprefix("python:"), job.loss_function)
    elif settings.loss == "bce":
        task = BinaryCrossEntropy(name, ending, settings.label_smoothing)
    elif settings.loss == "mse":
        task = SquaredError(name)
    elif settings.loss == "ctc":
        time_first = _time_first(job, output, batch)
        task = Ctc(name, ending, settings.ctc_blank, time_first, settings.ctc_input)
    else:
        many = batch.labels is not None and batch.labels.ndim > 1
        axis = class_axis(output, batch.labels, ending) if many and batch.labels is not None else -1
        task = CrossEntropy(name, ending, settings.label_smoothing, axis)
    task.check(outputs, batch)
    return task


def _time_first(job: Job, output: Tensor, batch: Batch) -> bool:
    """Whether the output is `(time, batch, ...)`; such a graph is run one sample at a time."""
    if output.ndim < 2 or len(batch) not in output.shape[:2] or output.shape[0] == len(batch):
        return False
    if len(batch) > 1:
        raise UnsupportedModelError(
            "the output has its time axis first, and the inputs have a fixed batch size",
            where=f"{job.source.label}, output {job.loss_output.name!r}",
            got=f"shape {tuple(output.shape)} for {len(batch)} samples",
            expected="(batch, time, classes), or a free batch size",
            remedy="export the model with a dynamic batch axis",
        )
    return True


def _distillation(
    job: Job, endings: Mapping[str, Ending], outputs: Mapping[str, Tensor], batch: Batch
) -> Distillation:
    settings = job.recipe.distill
    compared = _compared(job.source.outputs, settings.outputs, outputs, len(batch))
    mask = None if settings.mask_input is None else batch.inputs[settings.mask_input]
    names = [*compared, *settings.features]
    return Distillation(
        settings,
        compared,
        endings,
        class_output=job.loss_output.name if job.learns_task else None,
        scores=frozenset(n for n in compared if _holds_scores(job, n, outputs[n], endings[n])),
        masked=frozenset(
            name
            for name in names
            if mask is not None and outputs[name].shape[: mask.ndim] == mask.shape
        ),
    )


def _holds_scores(job: Job, name: str, output: Tensor, ending: Ending) -> bool:
    """Whether an output holds class scores: what the data say or, where they do not, its values."""
    if output.ndim != 2 or ending.activation is not None:
        return False
    classified = job.eval is not None and has_classes(job.eval)
    if name == job.loss_output.name and (classified or job.recipe.data.classes is not None):
        return True
    low, high = _LOGIT_RANGE
    return low <= float((output.amax(dim=1) - output.amin(dim=1)).mean()) <= high


def _compared(
    specs: Iterable[ValueSpec], globs: list[str], outputs: Mapping[str, Tensor], samples: int
) -> tuple[str, ...]:
    """Float outputs with a row for each sample that a glob names."""
    names = [spec.name for spec in specs]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise _unknown(glob, names, "[distill] outputs", "no output of the graph fits")
    return tuple(
        name
        for name in names
        if any(fnmatchcase(name, glob) for glob in globs) and _has_rows(outputs[name], samples)
    )


def _check_compared(
    distillation: Distillation, outputs: Mapping[str, Tensor], batch: Batch, job: Job
) -> None:
    """Refuse a comparison of nothing, or of tensors that cannot be compared."""
    for name in distillation.settings.features:
        if not _has_rows(outputs[name], len(batch)):
            dtype = str(outputs[name].dtype).removeprefix("torch.")
            raise UsageError(
                "this tensor cannot be compared sample by sample",
                where=f"[distill] features, {name!r}",
                got=f"{dtype}{list(outputs[name].shape)} for {len(batch)} samples",
                expected="floats with a row for each sample",
            )
    if not distillation.names:
        raise UnsupportedModelError(
            "no float output has a row for each sample, so none can be compared",
            where=f"{job.source.label}, [distill] outputs = {distillation.settings.outputs}",
            got=", ".join(f"{spec.name} {spec.describe()}" for spec in job.source.outputs),
            remedy="set [distill] features, or weight = 0",
        )
    if distillation.settings.mask_input is not None and not distillation.masked:
        mask = batch.inputs[distillation.settings.mask_input]
        raise UsageError(
            "no compared tensor has the axes of the mask",
            where=f"[distill] mask_input = {distillation.settings.mask_input!r}",
            got=", ".join(f"{name} {list(outputs[name].shape)}" for name in distillation.names),
            expected=f"first axes of {list(mask.shape)}",
            remedy="leave mask_input out, or compare a tensor with a value for each position",
        )
    with torch.no_grad():
        distillation(outputs, outputs, batch.inputs)


def _has_rows(tensor: Tensor, samples: int) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0 and len(tensor) == samples


def _unknown(name: str, known: list[str], where: str, what: str) -> UsageError:
    close = difflib.get_close_matches(name, known, 5, cutoff=0.4) or known[:5]
    return UsageError(what, where=where, got=name, expected=", ".join(map(repr, close)))
