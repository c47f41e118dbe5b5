"""What the graph of an ONNX model connects: how values depend on weights and on each other."""

from onnxprune.structure.reader import read_flow

__all__ = ["read_flow"]
