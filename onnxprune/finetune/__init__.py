"""Fine-tuning of a pruned model: loop, losses, distillation, checkpoints."""

from onnxprune.finetune.ablation import Ablation, Change
from onnxprune.finetune.batch import Batch
from onnxprune.finetune.batches import BatchSource, first_batch
from onnxprune.finetune.checkpoint import Checkpoint, CheckpointStore
from onnxprune.finetune.engine import check_device, make_accelerator, placed
from onnxprune.finetune.loop import Observer, Trainer
from onnxprune.finetune.losses import (
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
)
from onnxprune.finetune.optim import (
    DEFAULT_LR,
    learning_rate,
    make_optimizer,
    weight_decay,
)
from onnxprune.finetune.plan import Plan
from onnxprune.finetune.probe import observed_endings, probe_outputs, takes_batches
from onnxprune.finetune.pruner import Close, Pruner
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.reading import worker_deaths
from onnxprune.finetune.sharding import full_tensors, shard_parameters
from onnxprune.finetune.state import rank_seed
from onnxprune.finetune.step import named_outputs
from onnxprune.finetune.teachers import ArrayTeacher, CachedTeacher, ModuleTeacher, Teacher
from onnxprune.finetune.tracking import Tracking

__all__ = [
    "DEFAULT_LR",
    "Ablation",
    "ArrayTeacher",
    "Batch",
    "BatchSource",
    "BinaryCrossEntropy",
    "CachedTeacher",
    "Change",
    "Checkpoint",
    "CheckpointStore",
    "Close",
    "CrossEntropy",
    "Ctc",
    "Distillation",
    "Ending",
    "ModuleTeacher",
    "Objective",
    "Observer",
    "Plan",
    "Pruner",
    "PythonLoss",
    "Ranks",
    "SquaredError",
    "TaskLoss",
    "Teacher",
    "Tracking",
    "Trainer",
    "check_device",
    "class_axis",
    "first_batch",
    "full_tensors",
    "learning_rate",
    "make_accelerator",
    "make_optimizer",
    "named_outputs",
    "observed_endings",
    "placed",
    "probe_outputs",
    "rank_seed",
    "shard_parameters",
    "takes_batches",
    "weight_decay",
    "worker_deaths",
]
