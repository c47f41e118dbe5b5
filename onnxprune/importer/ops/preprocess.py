"""Preprocessing that some graphs contain: decoding of images, and counts of n-grams."""

import io
import itertools

import numpy as np
import torch
from onnx import TensorProto
from PIL import Image
from torch import Tensor, nn

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedNode, register


def decode_image(data: Tensor, pixel_format: str) -> Tensor:
    """Decode the bytes of an image file to (height, width, channels), of uint8."""
    with Image.open(io.BytesIO(data.cpu().numpy().tobytes())) as image:
        pixels = np.array(image.convert("L" if pixel_format == "Grayscale" else "RGB"))
    if pixel_format == "Grayscale":
        pixels = pixels[:, :, None]
    elif pixel_format == "BGR":
        pixels = pixels[:, :, ::-1].copy()
    return torch.from_numpy(pixels).to(data.device)


@register("ImageDecoder", since=20)
def _image_decoder(op: Op) -> Result:
    return op.call(decode_image, op.tensor(0), op.attr("pixel_format", "RGB"))


class NGramCounts(nn.Module):
    """How often each n-gram of a pool occurs in sequences of numbers.

    Args:
        grams: For each length n, the n-grams (count, n) and the outputs (count,) that count them.
        size: Number of outputs.
        max_skip: Largest number of elements between two that belong to one n-gram.
        mode: `TF` for the counts, `IDF` for the weight of what occurs, `TFIDF` for their product.
        weights: (size,), or None for ones.
    """

    weights: Tensor | None

    def __init__(
        self,
        grams: dict[int, tuple[Tensor, Tensor]],
        size: int,
        max_skip: int,
        mode: str,
        weights: Tensor | None,
    ) -> None:
        super().__init__()
        self.lengths = list(grams)
        self.size = size
        self.max_skip = max_skip
        self.mode = mode
        self.register_buffer("weights", weights, persistent=False)
        for length, (pool, outputs) in grams.items():
            self.register_buffer(f"pool_{length}", pool, persistent=False)
            self.register_buffer(f"outputs_{length}", outputs, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Count in x: (steps,) or (batch, steps); returns (size,) or (batch, size)."""
        rows = x.reshape(-1, x.shape[-1])
        counts = torch.zeros(rows.shape[0], self.size, device=x.device)
        for length in self.lengths:
            pool = getattr(self, f"pool_{length}")
            outputs = getattr(self, f"outputs_{length}").expand(rows.shape[0], -1)
            for distance in range(1, 2 if length == 1 else self.max_skip + 2):
                found = _occurrences(rows, pool, distance)
                counts = counts.scatter_add(1, outputs, found)
        if self.mode == "IDF":
            counts = (counts > 0).to(counts.dtype)
        if self.mode != "TF" and self.weights is not None:
            counts = counts * self.weights
        return counts.reshape(*x.shape[:-1], self.size)


def _occurrences(rows: Tensor, pool: Tensor, distance: int) -> Tensor:
    """Counts (batch, n-grams) of n-grams whose elements lie at a distance of each other."""
    length = pool.shape[1]
    starts = max(rows.shape[1] - distance * (length - 1), 0)
    matches = torch.ones(1, dtype=torch.bool, device=rows.device)
    for position in range(length):
        begin = distance * position
        matches = matches & (rows[:, begin : begin + starts, None] == pool[:, position])
    return matches.sum(dim=1, dtype=torch.float32)


@register("TfIdfVectorizer", since=9)
def _n_gram_counts(op: Op) -> Result:
    if op.elem_type() == TensorProto.STRING or op.attr("pool_strings"):
        raise UnsupportedNode("strings")
    pool, outputs = op.attr("pool_int64s"), op.attr("ngram_indexes")
    starts = [*op.attr("ngram_counts"), len(pool)]
    grams, used = {}, 0
    for length, (start, end) in enumerate(itertools.pairwise(starts), start=1):
        count = (end - start) // length
        if count and op.attr("min_gram_length") <= length <= op.attr("max_gram_length"):
            block = torch.tensor(pool[start : start + count * length]).reshape(count, length)
            grams[length] = block, torch.tensor(outputs[used : used + count])
        used += count
    weights = op.attr("weights")
    module = NGramCounts(
        grams,
        max(outputs) + 1,
        op.attr("max_skip_count"),
        op.attr("mode"),
        None if weights is None else torch.tensor(weights),
    )
    return op.module(module, op.tensor(0))
