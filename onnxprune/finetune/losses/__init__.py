"""What a run minimises: task losses on targets, and distillation from the dense model."""

from onnxprune.finetune.losses.binary import BinaryCrossEntropy
from onnxprune.finetune.losses.classes import CrossEntropy, class_axis, class_scores
from onnxprune.finetune.losses.ctc import Ctc
from onnxprune.finetune.losses.distillation import Distillation
from onnxprune.finetune.losses.ending import Ending
from onnxprune.finetune.losses.objective import Objective, accuracy_metrics
from onnxprune.finetune.losses.python import PythonLoss
from onnxprune.finetune.losses.squared import SquaredError
from onnxprune.finetune.losses.task import TaskLoss

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Ctc",
    "Distillation",
    "Ending",
    "Objective",
    "PythonLoss",
    "SquaredError",
    "TaskLoss",
    "accuracy_metrics",
    "class_axis",
    "class_scores",
]
