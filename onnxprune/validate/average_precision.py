"""Mean average precision of detectors, as COCO defines it.

pycocotools finds out which boxes are hits, image by image. What follows, the precision over all
images, is done here, since its own has no way to count an image more than once, which the bootstrap
needs.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.errors import DataError, MissingDependencyError
from onnxprune.validate.detections import Detections, DetectorOutputs
from onnxprune.validate.task_metrics import Weighing

MOST_DETECTIONS = 100
"""Boxes of a class in an image that count, as in COCO's evaluation."""

_CLASS_ENTRIES = 100
"""A class takes as long as so many boxes more."""
_RECALLS = np.linspace(0, 1, 101)
_EPSILON = np.spacing(1)
_THRESHOLDS = {"map": tuple(np.linspace(0.5, 0.95, 10)), "map50": (0.5,)}
NAMES = tuple(_THRESHOLDS)


@dataclass(frozen=True, eq=False)
class _Image:
    """What one image adds.

    Attributes:
        labels: Classes of its boxes, `(boxes,)`, the highest score of each class first.
        scores: `(boxes,)`.
        hits: Whether a box meets a target, `(thresholds, boxes)`.
        targets: Classes of its targets, `(targets,)`.
    """

    labels: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Average precision at 101 recalls, averaged over classes with targets and over thresholds.

    A threshold is the intersection over union from which on a box meets a target: 0.50, 0.55 to
    0.95 (`map`), or 0.50 (`map50`). Lin et al. 2014, "Microsoft COCO", arXiv:1405.0312.

    Attributes:
        name: `map` or `map50`.
        outputs: How the model's outputs become boxes.
    """

    name: str = "map"
    outputs: DetectorOutputs = field(default_factory=DetectorOutputs)
    whole_calls: bool = True

    def rows(self, outputs: Mapping[str, np.ndarray], targets: np.ndarray | None) -> np.ndarray:
        """See `TaskMetric`; an object for each sample.

        Args:
            outputs: What one call gave, with whatever fills its batch up.
            targets: `(samples, boxes, 5)`: x1, y1, x2, y2 and class of each box, in the coordinates
                of the model's boxes; rows of class -1 fill samples up.

        Raises:
            DataError: Outputs or targets do not fit.
            MissingDependencyError: pycocotools is not installed.
        """
        checked = _checked(targets, self.name)
        found = self.outputs.read(outputs, len(checked))
        if len(found) != len(checked):
            raise DataError(
                f"the metric {self.name} does not fit the model's outputs",
                got=f"boxes of {len(found)} samples",
                expected=f"of {len(checked)}",
            )
        return self.judged(found, [rows[rows[:, 4] >= 0] for rows in checked])

    def judged(self, found: Sequence[Detections], targets: Sequence[np.ndarray]) -> np.ndarray:
        """An object for each sample, as `rows` gives them.

        Args:
            found: Boxes of each sample.
            targets: x1, y1, x2, y2 and class of the targets of each sample, `(boxes, 5)`.

        Raises:
            MissingDependencyError: pycocotools is not installed.
        """
        images = np.empty(len(found), dtype=object)
        images[:] = _matched(found, targets, _THRESHOLDS[self.name])
        return images

    def weighing(self, rows: np.ndarray) -> Weighing:
        """See `TaskMetric`."""
        classes = np.unique(np.concatenate([image.targets for image in rows] or [np.zeros(0)]))
        tables = [_Class.gather(rows, label) for label in classes]

        def value(counts: np.ndarray) -> float:
            values = [table.average_precision(counts) for table in tables]
            known = [one for one in values if one is not None]
            return float(np.mean(known)) if known else float("nan")

        return Weighing(value, sum(len(table.images) + _CLASS_ENTRIES for table in tables))


@dataclass(frozen=True, eq=False)
class _Class:
    """All boxes of one class, the highest score first.

    Attributes:
        images: Image of each box, `(boxes,)`.
        hits: `(thresholds, boxes)`.
        targets: Targets in each image, `(images,)`.
    """

    images: np.ndarray
    hits: np.ndarray
    targets: np.ndarray

    @classmethod
    def gather(cls, rows: np.ndarray, label: int) -> "_Class":
        """Those of one class in all images."""
        own = [image.labels == label for image in rows]
        scores = np.concatenate([image.scores[at] for image, at in zip(rows, own, strict=True)])
        order = np.argsort(-scores, kind="stable")
        images = np.repeat(np.arange(len(rows)), [int(at.sum()) for at in own])
        hits = [image.hits[:, at] for image, at in zip(rows, own, strict=True)]
        return cls(
            images[order],
            np.concatenate(hits, axis=1)[:, order],
            np.array([int((image.targets == label).sum()) for image in rows]),
        )

    def average_precision(self, counts: np.ndarray) -> float | None:
        """Mean over thresholds, where image i counts `counts[i]` times; None without a target."""
        targets = float(counts @ self.targets)
        if not targets:
            return None
        times = counts[self.images]
        true = np.cumsum(self.hits * times, axis=1)
        precision = true / (np.cumsum(times) + _EPSILON)
        best = np.zeros((len(true), len(times) + 1))  # 0 from the highest recall on
        best[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        needed = np.searchsorted(np.arange(targets + 1) / targets, _RECALLS)
        # One search for all thresholds: whole numbers of hits, kept apart row by row.
        apart = (targets + 1) * np.arange(len(true))[:, None]
        at = np.searchsorted((true + apart).ravel(), (needed + apart).ravel())
        rows = np.repeat(np.arange(len(true)), len(_RECALLS))
        return float(best[rows, at - rows * len(times)].mean())


def _checked(targets: np.ndarray | None, name: str) -> np.ndarray:
    if targets is None or targets.ndim != 3 or targets.shape[2] != 5:
        raise DataError(
            f"the metric {name} does not fit the data",
            got="no targets" if targets is None else f"{targets.dtype.name}{list(targets.shape)}",
            expected="targets (boxes, 5) for each sample: x1, y1, x2, y2, class, with class -1 in "
            "rows that only fill it up",
        )
    real = targets[targets[..., 4] >= 0]
    if (real[:, 2:4] < real[:, :2]).any() or (real[:, 4] % 1 != 0).any():
        wrong = (real[:, 2:4] < real[:, :2]).any(axis=1) | (real[:, 4] % 1 != 0)
        raise DataError(
            "a target is no box",
            got=real[wrong][0].tolist(),
            expected="x1, y1, x2, y2, class with x1 <= x2, y1 <= y2 and a whole number as class",
            remedy="give two corners, not the width and height",
        )
    return targets.astype(np.float64)


def _matched(
    found: Sequence[Detections], targets: Sequence[np.ndarray], thresholds: tuple[float, ...]
) -> list[_Image]:
    """Which boxes are hits, by pycocotools."""
    truth, boxes = [], []
    for image, (rows, own) in enumerate(zip(targets, found, strict=True)):
        truth += [_annotation(image, row[:4], row[4]) for row in rows]
        boxes += [
            {**_annotation(image, box, label), "score": float(score)}
            for box, label, score in zip(own.boxes, own.labels, own.scores, strict=True)
        ]
    judged = _judge(len(found), truth, boxes, thresholds)
    return [
        _image(judged[image], rows[:, 4].astype(np.int64), len(thresholds))
        for image, rows in enumerate(targets)
    ]


def _annotation(image: int, box: np.ndarray, label: float) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box)
    width, height = max(x2 - x1, 0.0), max(y2 - y1, 0.0)
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def _judge(
    images: int,
    truth: list[dict[str, Any]],
    boxes: list[dict[str, Any]],
    thresholds: tuple[float, ...],
) -> list[list[dict[str, Any]]]:
    """What pycocotools finds for each image and class with boxes or targets."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise MissingDependencyError("pycocotools", "detection", "the metric map") from None
    labels = sorted({item["category_id"] for item in [*truth, *boxes]})
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        for items in (truth, boxes):
            side = COCO()
            side.dataset = {
                "images": [{"id": image} for image in range(images)],
                "categories": [{"id": label} for label in labels],
                # 0 would stand for "no target" where hits are told.
                "annotations": [{**item, "id": n} for n, item in enumerate(items, start=1)],
            }
            side.createIndex()
            sides.append(side)
        run = COCOeval(*sides, iouType="bbox")
        run.params.iouThrs = np.array(thresholds)
        run.params.areaRng, run.params.areaRngLbl = [[0, np.inf]], ["all"]
        run.params.maxDets = [MOST_DETECTIONS]
        run.evaluate()
    result: list[list[dict[str, Any]]] = [[] for _ in range(images)]
    for judged in run.evalImgs:
        if judged is not None:
            result[judged["image_id"]].append(judged)
    return result


def _image(judged: list[dict[str, Any]], targets: np.ndarray, thresholds: int) -> _Image:
    counts = [len(one["dtScores"]) for one in judged]
    labels = np.repeat([one["category_id"] for one in judged], counts).astype(np.int64)
    scores = np.array([score for one in judged for score in one["dtScores"]], dtype=np.float64)
    hits = [one["dtMatches"] > 0 for one in judged]
    matched = np.concatenate([np.zeros((thresholds, 0), dtype=bool), *hits], axis=1)
    return _Image(labels, scores, matched, targets)
