"""Sparse CPU kernels for ONNX Runtime."""
