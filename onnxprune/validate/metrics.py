"""What is summed up of a model's outputs, batch by batch: class metrics and fidelity.

Pure NumPy. Of each sample one entry is kept, of outputs only sums.
"""

from collections.abc import Mapping

import numpy as np

SQNR_CAP_DB = 200.0
"""Reported where two outputs are equal in every bit, whose ratio would be infinite."""

_SUM_TOLERANCE = 1e-3
_SMALLEST_PROBABILITY = 1e-12


def class_scores(output: np.ndarray) -> np.ndarray | None:
    """Class scores `(N, C)` of an output, with trailing axes of size 1 removed, or None.

    Floats `(N,)` become `(N, 1)`: one score for the second of two classes.
    """
    if output.dtype.kind != "f":
        return None
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    if output.ndim == 1:
        output = output[:, None]
    return output if output.ndim == 2 and output.shape[1] else None


class ClassMeter:
    """Class predictions, and their accuracy where there are labels."""

    def __init__(self) -> None:
        self._single: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._predictions: list[np.ndarray] = []
        self._ranks: list[np.ndarray] = []
        self._losses: dict[str, list[np.ndarray]] = {"probabilities": [], "logits": []}
        self._probabilities = True
        self._classes = 0

    def add(self, scores: np.ndarray, labels: np.ndarray | None) -> None:
        """Add `(N, C)` scores and `(N,)` labels in [0, max(C, 2))."""
        scores = scores.astype(np.float64)
        self._classes = scores.shape[1]
        if self._classes == 1:
            self._single.append((scores, labels))
        else:
            self._add(scores, labels)

    def finish(self) -> None:
        """Decide what single scores are, which takes all of them."""
        if not self._single:
            return
        scores = np.concatenate([part for part, _ in self._single])
        labels = [part for _, part in self._single if part is not None]
        self._single = []
        self._add(_two_sided(scores), np.concatenate(labels) if labels else None)

    @property
    def predictions(self) -> np.ndarray | None:
        """Predicted class of each sample, `(N,)`, -1 where the scores are not finite."""
        return np.concatenate(self._predictions) if self._predictions else None

    @property
    def ranks(self) -> np.ndarray | None:
        """Number of classes ranked before the label, `(N,)`; None without labels."""
        return np.concatenate(self._ranks) if self._ranks else None

    @property
    def correct(self) -> np.ndarray | None:
        """Whether each prediction is the label, `(N,)`; None without labels."""
        return None if self.ranks is None else self.ranks == 0

    @property
    def losses(self) -> np.ndarray | None:
        """Cross-entropy of each sample in nats, `(N,)`; None without labels."""
        parts = self._losses["probabilities" if self._probabilities else "logits"]
        return np.concatenate(parts) if parts else None

    def metrics(self) -> dict[str, float]:
        """`top1`, `top5` above 5 classes, and `loss`; nothing without labels."""
        ranks = self.ranks
        if ranks is None:
            return {}
        metrics = {"top1": float((ranks == 0).mean())}
        if self._classes > 5:
            metrics["top5"] = float((ranks < 5).mean())
        losses = self.losses
        if losses is not None:
            metrics["loss"] = float(losses.mean())
        return metrics

    def _add(self, scores: np.ndarray, labels: np.ndarray | None) -> None:
        finite = np.isfinite(scores).all(axis=1)
        sums_to_one = np.abs(scores.sum(axis=1) - 1) <= _SUM_TOLERANCE
        self._probabilities &= bool(((scores >= 0).all(axis=1) & sums_to_one)[finite].all())
        self._predictions.append(np.where(finite, scores.argmax(axis=1), -1))
        if labels is None:
            return
        self._ranks.append(np.where(finite, label_ranks(scores, labels), scores.shape[1] + 5))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            chosen = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
            logits = _log_sum_exp(scores) - chosen
            probabilities = -np.log(np.maximum(chosen, _SMALLEST_PROBABILITY))
        self._losses["logits"].append(logits)
        self._losses["probabilities"].append(probabilities)


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of classes ranked before the label, `(N,)`; of equal scores the lower class leads.

    0 exactly where `argmax` is the label.
    """
    chosen = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > chosen) | ((scores == chosen) & before)).sum(axis=1)


def _log_sum_exp(scores: np.ndarray) -> np.ndarray:
    top = scores.max(axis=1)
    return top + np.log(np.exp(scores - top[:, None]).sum(axis=1))


def _two_sided(scores: np.ndarray) -> np.ndarray:
    """`(N, 2)` of `(N, 1)`: probabilities if all lie in [0, 1], else logits against 0.

    At a threshold of 0.5 or 0 the first class wins, as for equal scores everywhere.
    """
    known = scores[np.isfinite(scores)]
    probabilities = bool(((known >= 0) & (known <= 1)).all())
    other = 1 - scores if probabilities else np.zeros_like(scores)
    return np.concatenate([other, scores], axis=1)


class FidelityMeter:
    """How close outputs stay to a reference's."""

    def __init__(self) -> None:
        self._count = 0
        self._cosine = 0.0
        self._signal = 0.0
        self._noise = 0.0
        self._max_abs_error = 0.0
        self._abs_error = 0.0
        self._values = 0

    def add(self, output: np.ndarray, reference: np.ndarray) -> None:
        """Add two outputs `(N, ...)` of the same shape."""
        truth = reference.astype(np.float64).reshape(len(reference), -1)
        values = output.astype(np.float64).reshape(len(output), -1)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = values - truth
            norms = np.linalg.norm(values, axis=1) * np.linalg.norm(truth, axis=1)
            cosines = (values * truth).sum(axis=1) / np.where(norms == 0, 1, norms)
            equal = (values == truth).all(axis=1)
            self._cosine += float(np.where(equal, 1.0, cosines).sum())
            self._signal += float(np.square(truth).sum())
            self._noise += float(np.square(difference).sum())
        if difference.size:
            errors = np.where(values == truth, 0.0, np.abs(difference))
            self._max_abs_error = float(np.maximum(self._max_abs_error, errors.max()))
            self._abs_error += float(errors.sum())
            self._values += errors.size
        self._count += len(values)

    def metrics(self) -> Mapping[str, float]:
        """`cosine`, `sqnr_db`, `mean_abs_error` and `max_abs_error`."""
        if self._noise == 0:
            sqnr_db = SQNR_CAP_DB
        elif self._signal == 0 or np.isposinf(self._noise):
            sqnr_db = -SQNR_CAP_DB
        else:
            sqnr_db = float(10 * np.log10(self._signal / self._noise))
        return {
            "cosine": self._cosine / self._count,
            "sqnr_db": min(sqnr_db, SQNR_CAP_DB),
            "mean_abs_error": self._abs_error / max(1, self._values),
            "max_abs_error": self._max_abs_error,
        }
