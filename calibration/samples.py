"""Samples: a finite, indexable set of preprocessed model inputs, labelled or not.

A reader subclasses `Samples`; everything else (subsets, held-out splits, the content digest,
batches) is written once, here, against that class.
"""

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from onnxprune.errors import DataError
from onnxprune.recipe import Preprocess
from onnxprune.stacking import Padding


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        inputs: Graph input name -> array without the batch axis, in the graph input's dtype.
        label: Class index, or an array of targets, or None for an unlabelled sample.
    """

    inputs: Mapping[str, np.ndarray]
    label: int | np.ndarray | None


class Samples(ABC):
    """A set of samples in a fixed order.

    Attributes:
        name: How messages name the set.
        classes: Class names in the order of the labels, where they are known.
        preprocess: The preprocessing in effect, with everything that was left open filled in from
            the model; None for data that are not images.
        padding: How samples of different lengths become one batch; None where they must not differ.
        varies: Whether a sample is another one each time it is read, as far as a few of them tell.
    """

    name: str
    classes: list[str] | None = None
    preprocess: Preprocess | None = None
    padding: Padding | None = None
    varies: bool = False

    def __len__(self) -> int:
        """Number of samples."""
        return self._count()

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; negative indices count from the end.

        Raises:
            IndexError: No such sample.
            DataError: The sample is damaged or does not fit the model.
        """
        return self._sample(self._position(index))

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self[index] for index in range(len(self)))

    @property
    @abstractmethod
    def labelled(self) -> bool:
        """Whether every sample has a label."""

    def label(self, index: int) -> int | np.ndarray | None:
        """Label or targets of sample `index`, without reading its inputs where the reader can."""
        return self._label(self._position(index))

    def raw_image(self, index: int) -> Image.Image | None:
        """The decoded image of sample `index` in the colour mode of the preprocessing (RGB or L).

        It is neither resized nor cropped: training puts its augmentations between this and
        `preprocess.to_array`. None where the samples are no images.
        """
        self._position(index)
        return None

    def image_sample(self, index: int, image: Image.Image) -> Sample:
        """Sample `index` with another image in the place of its own, preprocessed.

        Raises:
            DataError: The samples are no images, or this one does not fit the model.
        """
        raise DataError("the samples are no images", where=self.name, got=type(self).__name__)

    def check_present(self) -> None:
        """Tell whether the data as a whole are still there, when a sample cannot be read.

        Raises:
            DataError: They are gone.
        """
        return

    def place(self, index: int) -> str:
        """Where a sample comes from, for messages."""
        return f"{self.name}, sample {self._position(index)}"

    def digest(self) -> str:
        """SHA-256 (hex) of the content: every sample before preprocessing, the labels, the order.

        It depends on no path, file name, time or storage form (`np.savez` or
        `np.savez_compressed`, one shard or many); it reads all data once. Of samples that vary it
        covers those that fixed seeds give.
        """
        total = hashlib.sha256(b"onnxprune-samples-1\0")
        total.update(len(self).to_bytes(8, "little"))
        for index in range(len(self)):
            label = self._label(index)
            total.update(self._fingerprint(index))
            total.update(_label_bytes(label))
        return total.hexdigest()

    @property
    def locality(self) -> np.ndarray | None:
        """Storage group of each sample, `(len(self),)`, where reading across groups is slow.

        None where any sample is read as fast as any other. `shuffled_order` makes use of it.
        """
        return None

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.name}")
        return position

    @abstractmethod
    def _count(self) -> int: ...

    @abstractmethod
    def _sample(self, index: int) -> Sample: ...

    @abstractmethod
    def _label(self, index: int) -> int | np.ndarray | None: ...

    @abstractmethod
    def _fingerprint(self, index: int) -> bytes:
        """SHA-256 of one sample's content before preprocessing, without its label."""


def _label_bytes(label: int | np.ndarray | None) -> bytes:
    if isinstance(label, np.ndarray):
        return b"*" + array_fingerprint({"label": label})
    return b"-" if label is None else b"+" + label.to_bytes(8, "little", signed=True)


def array_fingerprint(arrays: Mapping[str, np.ndarray]) -> bytes:
    """SHA-256 over names, dtypes, shapes and little-endian values of arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}\0{little.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.digest()


class Subset(Samples):
    """Some samples of another set, in the order of `indices`."""

    def __init__(self, base: Samples, indices: Iterable[int], name: str | None = None) -> None:
        self.base = base
        self.indices = np.fromiter((base._position(index) for index in indices), dtype=np.int64)
        self.name = name or f"{len(self.indices)} of {base.name}"
        self.classes = base.classes
        self.preprocess = base.preprocess
        self.padding = base.padding
        self.varies = base.varies

    @property
    def labelled(self) -> bool:
        """Whether the base is labelled."""
        return self.base.labelled

    @property
    def locality(self) -> np.ndarray | None:
        """Storage groups of the chosen samples."""
        groups = self.base.locality
        return None if groups is None else groups[self.indices]

    def raw_image(self, index: int) -> Image.Image | None:
        """See `Samples.raw_image`."""
        return self.base.raw_image(int(self.indices[self._position(index)]))

    def place(self, index: int) -> str:
        """Where a sample of the base comes from."""
        return self.base.place(int(self.indices[self._position(index)]))

    def image_sample(self, index: int, image: Image.Image) -> Sample:
        """See `Samples.image_sample`."""
        return self.base.image_sample(int(self.indices[self._position(index)]), image)

    def check_present(self) -> None:
        """See `Samples.check_present`."""
        self.base.check_present()

    def _count(self) -> int:
        return len(self.indices)

    def _sample(self, index: int) -> Sample:
        return self.base._sample(int(self.indices[index]))

    def _label(self, index: int) -> int | np.ndarray | None:
        return self.base._label(int(self.indices[index]))

    def _fingerprint(self, index: int) -> bytes:
        return self.base._fingerprint(int(self.indices[index]))


def class_order_note(classes: Sequence[str], limit: int = 12) -> str:
    """How sorted class folders were taken for the model's outputs, so that a person can check."""
    pairs = ", ".join(f"{index} = {name}" for index, name in enumerate(classes[:limit]))
    rest = f" and {len(classes) - limit} more" if len(classes) > limit else ""
    return (
        f"class folders in sorted order are the model's outputs: {pairs}{rest}; "
        "name them in [data] classes if that is wrong"
    )


def subset(samples: Samples, indices: Iterable[int]) -> Samples:
    """The samples at `indices`, in that order.

    Raises:
        IndexError: An index is out of range.
    """
    return Subset(samples, indices)


def split_holdout(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Split into (training, held-out), stratified by label where there are labels.

    round(fraction * N) samples are held out, at least one, and never all; each class gives its
    proportional share, to within one sample. The same samples, fraction and seed give the same
    split. Both parts keep the original order.

    Args:
        samples: At least two.
        fraction: Held-out share in (0, 1).
        seed: Seed of the draw.

    Raises:
        DataError: Fewer than two samples.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` (={fraction}) must lie in (0, 1)")
    if len(samples) < 2:
        raise DataError(
            "too few samples to hold some out",
            where=samples.name,
            got=f"{len(samples)} samples",
            expected="at least 2",
            remedy="add samples, or name a second data set for evaluation",
        )
    count = min(max(round(fraction * len(samples)), 1), len(samples) - 1)
    chosen = draw(samples, count, seed)
    rest = np.setdiff1d(np.arange(len(samples)), chosen)
    return (
        Subset(samples, rest, f"{samples.name} (without the held-out part)"),
        Subset(samples, chosen, f"{samples.name} (held-out part)"),
    )


def draw(samples: Samples, count: int, seed: int) -> np.ndarray:
    """Ascending indices of `count` samples, drawn without replacement, stratified by label."""
    rng = np.random.default_rng(seed)
    if not samples.labelled or isinstance(samples.label(0), np.ndarray):
        return np.sort(rng.permutation(len(samples))[:count])
    labels = np.array([samples.label(index) for index in range(len(samples))])
    members = [np.flatnonzero(labels == value) for value in np.unique(labels)]
    quotas = _apportion([len(group) for group in members], count)
    picks = [rng.permutation(group)[:quota] for group, quota in zip(members, quotas, strict=True)]
    return np.sort(np.concatenate(picks))


def _apportion(sizes: Sequence[int], count: int) -> list[int]:
    """Split `count` in proportion to `sizes` (largest remainders; ties to the larger class)."""
    total = sum(sizes)
    exact = [size * count / total for size in sizes]
    quotas = [int(value) for value in exact]
    order = sorted(range(len(sizes)), key=lambda i: (quotas[i] - exact[i], -sizes[i], i))
    for index in order[: count - sum(quotas)]:
        quotas[index] += 1
    return quotas


def shuffled_order(samples: Samples, rng: np.random.Generator) -> np.ndarray:
    """A random order of all samples for one epoch, `(len(samples),)`.

    Uniform over all orders, except where `samples.locality` says that jumping is slow (compressed
    shards larger than the cache): then the groups are shuffled, and the samples within each.
    """
    groups = samples.locality
    if groups is None:
        return rng.permutation(len(samples))
    return np.concatenate(
        [
            rng.permutation(np.flatnonzero(groups == group))
            for group in rng.permutation(np.unique(groups))
        ]
    )
