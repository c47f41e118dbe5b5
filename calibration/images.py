"""Folders of images: decoding, class folders, and what the preprocessing leaves open.

Decoding: EXIF orientation is ignored (as by torchvision's `ImageFolder` and Pillow itself), so the
pixels are those that training pipelines saw; of an animated image the first frame counts. See
`preprocess.to_mode` for transparency, palettes and 16-bit images.
"""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from onnxprune.calibration.fit import CONTINUE, cast, check_array, check_label, label_count
from onnxprune.calibration.preprocess import output_shape, preprocess_image, to_mode
from onnxprune.calibration.samples import Sample, Samples
from onnxprune.errors import DataError
from onnxprune.model import ValueSpec
from onnxprune.recipe import Preprocess

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
"""Pillow is held to these, so a renamed file never reaches one of its rarer parsers."""

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before they are decoded (Pillow's own warning level)."""


class ImageSamples(Samples):
    """Base of readers whose samples are images for one graph input."""

    def __init__(
        self, name: str, inputs: Sequence[ValueSpec], preprocess: Preprocess | None
    ) -> None:
        self.name = name
        self.input, self.preprocess = resolve_preprocess(preprocess, inputs, name)

    def raw_image(self, index: int) -> Image.Image:
        """See `Samples.raw_image`."""
        assert self.preprocess is not None
        index = self._position(index)
        return to_mode(self._image(index), self.preprocess)

    def image_sample(self, index: int, image: Image.Image) -> Sample:
        """See `Samples.image_sample`."""
        return self._preprocessed(self._position(index), image)

    def _sample(self, index: int) -> Sample:
        return self._preprocessed(index, self._image(index))

    def _preprocessed(self, index: int, image: Image.Image) -> Sample:
        assert self.preprocess is not None
        where = self._where(index)
        try:
            array = preprocess_image(image, self.preprocess)
        except DataError as error:
            raise DataError(
                error.what,
                where=where,
                got=error.got,
                expected=error.expected,
                remedy=error.remedy,
            ) from None
        check_array(array.shape, array.dtype, _as_float(self.input), where)
        return Sample({self.input.name: cast(array, self.input, where)}, self._label(index))

    @abstractmethod
    def _image(self, index: int) -> Image.Image:
        """The decoded image."""

    @abstractmethod
    def _where(self, index: int) -> str:
        """How messages name this sample."""


class ImageFolder(ImageSamples):
    """Image files with one label each, or none.

    Args:
        root: The folder, for messages.
        files: Image files.
        labels: One class index a file, or None for unlabelled images.
        classes: Class names.
        inputs: The model's inputs.
        preprocess: From image to input.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        classes: list[str] | None,
        inputs: Sequence[ValueSpec],
        preprocess: Preprocess | None,
    ) -> None:
        super().__init__(str(root), inputs, preprocess)
        self.root = root
        self.files = list(files)
        self.labels = None if labels is None else list(labels)
        self.classes = classes

    @property
    def labelled(self) -> bool:
        """Whether the folder has class folders."""
        return self.labels is not None

    def _count(self) -> int:
        return len(self.files)

    def _label(self, index: int) -> int | None:
        return None if self.labels is None else self.labels[index]

    def _where(self, index: int) -> str:
        return str(self.files[index])

    def check_present(self) -> None:
        """See `Samples.check_present`."""
        if not self.root.is_dir():
            raise DataError("the data are gone", where=self.root, remedy=CONTINUE)

    def _image(self, index: int) -> Image.Image:
        return decode_image(self.files[index])

    def _fingerprint(self, index: int) -> bytes:
        try:
            with self.files[index].open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise _unreadable(self.files[index], error) from None


def open_image_folder(
    root: Path,
    inputs: Sequence[ValueSpec],
    preprocess: Preprocess | None,
    classes: list[str] | None,
    num_classes: int | None,
) -> ImageFolder:
    """Read a folder of class folders, or a flat folder of unlabelled images.

    `classes` says nothing of a flat folder: training may be unlabelled where evaluation is not.

    A class folder's images may lie in folders within it. Without `classes`, classes are the folder
    names in sorted order, and their number must be the model's, since a missing folder would shift
    the labels of all that follow. With `classes`, exactly the named folders must exist; one may be
    empty, and they may be fewer than the model's outputs.

    Raises:
        DataError: No images, or the folders do not fit the classes.
    """
    folders = sorted(entry.name for entry in _entries(root) if entry.is_dir())
    loose = sorted(entry.name for entry in _entries(root) if _is_image(entry.name))
    files = {name: _images_below(root / name) for name in folders}
    if loose and any(files.values()):
        raise DataError(
            "the folder holds both images and class folders",
            where=root,
            got=f"{len(loose)} images beside the folders {_listed(folders)}",
            expected="class folders (labelled), or images alone (unlabelled)",
        )
    if not loose and not any(files.values()):
        raise DataError(
            "the folder holds no images",
            where=root,
            expected=f"files ending in {', '.join(sorted(EXTENSIONS))}",
        )
    if loose:
        return ImageFolder(root, [root / n for n in loose], None, None, inputs, preprocess)
    ordered = _class_order(root, folders, classes, label_count(num_classes))
    labels = [label for label, name in enumerate(ordered) for _ in files[name]]
    paths = [path for name in ordered for path in files[name]]
    return ImageFolder(root, paths, labels, ordered, inputs, preprocess)


def _class_order(
    root: Path, folders: list[str], classes: list[str] | None, count: int | None
) -> list[str]:
    if classes is None:
        if count is not None and len(folders) != count:
            raise DataError(
                "the number of class folders differs from the model's classes",
                where=root,
                got=f"{len(folders)} folders: {_listed(folders)}",
                expected=f"{count} classes",
                remedy="name the folders in the order of the model's outputs in [data] classes",
            )
        return folders
    if len(set(classes)) != len(classes):
        raise DataError("[data] classes names a class twice", got=_listed(classes))
    missing = [name for name in classes if name not in folders]
    extra = [name for name in folders if name not in classes]
    if missing or extra:
        raise DataError(
            "the class folders differ from [data] classes",
            where=root,
            got=f"missing: {_listed(missing)}; not named there: {_listed(extra)}",
            expected=f"exactly the folders {_listed(classes)}",
        )
    if count is not None:
        check_label(len(classes) - 1, count, f"[data] classes, class {classes[-1]!r}")
    return classes


def _listed(names: Sequence[str], most: int = 10) -> str:
    text = ", ".join(repr(name) for name in names[:most]) or "none"
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def _entries(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return [entry for entry in entries if not entry.name.startswith((".", "__"))]
    except OSError as error:
        raise _unreadable(root, error) from None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _images_below(folder: Path) -> list[Path]:
    """Image files in a folder and the folders within it, sorted by relative path."""
    found = [
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if _is_image(name) and not name.startswith(".")
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def decode_image(path: Path) -> Image.Image:
    """Decode an image file, in its own mode.

    Raises:
        DataError: The file is missing, damaged, no image of a known format, or too large.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            "the image is too large",
            where=path,
            expected=f"at most {MAX_PIXELS} pixels",
            remedy="resize the image, or remove it",
        ) from None
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged bytes
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        "the folder cannot be read" if path.is_dir() else "the image cannot be read",
        where=path,
        got=error,
        remedy="repair or remove it",
    )


def resolve_preprocess(
    preprocess: Preprocess | None, inputs: Sequence[ValueSpec], where: object
) -> tuple[ValueSpec, Preprocess]:
    """Find the image input, and fill in from the model what `preprocess` does not say.

    Where not set: `layout` and `color` follow the input's channel axis; `scale` is 1 for an integer
    input. Without `resize` and `crop` images are resized to the input's height and width: a
    square one by the short side and a centre crop, another one exactly. With a short-side
    `resize` alone, the centre crop follows the input.

    Returns:
        The image input and the complete preprocessing.

    Raises:
        DataError: No single image input, an unknown size, or a shape or type that does not fit.
    """
    given = preprocess or Preprocess()
    spec = _image_input(given.input, inputs, where)
    values: dict[str, Any] = given.model_dump(include=set(given.model_fields_set))
    channel_axis = {"NCHW": 1, "NHWC": 3}
    shape = spec.shape or (None, None, None, None)
    if "layout" not in values and shape[1] not in (1, 3) and shape[3] in (1, 3):
        values["layout"] = "NHWC"
    layout = values.get("layout", given.layout)
    if "color" not in values and shape[channel_axis[layout]] == 1:
        values["color"] = "L"
    integer = spec.dtype is not None and spec.dtype.kind in "iu"
    if "scale" not in values and integer:
        values["scale"] = 1.0
    height, width = shape[2:4] if layout == "NCHW" else shape[1:3]
    values |= _sizes(given, height, width, spec, where)
    try:
        complete = Preprocess.model_validate(values)
    except ValidationError as error:
        raise DataError(
            "[preprocess] does not fit the model",
            where=where,
            got="; ".join(item["msg"] for item in error.errors(include_url=False)),
            expected=spec.describe(),
        ) from None
    if integer and (complete.scale, set(complete.mean), set(complete.std)) != (1, {0}, {1}):
        raise DataError(
            "the model takes integer pixels, which cannot be scaled or normalised",
            where=f"{where}, input {spec.name!r}",
            got=f"scale {complete.scale}, mean {complete.mean}, std {complete.std}",
            expected=f"scale 1, mean 0, std 1 for {spec.describe()}",
            remedy="leave scale, mean and std out of [preprocess]",
        )
    check_array(output_shape(complete), np.dtype(np.float32), _as_float(spec), where)
    return spec, complete


def _image_input(name: str | None, inputs: Sequence[ValueSpec], where: object) -> ValueSpec:
    described = ", ".join(f"{spec.name!r} {spec.describe()}" for spec in inputs)
    named = [spec for spec in inputs if spec.name == name]
    if name is not None and not named:
        raise DataError(
            "[preprocess] input names no input of the model", got=repr(name), expected=described
        )
    if len(inputs) != 1:
        raise DataError(
            "images fill one input, but the model has several",
            where=where,
            got=described,
            remedy="give the samples as .npz, or by python:package.module:function",
        )
    spec = inputs[0]
    if spec.shape is not None and len(spec.shape) != 4:
        raise DataError(
            "the model's input takes no images",
            where=f"{where}, input {spec.name!r}",
            got=spec.describe(),
            expected="4 axes: batch, channels, height, width in either layout",
            remedy="give the samples as .npz, or by python:package.module:function",
        )
    return spec


def _sizes(
    given: Preprocess,
    height: int | str | None,
    width: int | str | None,
    spec: ValueSpec,
    where: object,
) -> dict[str, Any]:
    """The `resize` and `crop` that `given` leaves open."""
    static = isinstance(height, int) and isinstance(width, int)
    if given.crop is not None or isinstance(given.resize, tuple):
        return {}
    if given.resize is not None:
        return {"crop": (height, width)} if static else {}
    if not static:
        raise DataError(
            "the size of the images is not known",
            where=f"{where}, input {spec.name!r}",
            got=f"{spec.describe()}, and neither resize nor crop in [preprocess]",
            remedy="set [preprocess] resize (and crop)",
        )
    if height == width:
        return {"resize": height, "crop": (height, width)}
    return {"resize": (height, width)}


def _as_float(spec: ValueSpec) -> ValueSpec:
    """The input as far as shapes matter: preprocessing makes float32, `cast` does the rest."""
    return ValueSpec(spec.name, None, spec.shape)
