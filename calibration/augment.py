"""Random changes of training images, as the recipe states them: torchvision's transforms.

They come between the decoded image and the preprocessing, so what follows is the same code as
everywhere else. What is drawn depends on seed, epoch and sample alone: not on how many processes
read, and not on where a run was resumed.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from onnxprune.calibration.samples import Sample, Samples
from onnxprune.errors import MissingDependencyError, UsageError

_KEY = "[augment] transforms"
_REFUSED = ("Lambda", "Transform")
"""One runs code, the other does nothing."""


class Augmentation:
    """Samples as a training epoch sees them.

    Args:
        samples: Samples of images.
        transforms: In order; each names a class of `torchvision.transforms.v2` under `name`, beside
            its keyword arguments.
        seed: Seed of all draws.

    Raises:
        UsageError: There is no such transform, its arguments are wrong, it makes no image, or the
            samples are no images.
        MissingDependencyError: torchvision is not installed.
    """

    def __init__(
        self, samples: Samples, transforms: Sequence[Mapping[str, Any]], seed: int
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.transforms = _make_all(transforms, _KEY)
        if samples.preprocess is None:
            raise UsageError(
                "only images can be augmented",
                where=_KEY,
                got=f"{samples.name}, which are arrays",
                expected="a folder of images, or a torchvision: data set",
                remedy="augment in a python: source, or leave the transforms out",
            )

    def with_seed(self, seed: int) -> "Augmentation":
        """The same changes with other draws."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def __call__(self, index: int, epoch: int) -> Sample:
        """Sample `index` as epoch `epoch` sees it.

        Raises:
            DataError: The sample cannot be read, or does not fit the model when it is changed.
            UsageError: A transform fails, or makes no image.
        """
        import torch

        image = self.samples.raw_image(index)
        seed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            # `torch.manual_seed` would seed those of GPUs too, which training draws from.
            torch.default_generator.manual_seed(int(seed >> np.uint64(1)))
            for transform in self.transforms:
                image = _applied(transform, image)
        assert image is not None
        return self.samples.image_sample(index, image)


def _make_all(entries: Sequence[Mapping[str, Any]], where: str) -> list[Any]:
    return [_make(entry, f"{where}[{number}]") for number, entry in enumerate(entries)]


def _make(entry: Mapping[str, Any], where: str) -> Any:
    """A transform; under `transforms` it may hold others, as `RandomApply` does."""
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingDependencyError("torchvision", "train", _KEY) from error
    name = entry.get("name") if isinstance(entry, Mapping) else None
    kind = getattr(v2, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, v2.Transform)) or name in _REFUSED:
        raise UsageError(
            "there is no such transform",
            where=where,
            got=repr(entry if name is None else name),
            expected="a class of torchvision.transforms.v2, such as RandomHorizontalFlip",
        )
    arguments = {key: value for key, value in entry.items() if key != "name"}
    if isinstance(inner := arguments.get("transforms"), list):
        arguments["transforms"] = _make_all(inner, f"{where}.transforms")
    try:
        return kind(**arguments)
    except Exception as error:  # torchvision checks arguments in many ways
        raise UsageError(
            f"the arguments of {name} are wrong",
            where=where,
            got=f"{arguments}: {error}",
            expected=f"{name}{inspect.signature(kind)}",
        ) from None


def _applied(transform: Any, image: Any) -> Image.Image:
    name = type(transform).__name__
    try:
        changed = transform(image)
    except Exception as error:  # as above
        raise UsageError(
            f"the transform {name} fails on an image",
            where=_KEY,
            got=f"{type(error).__name__}: {error}",
        ) from error
    if not isinstance(changed, Image.Image):
        raise UsageError(
            f"the transform {name} makes no image",
            where=_KEY,
            got=type(changed).__name__,
            expected="an image: conversion to numbers is what [preprocess] says",
            remedy="leave it out",
        )
    return changed
