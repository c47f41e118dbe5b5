"""Random document pages with a known orientation.

A page is a function of `(seed, split, index)` alone, so it does not matter how many processes
render, in which order, or how many pages there are.
"""

from io import BytesIO
from random import Random

from PIL import Image

from pages.camera import Shot, photograph
from pages.fonts import FontsMissingError
from pages.layouts import compose
from pages.vocabulary import Split

__all__ = ["CLASSES", "FontsMissingError", "Split", "render", "turn", "upright"]

CLASSES = ("0", "90", "180", "270")
"""Clockwise rotation in degrees, in the order of the model's outputs."""

_TRANSPOSE = {
    "90": Image.Transpose.ROTATE_270,
    "180": Image.Transpose.ROTATE_180,
    "270": Image.Transpose.ROTATE_90,
}


def upright(seed: int, split: Split, index: int) -> Image.Image:
    """Page `index` of a split as it looks before it is turned, mode RGB."""
    rng = Random(f"{seed}/{split}/{index}")
    sheet = compose(rng, split)
    return photograph(sheet.image, Shot.random(rng, sheet.size))


def turn(page: Image.Image, label: str) -> Image.Image:
    """Turn an upright page into class `label`. Pillow's angles are counter-clockwise."""
    return page.transpose(_TRANSPOSE[label]) if label in _TRANSPOSE else page


def render(seed: int, split: Split, index: int) -> tuple[bytes, str]:
    """Page `index` of a split as a JPEG file, and its class; the classes take turns.

    Compression comes after turning, so that its blocks lie alike in every class.
    """
    label = CLASSES[index % len(CLASSES)]
    page = turn(upright(seed, split, index), label)
    quality = Random(f"{seed}/{split}/{index}/jpeg").randint(45, 92)
    content = BytesIO()
    page.save(content, "JPEG", quality=quality)
    return content.getvalue(), label
