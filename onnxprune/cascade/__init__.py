"""Cascade weight shedding: when fine-tuning a pruned model sheds more weights than were pruned.

Everything here is pure PyTorch over any `dict[str, Tensor]`. The idea is that of Azarian and
Porikli, "Cascade Weight Shedding in Deep Neural Networks", arXiv 2103.10629; definitions and
controller are this project's.
"""

from onnxprune.cascade.budget import Budget, training_budget
from onnxprune.cascade.closure import Closure, DeadChannels, Unfolded, close
from onnxprune.cascade.controller import Controller, Foremost, Policy
from onnxprune.cascade.flow import Flow
from onnxprune.cascade.gain import Gain, Verdict, cascade_gain, gain_over_seeds
from onnxprune.cascade.horizon import decay_horizon, decay_reached
from onnxprune.cascade.kept import Overlap, kept_overlap
from onnxprune.cascade.recommendation import Recommendation, recommend, settle_steps
from onnxprune.cascade.rewinding import Course, Rounds, courses_of
from onnxprune.cascade.shed import ShedCount, ShedMonitor, kept_rms

__all__ = [
    "Budget",
    "Closure",
    "Controller",
    "Course",
    "DeadChannels",
    "Flow",
    "Foremost",
    "Gain",
    "Overlap",
    "Policy",
    "Recommendation",
    "Rounds",
    "ShedCount",
    "ShedMonitor",
    "Unfolded",
    "Verdict",
    "cascade_gain",
    "close",
    "courses_of",
    "decay_horizon",
    "decay_reached",
    "gain_over_seeds",
    "kept_overlap",
    "kept_rms",
    "recommend",
    "settle_steps",
    "training_budget",
]
