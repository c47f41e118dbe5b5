"""Boxes that a detector found, read from the ways in which exported models give them.

Known are three:

- `lists`: three outputs, boxes `(boxes, 4)` or `(samples, boxes, 4)`, and scores and labels of the
  same leading axes, as of torchvision and DETR;
- `rows`: one output `(samples, boxes, 6)`, each x1, y1, x2, y2, score, class;
- `raw`: one output `(samples, 4 + classes, anchors)`, centre, width and height and then a score for
  each class, as of YOLO, from which the boxes still have to be chosen: non-maximum suppression
  within each class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from onnxprune.errors import DataError, UsageError

MOST_CANDIDATES = 3000
"""Boxes of one sample that suppression looks at: those with the highest scores."""

Layout = Literal["auto", "lists", "rows", "raw"]
Format = Literal["auto", "x1y1x2y2", "xywh", "cxcywh"]

_CHOICES = {
    "layout": ("auto", "lists", "rows", "raw"),
    "format": ("auto", "x1y1x2y2", "xywh", "cxcywh"),
}


@dataclass(frozen=True)
class Detections:
    """What was found in one sample.

    Attributes:
        boxes: x1, y1, x2, y2, `(boxes, 4)` float64.
        scores: `(boxes,)` float64.
        labels: `(boxes,)` int64.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class DetectorOutputs:
    """How a detector's outputs become boxes.

    Attributes:
        layout: See the module; `auto` tells them apart by number, shapes and types of the outputs.
        format: Of the boxes: two corners, corner and size, or centre and size; `auto` is the centre
            and size of `raw`, else two corners.
        boxes: Output with the boxes; with `scores` and `labels` it makes the layout `lists`.
        scores: Output with the scores.
        labels: Output with the classes.
        output: Output of `rows` and `raw`, where there are others.
        conf: Scores below it are left out.
        nms: Intersection over union above which the lower score of two boxes of one class is left
            out; of `raw` only.
    """

    layout: Layout = "auto"
    format: Format = "auto"
    boxes: str = ""
    scores: str = ""
    labels: str = ""
    output: str = ""
    conf: float = 0.001
    nms: float = 0.7

    @classmethod
    def from_text(cls, values: Mapping[str, str], where: str) -> "DetectorOutputs":
        """From parameters as text.

        Raises:
            UsageError: A parameter is unknown, has a value that is not allowed, or lacks another.
        """
        known = [field.name for field in fields(cls)]
        for key, value in values.items():
            if key not in known:
                raise UsageError(
                    "there is no such parameter of the metric",
                    where=where,
                    got=repr(key),
                    expected=", ".join(known),
                )
            if key in _CHOICES and value not in _CHOICES[key]:
                raise _bad(key, value, ", ".join(_CHOICES[key]), where)
        shares = {key: _share(key, values[key], where) for key in ("conf", "nms") if key in values}
        result = cls(**{**values, **shares})  # type: ignore[arg-type]
        named = [bool(name) for name in (result.boxes, result.scores, result.labels)]
        if any(named) and not all(named):
            raise UsageError(
                "the outputs with boxes, scores and labels are named together",
                where=where,
                got=", ".join(f"{key}={value}" for key, value in values.items()),
                expected="boxes=NAME&scores=NAME&labels=NAME",
            )
        return result

    def read(self, outputs: Mapping[str, np.ndarray], samples: int) -> list[Detections]:
        """The boxes of each sample of one call.

        Boxes and scores that are not finite, scores below `conf` and labels below 0 are left out.

        Args:
            outputs: What the model gave, by name.
            samples: Number of samples that count; the others of the batch only fill it up.

        Raises:
            DataError: The outputs have no known layout, or other shapes than it asks for.
        """
        layout, arrays = self._find(outputs)
        if layout == "lists":
            boxes, scores, labels = arrays
            if boxes.ndim == 2:
                if samples > 1:
                    raise _no_batch_axis(boxes, samples)
                boxes, scores, labels = boxes[None], scores[None], labels[None]
        elif layout == "rows":
            (rows,) = arrays
            boxes, scores, labels = rows[..., :4], rows[..., 4], rows[..., 5]
        else:
            (raw,) = arrays
            return [self._suppressed(one.astype(np.float64)) for one in raw[:samples]]
        corners = _TO_CORNERS["x1y1x2y2" if self.format == "auto" else self.format]
        return [
            self._kept(corners(own.astype(np.float64)), scores[index], labels[index])
            for index, own in enumerate(boxes[:samples])
        ]

    def _kept(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Detections:
        scores = scores.astype(np.float64)
        keep = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & np.isfinite(labels)
        keep &= (scores >= self.conf) & (labels >= 0)
        return Detections(boxes[keep], scores[keep], labels[keep].astype(np.int64))

    def _suppressed(self, raw: np.ndarray) -> Detections:
        """Boxes of one sample, `(4 + classes, anchors)`."""
        finite = np.isfinite(raw).all(axis=0)
        classes, anchors = np.nonzero((raw[4:] >= self.conf) & finite)
        scores = raw[4 + classes, anchors]
        order = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
        classes, anchors, scores = classes[order], anchors[order], scores[order]
        corners = _TO_CORNERS["cxcywh" if self.format == "auto" else self.format]
        boxes = corners(raw[:4].T)[anchors]
        keep = np.zeros(len(scores), dtype=bool)
        for label in np.unique(classes):
            own = np.flatnonzero(classes == label)
            keep[own[suppress(boxes[own], self.nms)]] = True
        return Detections(boxes[keep], scores[keep], classes[keep].astype(np.int64))

    def _find(self, outputs: Mapping[str, np.ndarray]) -> tuple[str, list[np.ndarray]]:
        """The layout, and the outputs that it is about."""
        if self.boxes:
            named = [self._named(outputs, key) for key in (self.boxes, self.scores, self.labels)]
            if not _are_lists(*named):
                raise _unknown(outputs)
            return "lists", named
        if self.layout in ("auto", "lists"):
            for boxes in outputs.values():
                rest = [array for array in outputs.values() if array is not boxes]
                for scores, labels in ((a, b) for a in rest for b in rest if a is not b):
                    integers = labels.dtype.kind in "iu" and scores.dtype.kind == "f"
                    if integers and _are_lists(boxes, scores, labels):
                        return "lists", [boxes, scores, labels]
        if self.layout != "lists" and (self.output or len(outputs) == 1):
            one = self._named(outputs, self.output or next(iter(outputs)))
            if one.ndim == 3 and one.dtype.kind == "f":
                if self.layout in ("auto", "rows") and one.shape[2] == 6:
                    return "rows", [one]
                wide = 4 < one.shape[1] < one.shape[2] or self.layout == "raw"
                if self.layout in ("auto", "raw") and wide and one.shape[1] > 4:
                    return "raw", [one]
        raise _unknown(outputs)

    def _named(self, outputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        if name not in outputs:
            raise DataError(
                "the model has no such output",
                got=repr(name),
                expected=", ".join(map(repr, outputs)),
            )
        return outputs[name]


def suppress(boxes: np.ndarray, most: float) -> np.ndarray:
    """Greedy non-maximum suppression.

    Args:
        boxes: x1, y1, x2, y2, `(boxes, 4)`, the best first.
        most: Intersection over union up to which two boxes may stand beside each other.

    Returns:
        Indices of those that stay, `(kept,)`.
    """
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    left = np.arange(len(boxes))
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        left = left[shared <= most * (areas[best] + areas[left] - shared)]
    return np.array(kept, dtype=np.int64)


def _same(boxes: np.ndarray) -> np.ndarray:
    return boxes


def _from_corner(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _from_centre(boxes: np.ndarray) -> np.ndarray:
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


_TO_CORNERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x1y1x2y2": _same,
    "xywh": _from_corner,
    "cxcywh": _from_centre,
}


def _are_lists(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> bool:
    return (
        boxes.ndim in (2, 3)
        and boxes.shape[-1] == 4
        and boxes.dtype.kind == "f"
        and scores.shape == labels.shape == boxes.shape[:-1]
    )


def _share(key: str, text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise _bad(key, text, "a number in [0, 1]", where)
    return value


def _bad(key: str, value: str, expected: str, where: str) -> UsageError:
    return UsageError(
        "a parameter of the metric is not valid",
        where=where,
        got=f"{key}={value}",
        expected=expected,
    )


def _no_batch_axis(boxes: np.ndarray, samples: int) -> DataError:
    return DataError(
        "the boxes of several samples cannot be told apart",
        got=f"boxes {list(boxes.shape)} of {samples} samples",
        expected=f"[{samples}, boxes, 4]",
        remedy="use a batch size of 1",
    )


def _unknown(outputs: Mapping[str, np.ndarray]) -> DataError:
    return DataError(
        "the model's outputs are no boxes in a known layout",
        got=", ".join(f"{name} {a.dtype.name}{list(a.shape)}" for name, a in outputs.items()),
        expected="boxes (samples, boxes, 4) with scores and integer labels (samples, boxes); one "
        "output (samples, boxes, 6); or one output (samples, 4 + classes, anchors)",
        remedy="name the outputs, as in map?boxes=NAME&scores=NAME&labels=NAME or map?output=NAME, "
        "say which layout=lists, rows or raw it is, or write a python: metric",
    )
