"""How far a detector finds what another one finds: average precision without labels.

The other's boxes that are likely are the targets, as a person would look at the pictures of both.
A model that gives the same boxes in the same order of scores has 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.validate.average_precision import MOST_DETECTIONS, MeanAveragePrecision
from onnxprune.validate.detections import Detections
from onnxprune.validate.task_metrics import TaskMetric

TARGET_CONF = 0.25
"""Score from which on a box of the reference is a target, as boxes of YOLO are shown by default."""


@dataclass(frozen=True)
class DetectionAgreement:
    """Average precision where the boxes of a reference are the targets.

    Attributes:
        precision: Gives the thresholds of the intersection over union, and how outputs become
            boxes.
        conf: Score from which on a box of the reference is a target, in [0, 1]. Of one class in an
            image the 100 highest are.
    """

    precision: MeanAveragePrecision = field(default_factory=MeanAveragePrecision)
    conf: float = TARGET_CONF

    @classmethod
    def beside(cls, metrics: Sequence[TaskMetric]) -> "DetectionAgreement | None":
        """That of the first metric of detectors; None if there is none."""
        own = (metric for metric in metrics if isinstance(metric, MeanAveragePrecision))
        return next((cls(metric) for metric in own), None)

    def rows(self, found: Sequence[Detections], reference: Sequence[Detections]) -> np.ndarray:
        """What each sample adds to `precision`, `(samples,)` of objects.

        Boxes without an area, which cannot meet any, are left out on both sides.

        Args:
            found: Boxes of each sample.
            reference: Boxes that the reference found in the same samples.
        """
        return self.precision.judged(
            [_with_area(own) for own in found],
            [self._targets(_with_area(own)) for own in reference],
        )

    def value(self, rows: np.ndarray) -> float:
        """The agreement in [0, 1]; NaN where the reference found nothing likely."""
        # COCO adds 2e-16 to denominators, for which full agreement must not fall short of 1
        return round(self.precision.weighing(rows).once(len(rows)), 12)

    def _targets(self, found: Detections) -> np.ndarray:
        """x1, y1, x2, y2 and class, `(boxes, 5)`."""
        likely = np.flatnonzero(found.scores >= self.conf)
        likely = likely[np.argsort(-found.scores[likely], kind="stable")]
        labels = found.labels[likely]
        rank = np.array([int((labels[:at] == label).sum()) for at, label in enumerate(labels)])
        kept = likely[rank < MOST_DETECTIONS] if len(likely) else likely
        return np.concatenate([found.boxes[kept], found.labels[kept][:, None]], axis=1)


def _with_area(found: Detections) -> Detections:
    keep = (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)
    return Detections(found.boxes[keep], found.scores[keep], found.labels[keep])
