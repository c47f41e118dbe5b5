"""Samples from torchvision's classification sets: `torchvision:NAME?root=FOLDER&train=true`."""

import difflib
import hashlib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from onnxprune.calibration.fit import check_label, label_count
from onnxprune.calibration.images import ImageSamples
from onnxprune.errors import DataError, MissingDependencyError
from onnxprune.model import ValueSpec
from onnxprune.recipe import Preprocess

_OURS = ("transform", "target_transform", "transforms", "loader", "is_valid_file")


class TorchvisionSamples(ImageSamples):
    """A torchvision data set of `(image, class index)` pairs.

    Args:
        name: Class name in `torchvision.datasets`.
        parameters: Its constructor's arguments as text. `true`, `false` and integers are converted;
            nothing is downloaded unless `download=true` is among them.
        inputs: The model's inputs.
        preprocess: From image to input.
        classes: Class names in the order of the model's outputs; labels are renumbered to it.
        num_classes: Number of the model's scores, or None if unknown.

    Raises:
        DataError: No such data set or argument, files missing, or not a classification set.
        MissingDependencyError: torchvision is not installed.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, str],
        inputs: Sequence[ValueSpec],
        preprocess: Preprocess | None,
        classes: list[str] | None,
        num_classes: int | None,
    ) -> None:
        super().__init__(f"torchvision:{name}", inputs, preprocess)
        self._data = _construct(name, parameters)
        if not len(self._data):
            raise DataError("the data hold no samples", where=self.name)
        own = getattr(self._data, "classes", None)
        self.classes = classes or (list(map(str, own)) if own else None)
        self._renumber = _renumbering(self.name, own, classes)
        self._label_count = label_count(num_classes)
        self._labels = self._all_labels()

    @property
    def labelled(self) -> bool:
        """Always true."""
        return True

    def _count(self) -> int:
        return len(self._data)

    def _where(self, index: int) -> str:
        return f"{self.name}, sample {index}"

    def _item(self, index: int) -> tuple[Any, Any]:
        try:
            item = self._data[index]
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise DataError(
                "a sample cannot be read", where=self._where(index), got=error
            ) from error
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image)):
            raise DataError(
                "this is no image classification data set",
                where=self._where(index),
                got=type(item).__name__,
                expected="(image, class index)",
                remedy="write a function for it: python:package.module:function",
            )
        return item

    def _image(self, index: int) -> Image.Image:
        return self._item(index)[0]

    def _all_labels(self) -> list[int] | None:
        """All labels without decoding images, where the data set keeps them in a list."""
        first = self._checked(self._item(0)[1], 0)
        for attribute in ("targets", "labels", "_labels"):
            values = getattr(self._data, attribute, None)
            if isinstance(values, Sequence) or hasattr(values, "__array__"):
                if len(values) != len(self._data):  # type: ignore[arg-type]
                    continue
                labels = [self._checked(value, i) for i, value in enumerate(values)]  # type: ignore[arg-type]
                if labels[0] == first:
                    return labels
        return None

    def _checked(self, label: object, index: int) -> int:
        own = check_label(label, None, self._where(index))
        value = own if self._renumber is None else self._renumber[own]
        return check_label(value, self._label_count, self._where(index))

    def _label(self, index: int) -> int:
        if self._labels is not None:
            return self._labels[index]
        return self._checked(self._item(index)[1], index)

    def _fingerprint(self, index: int) -> bytes:
        image = self._image(index)
        return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()


def _construct(name: str, parameters: Mapping[str, str]) -> Any:
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except ImportError:
        raise MissingDependencyError("torchvision", "train", "a torchvision data set") from None
    names = [entry for entry in datasets.__all__ if inspect.isclass(getattr(datasets, entry))]
    if name not in names:
        raise DataError(
            "torchvision has no such data set",
            got=repr(name),
            expected=_closest(name, names),
        )
    factory = getattr(datasets, name)
    known = [key for key in inspect.signature(factory).parameters if key not in _OURS]
    for key in parameters:
        if key not in known:
            raise DataError(
                f"torchvision's {name} has no such argument",
                got=repr(key),
                expected=f"one of {', '.join(known)}",
            )
    try:
        return factory(**{key: _value(text) for key, text in parameters.items()})
    except Exception as error:  # each data set has errors of its own
        raise DataError(
            f"torchvision's {name} cannot be opened",
            where=parameters.get("root"),
            got=error,
            remedy="check root; download=true fetches data sets that torchvision can fetch",
        ) from error


def _closest(name: str, names: Sequence[str]) -> str:
    lowered = {entry.lower(): entry for entry in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)
    return "perhaps " + ", ".join(lowered[entry] for entry in close) if close else ", ".join(names)


def _value(text: str) -> str | int | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.lstrip("-").isdecimal() else text


def _renumbering(
    where: str, own: Sequence[object] | None, classes: list[str] | None
) -> list[int] | None:
    """Model class index of each of the data set's labels, or None where they are the same."""
    if classes is None or own is None:
        return None
    names = [str(name) for name in own]
    missing = [name for name in names if name not in classes]
    if missing:
        raise DataError(
            "[data] classes leaves out classes of the data set",
            where=where,
            got=f"nothing for {', '.join(map(repr, missing[:10]))}",
            expected=f"all of {', '.join(map(repr, names[:10]))}",
        )
    return [classes.index(name) for name in names]
