"""What a run will cost, measured on a few steps before it begins."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from onnxprune.dense_outputs import only_batch
from onnxprune.finetune import BatchSource, make_accelerator, make_optimizer, named_outputs
from onnxprune.importer import load
from onnxprune.job import Job
from onnxprune.learning import make_objective

_MEASURED_STEPS = 2


def estimate(job: Job) -> dict[str, Any]:
    """Seconds and bytes that a job will take.

    Two training steps run on a copy of the model with the job's own data, device and precision.
    Nothing is written.

    Returns:
        In seconds `step_s`, `train_s` with the evaluations in between, and `total_s`; and
        `memory_bytes` by what uses it.
    """
    imported = load(job.traced)
    parameters = dict(imported.named_parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    masked = job.plan.size
    moments = 2 if job.recipe.finetune.optimizer == "adamw" else 1
    memory = {
        "weights": weights,
        "gradients": weights,
        "optimizer": weights * moments,
        "masks": masked * 5,
    }
    step_s, forward_s, activations = 0.0, 0.0, 0
    if job.train is not None and job.total_steps:
        with _threads(job.recipe.finetune.threads):
            step_s, forward_s, activations = _measure(job, copy.deepcopy(imported))
        memory["activations"] = activations
        cached = min(_sample_bytes(job) * len(job.train), job.recipe.finetune.cache_mb * 2**20)
        memory["sample cache"] = cached
    evaluated = 0 if job.eval is None else len(job.eval)
    batch = job.recipe.finetune.batch_size
    evaluate_s = forward_s / batch * evaluated
    evaluations = job.recipe.finetune.evaluations if job.total_steps else 0
    train_s = step_s * job.total_steps + evaluate_s * evaluations
    dense_s = forward_s / batch * (0 if job.train is None else len(job.train))
    latency_s = job.recipe.validation.latency_seconds if job.recipe.validation.latency else 0.0
    return {
        "step_s": step_s,
        "train_s": train_s,
        "total_s": train_s + dense_s + 2 * evaluate_s + latency_s,
        "memory_bytes": memory,
    }


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """The CPU threads that the run itself would use."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(job: Job, module: Any) -> tuple[float, float, int]:
    """Seconds of a training step and of a forward pass, and bytes kept for the backward pass."""
    assert job.train is not None
    settings = job.recipe.finetune
    size = only_batch(module, job.source, job.train)
    objective = make_objective(job, module, size)
    accelerator = make_accelerator(settings)
    model = accelerator.prepare_model(module)
    optimizer = make_optimizer(dict(module.named_parameters()), settings)
    batches = BatchSource(job.train, settings.batch_size).shuffled(0)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    seconds, forward = [], []
    for _ in range(_MEASURED_STEPS):
        started, forward_s = time.monotonic(), 0.0
        batch = next(batches).to(accelerator.device)
        for piece in batch.split(size or len(batch)):
            part = piece.padded(size or 0)
            part_started = time.monotonic()
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                outputs = named_outputs(model(**part.inputs), module.output_names)
            forward_s += time.monotonic() - part_started
            teacher = {n: t.detach() for n, t in outputs.items() if t.is_floating_point()}
            accelerator.backward(objective(outputs, part, teacher))
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - started)
        forward.append(forward_s)
    parameters = sum(p.numel() * p.element_size() for p in module.parameters())
    return min(seconds), min(forward), max(0, sum(kept.values()) - parameters)


def _sample_bytes(job: Job) -> int:
    assert job.train is not None
    return sum(array.nbytes for array in job.train[0].inputs.values())
