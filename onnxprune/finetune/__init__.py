"""Fine-tuning of a pruned model: loop, losses, distillation, checkpoints."""

from onnxprune.finetune.batches import Batch, BatchSource, CachedTeacher, ModuleTeacher, Teacher
from onnxprune.finetune.checkpoint import Checkpoint, CheckpointStore
from onnxprune.finetune.engine import check_device, make_accelerator
from onnxprune.finetune.loop import Observer, Trainer
from onnxprune.finetune.losses import Objective
from onnxprune.finetune.optim import DEFAULT_LR, learning_rate, make_optimizer
from onnxprune.finetune.plan import Course, Plan, courses_of
from onnxprune.finetune.probe import observed_activations, takes_batches
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.state import rank_seed
from onnxprune.finetune.step import named_outputs

__all__ = [
    "DEFAULT_LR",
    "Batch",
    "BatchSource",
    "CachedTeacher",
    "Checkpoint",
    "CheckpointStore",
    "Course",
    "ModuleTeacher",
    "Objective",
    "Observer",
    "Plan",
    "Ranks",
    "Teacher",
    "Trainer",
    "check_device",
    "courses_of",
    "learning_rate",
    "make_accelerator",
    "make_optimizer",
    "named_outputs",
    "observed_activations",
    "rank_seed",
    "takes_batches",
]
