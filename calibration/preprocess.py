"""From an image to a model input, with Pillow and NumPy only.

Training and ONNX Runtime go through this same code, so they see the same numbers. Sizes follow
torchvision's `Resize` and `CenterCrop` on Pillow images pixel by pixel, so a model trained with
those meets what it was trained on.
"""

import numpy as np
from PIL import Image

from onnxprune.errors import DataError
from onnxprune.recipe import Preprocess

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


def preprocess_image(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resize, crop and normalise one image.

    Returns:
        float32, `(channels, height, width)` for NCHW, `(height, width, channels)` for NHWC;
        channels is 1 for colour "L", else 3.

    Raises:
        DataError: The image is smaller than the crop, or has no defined value range.
    """
    return to_array(resize_and_crop(to_mode(image, preprocess), preprocess), preprocess)


def to_mode(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The image in mode "L" for colour "L", else in mode "RGB", 8 bits a channel.

    Transparent pixels are laid over white, as viewers show them. 16-bit grey keeps its upper 8
    bits. Colour becomes grey by the ITU-R 601 luma weights.

    Raises:
        DataError: 32-bit integer or float pixels, which have no defined range.
    """
    mode = "L" if preprocess.color == "L" else "RGB"
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        upper = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        image = Image.fromarray(upper.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(
            "the image has no defined value range",
            where=getattr(image, "filename", None) or "image",
            got=f"32-bit pixels (Pillow mode {image.mode!r})",
            expected="8 or 16 bits a channel",
            remedy="convert the image to 8 or 16 bits",
        )
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, layer).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def resize_and_crop(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The geometric part: `resize` (short side, or exact), then the centre `crop`.

    Raises:
        DataError: The image is smaller than the crop.
    """
    if preprocess.resize is not None:
        width, height = image.size
        if isinstance(preprocess.resize, int):
            height, width = short_side_size(height, width, preprocess.resize)
        else:
            height, width = preprocess.resize
        if (width, height) != image.size:
            image = image.resize((width, height), RESAMPLING[preprocess.interpolation])
    if preprocess.crop is None:
        return image
    height, width = pair(preprocess.crop)
    if image.height < height or image.width < width:
        raise DataError(
            "the image is smaller than the crop",
            got=f"{image.height}x{image.width} pixels (height x width)",
            expected=f"at least {height}x{width}",
            remedy="set [preprocess] resize, or a smaller crop",
        )
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def to_array(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """The numeric part: `(pixel * scale - mean) / std`, colour order and layout.

    Args:
        image: Already resized and cropped (and augmented); any mode that `to_mode` takes.
        preprocess: Which numbers and which layout.

    Returns:
        float32, `(channels, height, width)` or `(height, width, channels)`.
    """
    pixels = np.asarray(to_mode(image, preprocess), dtype=np.float32)
    if preprocess.color == "L":
        pixels = pixels[:, :, None]
    elif preprocess.color == "BGR":
        pixels = pixels[:, :, ::-1]
    values = pixels * np.float32(preprocess.scale)
    values -= np.asarray(preprocess.mean, np.float32)
    values /= np.asarray(preprocess.std, np.float32)
    if preprocess.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values)


def short_side_size(height: int, width: int, short: int) -> tuple[int, int]:
    """(height, width) with the short side at `short`, the ratio kept, the long side rounded down.

    This is torchvision's rule for `Resize(short)`.
    """
    if height <= width:
        return short, max(int(short * width / height), short)
    return max(int(short * height / width), short), short


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """A side, or (height, width), as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def output_shape(preprocess: Preprocess) -> tuple[int | None, int | None, int | None]:
    """Shape of what `preprocess_image` returns; None where it depends on the image."""
    height: int | None = None
    width: int | None = None
    if preprocess.crop is not None:
        height, width = pair(preprocess.crop)
    elif isinstance(preprocess.resize, tuple):
        height, width = preprocess.resize
    channels = 1 if preprocess.color == "L" else 3
    if preprocess.layout == "NCHW":
        return channels, height, width
    return height, width, channels
