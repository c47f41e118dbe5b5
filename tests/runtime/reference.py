"""The sparse operators in NumPy, after their description and not after the C++."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

DOMAIN = "onnxprune"
TILE, REST = 64, 16


def tiles(pixels: int) -> list[tuple[int, int]]:
    """First pixel and end of each tile of an image."""
    count = max(1, math.ceil((pixels - REST) / TILE))
    return [
        (tile * TILE, pixels if tile == count - 1 else (tile + 1) * TILE) for tile in range(count)
    ]


def to_tiled(x: np.ndarray) -> np.ndarray:
    """A plain `(N, C, ...)` as a tiled one, declared with the same shape."""
    flat = x.reshape(*x.shape[:2], -1)
    parts = [flat[:, :, a:b].reshape(len(x), -1) for a, b in tiles(flat.shape[2])]
    return np.concatenate(parts, axis=1).reshape(x.shape)


def to_plain(x: np.ndarray) -> np.ndarray:
    """A tiled `(N, C, ...)` as a plain one."""
    count, channels = x.shape[:2]
    flat = x.reshape(count, -1)
    pixels = flat.shape[1] // channels
    parts = [
        flat[:, a * channels : b * channels].reshape(count, channels, b - a)
        for a, b in tiles(pixels)
    ]
    return np.concatenate(parts, axis=2).reshape(x.shape)


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


ACTIVATIONS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "": lambda x, a, b: x,
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "Clip": lambda x, a, b: np.clip(x, a, b),
    "HardSwish": lambda x, a, b: x * np.clip(x / 6 + 0.5, 0, 1),
    "Silu": lambda x, a, b: x / (1 + np.exp(-x)),
    "Gelu": lambda x, a, b: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "GeluTanh": lambda x, a, b: (
        x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "LeakyRelu": lambda x, a, b: np.where(x < 0, a * x, x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
}


def weight(values: np.ndarray, columns: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """The matrix that compressed rows stand for, row by row."""
    assert values.dtype in (np.float32, np.float16)
    assert (columns.dtype, starts.dtype) == (np.uint16, np.int32)
    assert starts[0] == 0
    assert starts[-1] == len(values) == len(columns)
    matrix = np.zeros((len(starts) - 1, width))
    for row, (start, end) in enumerate(itertools.pairwise(starts)):
        assert (np.diff(columns[start:end].astype(int)) > 0).all()
        matrix[row, columns[start:end]] = values[start:end]
    return matrix


def finished(y, bias, residual, activation, alpha, beta):
    y = y if bias is None else y + bias
    y = y if residual is None else y + residual
    return ACTIVATIONS[activation or ""](y, alpha or 0.0, beta or 0.0).astype(np.float32)


def windows(x, kernel_shape, strides, pads, dilations):
    """What each output reads, `(count, channels, height, width, kh, kw)`; one axis as two."""
    if len(kernel_shape) == 1:
        x = x[:, :, None]
        kernel_shape, strides, dilations = ([1, *v] for v in (kernel_shape, strides, dilations))
        pads = [0, pads[0], 0, pads[1]]
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    every = np.lib.stride_tricks.sliding_window_view(padded, spans, (2, 3)).astype(np.float64)
    return every[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def convolved(y, kernel_shape, bias):
    """A sum over windows as the output has it, with its bias."""
    y = y[:, :, 0] if len(kernel_shape) == 1 else y
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))


class SparseConv(OpRun):
    op_domain = DOMAIN

    def _run(
        self, x, values, columns, row_starts, bias=None, residual=None,
        in_channels=None, kernel_shape=None, strides=None, pads=None, dilations=None,
        activation=None, alpha=None, beta=None, x_layout=None, y_layout=None, block=None,
    ):  # fmt: skip
        x = to_plain(x) if x_layout == "tiled" else x
        assert x.shape[1] == in_channels
        matrix = weight(values, columns, row_starts, in_channels * math.prod(kernel_shape))
        assert block in (None, 1) or len(matrix) % block == 0
        read = windows(x, kernel_shape, strides, pads, dilations)
        count, _, height, width = read.shape[:4]
        read = read.transpose(0, 2, 3, 1, 4, 5).reshape(count, height, width, -1)
        y = convolved(np.moveaxis(read @ matrix.T, -1, 1), kernel_shape, bias)
        if residual is not None:
            assert residual.shape == y.shape
            residual = to_plain(residual) if y_layout == "tiled" else residual
        y = finished(y, None, residual, activation, alpha, beta)
        return (to_tiled(y) if y_layout == "tiled" else y,)


class DepthwiseConv(OpRun):
    op_domain = DOMAIN

    def _run(
        self, x, taps, bias=None, residual=None,
        kernel_shape=None, strides=None, pads=None, dilations=None,
        activation=None, alpha=None, beta=None,
    ):  # fmt: skip
        assert taps.shape == (x.shape[1], math.prod(kernel_shape))
        read = windows(x, kernel_shape, strides, pads, dilations)
        y = np.einsum("nchwij,cij->nchw", read, taps.reshape(len(taps), *read.shape[4:]))
        y = convolved(y, kernel_shape, bias)
        assert residual is None or residual.shape == y.shape
        return (finished(y, None, residual, activation, alpha, beta),)


class SparseExpandDepthwise(OpRun):
    op_domain = DOMAIN

    def _run(
        self, x, values, columns, row_starts, taps, bias=None, depthwise_bias=None, residual=None,
        in_channels=None, kernel_shape=None, strides=None, pads=None, dilations=None,
        activation=None, alpha=None, beta=None, expand_activation=None, expand_alpha=None,
        expand_beta=None, block=None,
    ):  # fmt: skip
        matrix = weight(values, columns, row_starts, in_channels)
        assert block in (None, 1) or len(matrix) % block == 0
        assert taps.shape == (len(matrix), math.prod(kernel_shape))
        expanded = np.einsum("nk...,ck->nc...", x.astype(np.float64), matrix)
        if bias is not None:
            expanded += bias.reshape(-1, *[1] * (expanded.ndim - 2))
        expanded = finished(expanded, None, None, expand_activation, expand_alpha, expand_beta)
        read = windows(expanded, kernel_shape, strides, pads, dilations)
        y = np.einsum("nchwij,cij->nchw", read, taps.reshape(len(taps), *read.shape[4:]))
        y = convolved(y, kernel_shape, depthwise_bias)
        assert residual is None or residual.shape == y.shape
        return (finished(y, None, residual, activation, alpha, beta),)


class SparseMatMul(OpRun):
    op_domain = DOMAIN

    def _run(
        self, x, values, columns, row_starts, bias=None, residual=None,
        in_features=None, activation=None, alpha=None, beta=None, block=None,
    ):  # fmt: skip
        matrix = weight(values, columns, row_starts, in_features)
        y = x.astype(np.float64) @ matrix.T
        assert residual is None or residual.shape == y.shape
        return (finished(y, bias, residual, activation, alpha, beta),)


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of a model, sparse operators included, by ONNX's reference implementation."""
    operators = [SparseConv, SparseMatMul, DepthwiseConv, SparseExpandDepthwise]
    return list(ReferenceEvaluator(proto, new_ops=operators).run(None, feeds))
