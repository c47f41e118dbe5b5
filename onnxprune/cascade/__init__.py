"""What pruning sets free: weights that lie on no path from an input to an output any more.

Pure PyTorch: a graph is known here as the plain data of `flow`.
"""

from onnxprune.cascade.closure import Closure, DeadChannels, Unfolded, close
from onnxprune.cascade.flow import Flow

__all__ = ["Closure", "DeadChannels", "Flow", "Unfolded", "close"]
