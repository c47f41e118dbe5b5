"""The labelled data of the experiments, as `.npz` files that `prune` reads.

- `fashion`: Fashion-MNIST (Xiao et al., arXiv 1708.07747), 10 classes, from the idx files of the
  Debian package dataset-fashion-mnist; averaged down to smaller images where that is asked for.
- `glyphs`: rendered characters, 32 classes, in a random DejaVu font, size, place, angle, slant and
  contrast, with noise. The files can be made anywhere, and are exact for a seed and a Pillow
  version.

Each has a training, a validation and a test part. The validation part is what tuning sees; it is
taken from what is not the test part.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path

import numpy as np
from networks import INPUT
from PIL import Image, ImageDraw, ImageFont

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package puts its files."""

CHARACTERS = "ABCDEFGHJKLMNPQRTUXYabdefghnrt34"
"""Those that are told apart at any size: no O beside 0, and no lower case that only is smaller."""

CLASSES = {"fashion": 10, "glyphs": len(CHARACTERS)}

NOISE = 22.0
"""Standard deviation of the noise of `glyphs`, in grey levels of 255."""

_FONTS = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, slanted in (("Sans", "Oblique"), ("Serif", "Italic"), ("SansMono", "Oblique"))
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
)
_CANVAS = 56
"""Side of the square that a character is drawn on, in pixels; then it is made small."""


@dataclass(frozen=True)
class Sizes:
    """How much data.

    Attributes:
        train: Training samples.
        valid: Validation samples.
        test: Test samples.
        side: Height and width of an image, in pixels.
    """

    train: int
    valid: int
    test: int
    side: int


@dataclass(frozen=True)
class Parts:
    """The files of a data set: arrays `image` (samples, 1, side, side) and `label` (samples,)."""

    train: Path
    valid: Path
    test: Path


def prepare(name: str, sizes: Sizes, folder: Path, fashion: Path = FASHION) -> Parts:
    """Write the files of a data set, unless they are there.

    Args:
        name: `fashion` or `glyphs`.
        sizes: How much of it.
        folder: Where files go; names tell sizes apart.
        fashion: Folder of the idx files of Fashion-MNIST.

    Raises:
        SystemExit: The data are not there; the message says how to get them.
    """
    stem = f"{name}-{sizes.side}-{sizes.train}-{sizes.valid}-{sizes.test}"
    parts = Parts(*(folder / f"{stem}-{part}.npz" for part in ("train", "valid", "test")))
    files = (parts.train, parts.valid, parts.test)
    if all(path.is_file() for path in files):
        return parts
    folder.mkdir(parents=True, exist_ok=True)
    made = _fashion(sizes, fashion) if name == "fashion" else _glyphs(sizes)
    for path, (images, labels) in zip(files, made, strict=True):
        partial = path.with_name(f".{path.name}")
        np.savez(partial, **{INPUT: _standardised(images), "label": labels.astype(np.int64)})
        partial.replace(path)
    return parts


_Labelled = tuple[np.ndarray, np.ndarray]
"""Grey images (samples, side, side) from 0 to 255, and the index of the class of each."""


def _standardised(images: np.ndarray) -> np.ndarray:
    """Grey images as a network's input: mean about 0, standard deviation about 1."""
    return ((images.astype(np.float32) - 90.0) / 80.0)[:, None]


def _fashion(sizes: Sizes, folder: Path) -> Iterator[_Labelled]:
    """The first images train, the last of the training file validate, the test file tests."""
    if not folder.is_dir():
        raise SystemExit(
            f"{folder} is missing: apt-get install dataset-fashion-mnist, or name a copy of it "
            "with --fashion"
        )
    images, labels = _idx_pair(folder, "train")
    test_images, test_labels = _idx_pair(folder, "t10k")
    if sizes.train + sizes.valid > len(images) or sizes.test > len(test_images):
        raise SystemExit(
            f"Fashion-MNIST has {len(images)} and {len(test_images)} images, fewer than "
            f"{sizes.train} + {sizes.valid} and {sizes.test}"
        )
    ends = slice(sizes.train), slice(len(images) - sizes.valid, None)
    for rows in ends:
        yield _smaller(images[rows], sizes.side), labels[rows]
    yield _smaller(test_images[: sizes.test], sizes.side), test_labels[: sizes.test]


def _idx_pair(folder: Path, part: str) -> _Labelled:
    return (
        _read_idx(folder / f"{part}-images-idx3-ubyte.gz"),
        _read_idx(folder / f"{part}-labels-idx1-ubyte.gz"),
    )


def _read_idx(path: Path) -> np.ndarray:
    """An idx file of bytes: two zeros, a type, the number of axes, their lengths, the values."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist())
    return np.frombuffer(content, np.uint8, prod(shape), 4 + 4 * axes).reshape(shape)


def _smaller(images: np.ndarray, side: int) -> np.ndarray:
    """Images whose pixels are means over squares."""
    factor, rest = divmod(images.shape[1], side)
    if rest:
        raise SystemExit(f"images of {images.shape[1]} pixels do not divide into {side}")
    split = images.reshape(len(images), side, factor, side, factor)
    return split.astype(np.float32).mean(axis=(2, 4))


def _glyphs(sizes: Sizes) -> Iterator[_Labelled]:
    for stream, count in enumerate((sizes.train, sizes.valid, sizes.test)):
        rng = np.random.default_rng([2024, stream])
        labels = rng.integers(0, len(CHARACTERS), count)
        yield np.stack([_glyph(CHARACTERS[i], sizes.side, rng) for i in labels]), labels


def _glyph(character: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """A character as a camera might see it, (side, side)."""
    canvas = Image.new("L", (_CANVAS, _CANVAS), 0)
    font = _font(rng.choice(_FONTS), int(rng.integers(32, 48)))
    middle = tuple(_CANVAS / 2 + rng.uniform(-5, 5, 2))
    ImageDraw.Draw(canvas).text(middle, character, fill=255, font=font, anchor="mm")
    angle, slant = np.deg2rad(rng.normal(0, 11)), rng.normal(0, 0.12)
    stretch = np.exp(rng.normal(0, 0.1))
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turned @ np.array([[stretch, slant], [0.0, 1 / stretch]])
    shift = _CANVAS / 2 * (1 - matrix.sum(axis=1))
    data = (*matrix[0], shift[0], *matrix[1], shift[1])
    canvas = canvas.transform(
        canvas.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    ).resize((side, side), Image.Resampling.BOX)
    ink, paper = rng.uniform(120, 255), rng.uniform(0, 90)
    grey = paper + np.asarray(canvas, np.float32) / 255 * (ink - paper)
    return np.clip(grey + rng.normal(0, NOISE, grey.shape), 0, 255)


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of the package matplotlib, which is not imported for it."""
    package = find_spec("matplotlib")
    if package is None or package.origin is None:
        raise SystemExit("the fonts come with matplotlib: pip install 'onnxprune[demo]'")
    path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
