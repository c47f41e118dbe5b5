"""Fine-tuning of a pruned model: loop, losses, distillation, checkpoints."""

from onnxprune.finetune.batches import Batch, BatchSource, CachedTeacher, ModuleTeacher, Teacher
from onnxprune.finetune.checkpoint import Checkpoint, CheckpointStore
from onnxprune.finetune.loop import (
    Observer,
    Plan,
    Trainer,
    check_device,
    make_accelerator,
    named_outputs,
)
from onnxprune.finetune.losses import Objective
from onnxprune.finetune.optim import DEFAULT_LR, learning_rate, make_optimizer
from onnxprune.finetune.probe import observed_activations, takes_batches

__all__ = [
    "DEFAULT_LR",
    "Batch",
    "BatchSource",
    "CachedTeacher",
    "Checkpoint",
    "CheckpointStore",
    "ModuleTeacher",
    "Objective",
    "Observer",
    "Plan",
    "Teacher",
    "Trainer",
    "check_device",
    "learning_rate",
    "make_accelerator",
    "make_optimizer",
    "named_outputs",
    "observed_activations",
    "takes_batches",
]
