"""A prune job, checked before any work: model, recipe, output, run directory and data."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration import Augmentation, Samples, class_order_note, open_data, split_holdout
from onnxprune.calibration.fit import Targets
from onnxprune.errors import DataError, UnsupportedModelError, UsageError
from onnxprune.export import clear_training, tapped, training_nodes, write_back
from onnxprune.finetune import BatchSource, check_device
from onnxprune.importer import load
from onnxprune.model import OnnxModel, ValueSpec, check_writable, external_data_path, read
from onnxprune.planning import PruningPlan, make_plan
from onnxprune.recipe import Recipe
from onnxprune.run_directory import RunDirectory
from onnxprune.stacking import make_padding
from onnxprune.tensors import GraphTensor, find_tensors
from onnxprune.user_code import load_function
from onnxprune.validate import open_session
from onnxprune.version import __version__

CLASS_LOSSES = ("auto", "cross-entropy")
"""Losses that learn from the index of a class."""


@dataclass(frozen=True)
class Job:
    """A prune job, checked and ready to run.

    Attributes:
        source: The dense model as read, with its training flags cleared if the recipe says so.
        output: Where the pruned model goes.
        recipe: The resolved recipe.
        plan: What is pruned, how far and when.
        train: Training samples; None prunes without fine-tuning.
        eval: Evaluation samples; None measures no accuracy.
        held_out: Whether `eval` was split off `train`.
        run: The run directory.
        resume: Continue from the run directory's last checkpoint.
        traced: The dense model with the inner tensors that are distilled as further outputs; it is
            trained from, and never written.
        loss_function: The user's loss, where the recipe names one.
        augmentation: The training samples as the recipe changes them; None leaves them alone.
        notes: What the user should know about the result.
    """

    source: OnnxModel
    output: Path
    recipe: Recipe
    plan: PruningPlan
    train: Samples | None
    eval: Samples | None
    held_out: bool
    run: RunDirectory
    resume: bool
    traced: OnnxModel
    loss_function: Callable[..., Any] | None = None
    augmentation: Augmentation | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def loss_output(self) -> ValueSpec:
        """The output that the loss on targets reads."""
        return _loss_output(self.source, self.recipe)

    @property
    def learns_task(self) -> bool:
        """Whether a loss on targets is part of what is minimised."""
        labelled = self.train is not None and self.train.labelled
        return labelled or self.loss_function is not None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch, at least 1."""
        if self.train is None:
            return 1
        return BatchSource(self.train, self.recipe.finetune.batch_size).steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run; at least 1 if there is any training at all."""
        epochs = self.recipe.finetune.epochs
        if self.train is None or epochs == 0:
            return 0
        return max(1, round(epochs * self.steps_per_epoch))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the result; checkpoints of another identity are refused."""
        facts = {
            "tool_version": __version__,
            "source_sha256": self.source.sha256,
            "recipe_sha256": self.recipe.sha256(),
            "data_sha256": {name: facts["digest"] for name, facts in self.data_facts.items()},
        }
        run_id = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
        return {**facts, "run_id": run_id}

    @cached_property
    def data_facts(self) -> dict[str, dict[str, Any]]:
        """Number, digest and kind of the samples, without any path."""
        facts = {}
        for name, samples in (("train", self.train), ("eval", self.eval)):
            if samples is not None:
                facts[name] = {
                    "samples": len(samples),
                    "digest": samples.digest(),
                    "labelled": samples.labelled,
                }
        if "eval" in facts:
            facts["eval"]["held_out"] = self.held_out
        return facts


def prepare(
    model: str | Path,
    output: str | Path | None,
    recipe: Recipe,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    allow_python: bool = False,
) -> Job:
    """Check everything that a prune job needs, before any work.

    Args:
        model: The dense `.onnx` file.
        output: The file to write. It must not be the model itself. None for a job that only
            trains, which needs a `run_dir`.
        recipe: What to do.
        run_dir: Folder for checkpoints, log and report; by default `OUTPUT` with `.run` for its
            extension.
        resume: Continue from the run directory.
        allow_python: Whether `python:` data specs and losses may run code.

    Raises:
        UsageError: Recipe, output or run directory make no sense.
        ModelError: The model cannot be read or handled.
        DataError: The data are missing or do not fit.
    """
    source = read(model)
    if output is None:
        assert run_dir is not None
        run = RunDirectory(Path(run_dir))
        output = run.path / "pruned.onnx"
    else:
        output = Path(output)
        run = RunDirectory(Path(run_dir) if run_dir is not None else output.with_suffix(".run"))
        _check_output(output, source, run)
    run.check(resume=resume)
    notes: list[str] = []
    source = _in_inference(source, recipe, notes)
    _check_values(find_tensors(source.proto).values(), source)
    traced = tapped(source, list(recipe.distill.features), "[distill] features")
    imported = load(traced)
    imported.check_trainable()
    _check_names(source, recipe)
    loss_function = _loss_function(recipe, allow_python)
    plan = make_plan(imported.tensors.values(), recipe)
    notes += plan.skipped_notes()
    notes += _sparse_already(plan)
    notes += _never_falling(recipe)
    check_device(recipe.finetune)
    open_session(source, recipe.validation.provider, recipe.validation.threads)
    train, evaluation, held_out = _open_samples(source, recipe, allow_python, notes)
    _check_targets(source, recipe, train, evaluation)
    preprocess = next((s.preprocess for s in (train, evaluation) if s is not None), None)
    if recipe.data.classes is None and train is not None and train.classes is not None:
        notes.append(class_order_note(train.classes))
    if preprocess is not None:
        recipe = recipe.model_copy(update={"preprocess": preprocess})
    return Job(
        source,
        output,
        recipe,
        plan,
        train,
        evaluation,
        held_out,
        run,
        resume,
        traced,
        loss_function,
        _augmentation(recipe, train),
        notes,
    )


def _check_output(output: Path, source: OnnxModel, run: RunDirectory) -> None:
    """Refuse an output that cannot be written, or that would overwrite the dense model."""
    kept = (
        [*source.external_files] if source.path is None else [source.path, *source.external_files]
    )
    for target in (output, external_data_path(output)):
        if target.exists() and any(target.samefile(file) for file in kept):
            raise UsageError(
                "the output would overwrite the dense model",
                where=target,
                remedy="name another file",
            )
    if output.absolute() == run.path.absolute():
        raise UsageError(
            "the output and the run directory have the same name",
            where=output,
            remedy="name another file, or another --run-dir",
        )
    check_writable(output)


def _never_falling(recipe: Recipe) -> list[str]:
    """What to know of a learning rate that is held until the end."""
    held = recipe.sparsity.method == "cascade-gmp" and recipe.cascade.hold_lr
    if not held or recipe.schedule.end < 1 or recipe.schedule.kind == "one-shot":
        return []
    return [
        "the learning rate stays at its peak to the last step, since the target is reached only "
        "there: lower [schedule] end, or leave out [cascade] hold_lr"
    ]


def _in_inference(source: OnnxModel, recipe: Recipe, notes: list[str]) -> OnnxModel:
    """The model with its training flags cleared, if the recipe says so and it has any."""
    nodes = training_nodes(source.proto)
    if not nodes:
        return source
    listed = ", ".join(nodes[:8]) + (" ..." if len(nodes) > 8 else "")
    if not recipe.model.to_inference:
        raise UnsupportedModelError(
            "the file runs nodes in training mode: deployed, it would drop activations at random "
            "or normalise with the statistics of each batch",
            where=source.label,
            got=listed,
            remedy="pass --to-inference, which clears these flags in the written file",
        )
    proto = write_back(source.proto, {})
    clear_training(proto)
    notes.append(
        f"training mode is cleared in {len(nodes)} nodes: {listed}; the dense model that the "
        "result is compared with is the file without these flags"
    )
    return replace(source, proto=proto)


def _sparse_already(plan: PruningPlan) -> list[str]:
    """A note where the dense model has more zeros than the target asks for."""
    zeros = sum(int((tensor.array() == 0).sum()) for tensor in plan.tensors.values())
    if zeros <= plan.zeros:
        return []
    return [
        f"{zeros:,} of {plan.size:,} prunable weights ({zeros / plan.size:.1%}) are zero already, "
        f"more than the target's {plan.zeros:,}: fine-tuning may fill some of them; raise the "
        "target to keep them"
    ]


def _check_values(tensors: Iterable[GraphTensor], source: OnnxModel) -> None:
    for tensor in tensors:
        if tensor.trainable and not np.isfinite(tensor.array()).all():
            raise UnsupportedModelError(
                "a weight of the model is not finite",
                where=f"{source.label}, tensor {tensor.name!r}",
                got="NaN or infinity",
                expected="finite numbers",
                remedy="export the model again from a sound state",
            )


def _loss_output(source: OnnxModel, recipe: Recipe) -> ValueSpec:
    name = recipe.finetune.loss_output
    outputs = {spec.name: spec for spec in source.outputs}
    return source.outputs[0] if name is None else outputs[name]


def _check_names(source: OnnxModel, recipe: Recipe) -> None:
    """Refuse names in the recipe that the graph does not have."""
    outputs, inputs = ([spec.name for spec in specs] for specs in (source.outputs, source.inputs))
    for key, name, known in (
        ("[finetune] loss_output", recipe.finetune.loss_output, outputs),
        ("[distill] mask_input", recipe.distill.mask_input, inputs),
    ):
        if name is not None and name not in known:
            raise UsageError(
                f"the model has no such {key.rpartition('_')[2]}",
                where=f"{source.label}, {key}",
                got=repr(name),
                expected=", ".join(map(repr, known)),
            )


def _loss_function(recipe: Recipe, allow_python: bool) -> Callable[..., Any] | None:
    kind, _, target = recipe.finetune.loss.partition(":")
    if kind != "python":
        return None
    if not allow_python:
        raise UsageError(
            "this loss runs Python code, which has to be allowed",
            where="[finetune] loss",
            got=recipe.finetune.loss,
            remedy="pass --allow-python if you trust this code",
        )
    return load_function(target, "[finetune] loss")


def _check_targets(
    source: OnnxModel, recipe: Recipe, train: Samples | None, evaluation: Samples | None
) -> None:
    """Refuse targets that are missing, or class labels without class scores."""
    loss = recipe.finetune.loss
    wanted = loss in ("cross-entropy", "bce", "mse", "ctc") and recipe.distill.weight != 1
    if wanted and train is not None and not train.labelled:
        raise DataError(
            f"loss {loss!r} needs targets, and the data have none",
            where=train.name,
            remedy="give data with targets, or leave [finetune] loss out, so that the dense model "
            "is distilled",
        )
    for samples in (train, evaluation):
        if samples is not None and has_classes(samples) and loss in CLASS_LOSSES:
            _check_scores(_loss_output(source, recipe), source)


def has_classes(samples: Samples) -> bool:
    """Whether every sample has one label, the index of its class."""
    return samples.labelled and isinstance(samples.label(0), int | np.integer)


def _check_scores(output: ValueSpec, source: OnnxModel) -> None:
    """With labels, the output has to hold a score for each class."""
    floats = output.dtype is None or output.dtype.kind not in "iub"
    if not floats or any(isinstance(dim, int) and dim != 1 for dim in (output.shape or ())[2:]):
        raise DataError(
            "the data have labels, but the model's output holds no class scores",
            where=f"{source.label}, output {output.name!r}",
            got=output.describe(),
            expected="float[samples, classes]",
            remedy="name another output in [finetune] loss_output, or give data without labels, so "
            "that the dense model is distilled",
        )


def _augmentation(recipe: Recipe, train: Samples | None) -> Augmentation | None:
    """The training samples as the recipe changes them, tried on the first."""
    transforms = recipe.augment.transforms
    if train is None or not (transforms or train.varies):
        return None
    if recipe.distill.teacher == "cached" and recipe.distill.weight != 0:
        raise UsageError(
            "the dense model's outputs cannot be kept for samples that change",
            where="[distill] teacher",
            got="cached",
            expected="auto, torch or runtime",
        )
    if not transforms:
        return None
    augmentation = Augmentation(train, transforms, recipe.finetune.seed)
    with suppress(DataError):  # a first sample that cannot be read is the run's to tell
        augmentation(0, 0)
    return augmentation


def _targets(recipe: Recipe) -> Targets:
    """What the labels of the data are, for the loss of a recipe."""
    loss = recipe.finetune.loss
    if loss == "auto":
        return "class"
    return "either" if loss in CLASS_LOSSES or loss.startswith("python:") else "array"


def _open_samples(
    source: OnnxModel, recipe: Recipe, allow_python: bool, notes: list[str]
) -> tuple[Samples | None, Samples | None, bool]:
    classes = _loss_output(source, recipe).class_count
    if recipe.finetune.loss not in CLASS_LOSSES:
        classes = None
    padding = make_padding(recipe.data, source.inputs)

    def open_spec(spec: str, limit: int | None) -> Samples:
        return open_data(
            spec,
            inputs=source.inputs,
            preprocess=recipe.preprocess,
            classes=recipe.data.classes,
            num_classes=classes,
            allow_python=allow_python,
            limit=limit,
            seed=recipe.finetune.seed,
            targets=_targets(recipe),
            padding=padding,
        )

    settings = recipe.data
    if settings.train is None and recipe.finetune.epochs > 0:
        raise UsageError(
            "there are no data to fine-tune on",
            remedy="give --data SPEC, or --epochs 0 to prune without fine-tuning",
        )
    evaluation = open_spec(settings.eval, None) if settings.eval is not None else None
    if settings.train is None:
        return None, evaluation, False
    train = open_spec(settings.train, settings.limit)
    if evaluation is not None:
        return train, evaluation, False
    if len(train) < 2:
        raise DataError(
            "too few samples to hold some out",
            where=settings.train,
            got=len(train),
            expected="at least 2",
            remedy="give more samples, or --eval-data SPEC",
        )
    train, evaluation = split_holdout(train, settings.holdout, recipe.finetune.seed)
    notes.append(
        f"no evaluation data were given: {len(evaluation)} samples ({settings.holdout:.0%}) of the "
        "training data are held out"
    )
    return train, evaluation, True
