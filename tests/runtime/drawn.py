"""Operators and inputs that property tests draw."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto

from .helpers import compressed, normal, operator, sparse
from .reference import ACTIVATIONS

DENSITIES = (0.0, 0.02, 0.1, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Case:
    """One operator, and what it is run with.

    Attributes:
        kind: The operator.
        tensors: Its initializers but for the sparse weights.
        attributes: Its attributes.
        x: Its input.
        residual: What is added, or None.
        threads: Threads of the session.
        matrix: The sparse weights `(rows, columns)`, or None.
        half: Whether they are stored as float16.
    """

    kind: str
    tensors: dict[str, np.ndarray]
    attributes: dict[str, Any]
    x: np.ndarray
    residual: np.ndarray | None
    threads: int
    matrix: np.ndarray | None = None
    half: bool = False

    @property
    def proto(self) -> ModelProto:
        """The operator as a model."""
        weights = {} if self.matrix is None else compressed(self.matrix, half=self.half)
        return operator(
            self.kind,
            weights | self.tensors,
            self.x.ndim,
            residual=self.residual is not None,
            **self.attributes,
        )

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """What it is run with."""
        return {"x": self.x} | ({} if self.residual is None else {"residual": self.residual})

    def linear(self, x: np.ndarray, **weights: np.ndarray) -> "Case":
        """The same with other weights and another input, and with nothing added or applied."""
        matrix = weights.pop("matrix", self.matrix)
        kept = {key: value for key, value in self.tensors.items() if not key.endswith("bias")}
        attributes = {k: v for k, v in self.attributes.items() if not k.endswith("activation")}
        return replace(
            self, x=x, matrix=matrix, tensors=kept | weights, attributes=attributes, residual=None
        )


def activations() -> st.SearchStrategy[dict[str, Any]]:
    """Attributes of each activation, or none; of `Clip` the lower end comes first."""
    return st.sampled_from([None, *ACTIVATIONS]).map(
        lambda name: {} if name is None else {"activation": name, "alpha": -0.25, "beta": 1.5}
    )


@st.composite
def matrices(draw: st.DrawFn, columns: int, most_rows: int) -> tuple[np.ndarray, int]:
    """Weights `(rows, columns)`, and the block that their operator is told."""
    share = draw(st.sampled_from([1, 1, 2, 4]))
    # More than 128 are cut into chunks.
    most_rows *= draw(st.sampled_from([1, 1, 1, 7]))
    rows = share * draw(st.integers(1, max(1, most_rows // share)))
    density, seed = draw(st.sampled_from(DENSITIES)), draw(st.integers(0, 99))
    matrix = sparse(rows, columns, density=density, seed=seed, block=share)
    if draw(st.booleans()):
        matrix[:: draw(st.integers(2, 5))] = 0
    # A hint: it may also be given where rows do not share their columns.
    return matrix, draw(st.sampled_from([1, 4])) if rows % 4 == 0 else 1


@st.composite
def windows(
    draw: st.DrawFn, axes: int, most: int = 5, largest_size: int = 24
) -> tuple[list[int], dict[str, list[int]], list[int]]:
    """Sizes of an image, a window over it, and sizes of what it makes, none of which is 0."""
    limit = largest_size if axes == 2 else largest_size**2
    size = [draw(st.one_of(st.just(1), st.integers(1, limit))) for _ in range(axes)]
    pointwise = draw(st.integers(0, 3)) == 0
    kernel = [1 if pointwise else draw(st.integers(1, most)) for _ in size]
    plain = pointwise and draw(st.booleans())
    window = {
        "kernel_shape": kernel,
        "strides": [1 if plain else draw(st.sampled_from([1, 1, 2, 3])) for _ in kernel],
        "dilations": [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in kernel],
        # Up to two more than a kernel can reach into.
        "pads": [0 if plain else draw(st.integers(0, k + 1)) for k in (*kernel, *kernel)],
    }

    def made() -> list[int]:
        return [
            (size[i] + window["pads"][i] + window["pads"][i + axes] - (k - 1) * d - 1) // s + 1
            for i, (k, s, d) in enumerate(
                zip(kernel, window["strides"], window["dilations"], strict=True)
            )
        ]

    if min(made()) < 1:
        size = [n + (k - 1) * d for n, k, d in zip(size, kernel, window["dilations"], strict=True)]
    return size, window, made()


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    axes = draw(st.sampled_from([2, 2, 2, 1]))
    size, window, made = draw(windows(axes))
    channels, batch = draw(st.integers(1, 20)), draw(st.integers(1, 9))
    matrix, block = draw(matrices(channels * math.prod(window["kernel_shape"]), 40))
    layouts = {name: draw(st.sampled_from(["plain", "tiled"])) for name in ("x_layout", "y_layout")}
    return Case(
        "SparseConv",
        {"bias": normal(len(matrix), seed=5)} if draw(st.booleans()) else {},
        {"in_channels": channels, "block": block, **window, **layouts, **draw(activations())},
        normal(batch, channels, *size, seed=batch),
        normal(batch, len(matrix), *made, seed=6) if draw(st.booleans()) else None,
        draw(st.integers(1, 3)),
        matrix,
        draw(st.booleans()),
    )


@st.composite
def products(draw: st.DrawFn) -> Case:
    features = draw(st.integers(1, 90))
    matrix, block = draw(matrices(features, 70))
    lead = draw(st.lists(st.integers(1, 9), max_size=3))
    return Case(
        "SparseMatMul",
        {"bias": normal(len(matrix), seed=5)} if draw(st.booleans()) else {},
        {"in_features": features, "block": block, **draw(activations())},
        normal(*lead, features, seed=len(lead)),
        normal(*lead, len(matrix), seed=6) if draw(st.booleans()) else None,
        draw(st.integers(1, 3)),
        matrix,
        draw(st.booleans()),
    )


@st.composite
def depthwise(draw: st.DrawFn) -> Case:
    axes = draw(st.sampled_from([2, 2, 2, 1]))
    size, window, made = draw(windows(axes, most=9, largest_size=40))
    channels, batch = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    tensors = {"taps": normal(channels, math.prod(window["kernel_shape"]), seed=channels)}
    if draw(st.booleans()):
        tensors["bias"] = normal(channels, seed=5)
    return Case(
        "DepthwiseConv",
        tensors,
        {**window, **draw(activations())},
        normal(batch, channels, *size, seed=batch),
        normal(batch, channels, *made, seed=6) if draw(st.booleans()) else None,
        draw(st.integers(1, 3)),
    )


@st.composite
def expansions(draw: st.DrawFn) -> Case:
    axes = draw(st.sampled_from([2, 2, 2, 1]))
    size, window, made = draw(windows(axes, most=9, largest_size=40))
    channels, batch = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    matrix, block = draw(matrices(channels, 40))
    rows = len(matrix)
    tensors = {"taps": normal(rows, math.prod(window["kernel_shape"]), seed=rows)}
    for seed, name in enumerate(("bias", "depthwise_bias")):
        if draw(st.booleans()):
            tensors[name] = normal(rows, seed=seed)
    first = {f"expand_{key}": value for key, value in draw(activations()).items()}
    return Case(
        "SparseExpandDepthwise",
        tensors,
        {"in_channels": channels, "block": block, **window, **first, **draw(activations())},
        normal(batch, channels, *size, seed=batch),
        normal(batch, rows, *made, seed=6) if draw(st.booleans()) else None,
        draw(st.integers(1, 3)),
        matrix,
        draw(st.booleans()),
    )


EVERY = (convolutions, products, depthwise, expansions)
"""Cases of each operator."""
