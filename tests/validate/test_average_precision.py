"""Mean average precision against hand-made cases and against pycocotools itself."""

import contextlib
import io
from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxprune.errors import DataError, MissingDependencyError, UsageError
from onnxprune.validate import evaluate
from onnxprune.validate.average_precision import MeanAveragePrecision
from onnxprune.validate.detection_agreement import DetectionAgreement
from onnxprune.validate.detections import DetectorOutputs, suppress
from onnxprune.validate.difference import resampled
from onnxprune.validate.named_metrics import make_metrics

from .test_accuracy import Row

pytest.importorskip("pycocotools")

FILLING = [0, 0, 0, 0, -1]


def lists(*found: list[tuple[list[float], float, int]]) -> dict[str, np.ndarray]:
    """Outputs from (box, score, label) of each sample."""
    return {
        "boxes": np.array([[box for box, _, _ in own] for own in found], np.float32),
        "scores": np.array([[score for _, score, _ in own] for own in found], np.float32),
        "labels": np.array([[label for _, _, label in own] for own in found], np.int64),
    }


def score(name: str, outputs: dict[str, np.ndarray], targets: Any, **how: Any) -> float:
    metric = MeanAveragePrecision(name, DetectorOutputs(**how))
    rows = metric.rows(outputs, np.array(targets, np.float32))
    return metric.weighing(rows).once(len(rows))


def test_by_hand() -> None:
    """Two targets of one class: a hit at 0.9, a miss at 0.8, a hit at 0.7; another class is missed.

    Class 3: precision 1 up to recall 1/2 (51 of 101 recalls) and 2/3 up to 1 (50 of them).
    The second hit has an intersection of 80 in a union of 100, so that it counts up to 0.8: at 7 of
    10 thresholds.
    """
    outputs = lists(
        [([0, 0, 10, 10], 0.9, 3), ([50, 50, 60, 60], 0.8, 3)],
        [([0, 0, 10, 8], 0.7, 3), ([0, 0, 1, 1], 0.0, 3)],
    )
    targets = [[[0, 0, 10, 10, 3], FILLING], [[0, 0, 10, 10, 3], FILLING]]
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert score("map50", outputs, targets) == pytest.approx(both)
    assert score("map", outputs, targets) == pytest.approx((7 * both + 3 * one) / 10)
    targets[1][1] = [20, 20, 30, 30, 7]
    assert score("map50", outputs, targets) == pytest.approx(both / 2)


def test_images_without_targets_and_without_boxes() -> None:
    nothing = lists([([0, 0, 1, 1], 0.0, 0)])
    assert np.isnan(score("map", nothing, [[FILLING]]))
    assert score("map", nothing, [[[0, 0, 5, 5, 0]]]) == 0
    outputs = lists([([0, 0, 5, 5], 0.9, 0)], [([0, 0, 5, 5], 0.95, 0)])
    targets = [[[0, 0, 5, 5, 0]], [FILLING]]
    assert score("map50", outputs, targets) == pytest.approx(0.5)


def scene(images: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Targets of 4 classes, and boxes near some of them among others, of 5 classes."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 80, (images, 12, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 30, (images, 12, 2))], axis=2)
    labels = rng.integers(0, 5, (images, 12))
    targets = np.full((images, 6, 5), -1.0)
    for image in range(images):
        count = rng.integers(0, 7)
        targets[image, :count, :4] = boxes[image, :count]
        targets[image, :count, 4] = labels[image, :count] % 4
    shaken = (boxes + rng.normal(0, 1.5, boxes.shape)).astype(np.float32)
    shaken[..., 2:] = np.maximum(shaken[..., 2:], shaken[..., :2])
    scores = rng.uniform(0.1, 1, (images, 12)).astype(np.float32)
    return {"boxes": shaken, "scores": scores, "labels": labels}, targets


def directly(outputs: dict[str, np.ndarray], targets: np.ndarray, images: Any) -> Any:
    """AP and AP50 of these images by pycocotools alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: list[dict[str, Any]] = []
    found = []
    for place, image in enumerate(images):
        for x1, y1, x2, y2, label in targets[image]:
            if label >= 0:
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                item = {"id": len(truth) + 1, "image_id": place, "category_id": int(label)}
                truth.append({**item, **box, "iscrowd": 0})
        own = (outputs[name][image].tolist() for name in ("boxes", "scores", "labels"))
        for (x1, y1, x2, y2), value, label in zip(*own, strict=True):
            item = {"image_id": place, "category_id": label, "score": value}
            found.append({**item, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    with contextlib.redirect_stdout(io.StringIO()):
        dense = COCO()
        dense.dataset = {
            "images": [{"id": place} for place in range(len(images))],
            "categories": [{"id": label} for label in range(5)],
            "annotations": truth,
        }
        dense.createIndex()
        run = COCOeval(dense, dense.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[:2]


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_also_on_images_drawn_again(seed: int) -> None:
    outputs, targets = scene(40, seed)
    drawn = np.sort(np.random.default_rng(seed).integers(0, 40, 40))
    for index, name in enumerate(("map", "map50")):
        metric = MeanAveragePrecision(name)
        pieces = [slice(start, start + 7) for start in range(0, 40, 7)]
        rows = np.concatenate(
            [metric.rows({k: v[at] for k, v in outputs.items()}, targets[at]) for at in pieces]
        )
        weighing = metric.weighing(rows)
        expected = directly(outputs, targets, range(40))[index]
        assert weighing.once(40) == pytest.approx(expected, rel=1e-12)
        again = directly(outputs, targets, drawn)[index]
        assert weighing.value(np.bincount(drawn, minlength=40)) == pytest.approx(again, rel=1e-12)


def test_resamples_are_fewer_of_many_boxes() -> None:
    outputs, targets = scene(60)
    metric = MeanAveragePrecision("map50")
    rows = metric.rows(outputs, targets)
    many = np.concatenate([rows] * 30)
    assert len(resampled(metric, rows)) == 2000
    assert 200 <= len(resampled(metric, many)) < 400


RAW = np.array(  # 2 classes, 5 anchors: centre, size, scores
    [
        [10, 10, 10, 30, 30],
        [10, 10, 10, 30, 30],
        [8, 8, 8, 6, 6],
        [8, 8, 7.9, 6, 6],
        [0.9, 0.8, 0.1, 0.0, 0.6],
        [0.2, 0.0, 0.7, 0.0, 0.0],
    ],
    np.float32,
)


def test_raw_heads_are_suppressed_within_each_class() -> None:
    (found,) = DetectorOutputs(layout="raw", conf=0.05).read({"y": RAW[None]}, 1)
    assert found.labels.tolist() == [0, 1, 0]
    assert found.scores == pytest.approx([0.9, 0.7, 0.6])
    assert found.boxes[[0, 2]].tolist() == [[6, 6, 14, 14], [27, 27, 33, 33]]
    (all_of_them,) = DetectorOutputs(layout="raw", conf=0.05, nms=1.0).read({"y": RAW[None]}, 1)
    assert len(all_of_them.scores) == 6
    wide = np.tile(RAW, (2, 1, 3))
    assert [len(one.scores) for one in DetectorOutputs(conf=0.05).read({"y": wide}, 2)] == [3, 3]


def test_suppression_takes_the_best_first() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18]], float)
    # Neighbours share 60 of 140, the outer ones 20 of 180.
    assert suppress(boxes, 0.4).tolist() == [0, 2]
    assert suppress(boxes, 0.43).tolist() == [0, 1, 2]
    assert suppress(boxes, 0.1).tolist() == [0]


@pytest.mark.parametrize(
    ("format_", "box"),
    [("auto", [2, 4, 8, 10]), ("xywh", [2, 4, 6, 6]), ("cxcywh", [5, 7, 6, 6])],
)
def test_rows_and_formats(format_: Any, box: list[float]) -> None:
    outputs = {"y": np.array([[[*box, 0.5, 2], [*box, np.nan, 2], [*box, 0.5, -1]]], np.float32)}
    (found,) = DetectorOutputs(format=format_).read(outputs, 1)
    assert found.boxes.tolist() == [[2, 4, 8, 10]]
    assert found.labels.tolist() == [2]


def test_named_outputs_may_have_labels_that_are_floats() -> None:
    outputs, targets = scene(5)
    renamed = {
        "s": outputs["scores"],
        "l": outputs["labels"].astype(np.float32),
        "b": outputs["boxes"],
    }
    with pytest.raises(DataError, match="known layout"):
        score("map", renamed, targets)
    named = score("map", renamed, targets, boxes="b", scores="s", labels="l")
    assert named == score("map", outputs, targets)


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (lists([([0, 0, 1, 1], 1, 0)]), None, "no targets"),
        (lists([([0, 0, 1, 1], 1, 0)]), np.zeros((1, 3, 4)), r"targets \(boxes, 5\)"),
        (lists([([0, 0, 1, 1], 1, 0)]), [[[5, 5, 2, 2, 0]]], "no box"),
        (lists([([0, 0, 1, 1], 1, 0)]), [[[0, 0, 2, 2, 0.5]]], "no box"),
        ({"y": np.zeros((1, 10, 4), "f")}, [[[0, 0, 2, 2, 0]]], "known layout"),
        ({"y": np.zeros((1, 84, 50), "f")}, [[[0, 0, 2, 2, 0]]], "layout=lists, rows or raw"),
        (
            {"b": np.zeros((3, 4), "f"), "s": np.zeros(3, "f"), "l": np.zeros(3, int)},
            [[[0, 0, 2, 2, 0]]] * 2,
            "batch size of 1",
        ),
    ],
)
def test_what_does_not_fit(outputs: Any, targets: Any, message: str) -> None:
    given = None if targets is None else np.array(targets, np.float32)
    with pytest.raises(DataError, match=message):
        MeanAveragePrecision().rows(outputs, given)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("map?nope=1", "no such parameter"),
        ("map?nms=2", r"number in \[0, 1\]"),
        ("map?conf=x", r"number in \[0, 1\]"),
        ("map?layout=yolo", "auto, lists, rows, raw"),
        ("map?boxes=b", "named together"),
        ("map50?conf", "malformed"),
        ("map75", "no such metric"),
    ],
)
def test_parameters_that_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_metrics([spec])


def test_metrics_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="call of their own"):
        make_metrics(["map", "cer"])
    with pytest.raises(UsageError, match="same name"):
        make_metrics(["map", "map?conf=0.1"])
    names = [metric.name for metric in make_metrics(["map?format=xywh&nms=0.5", "map50"])]
    assert names == ["map", "map50"]


def test_the_package_is_named_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.coco", None)
    with pytest.raises(MissingDependencyError, match=r"onnxprune\[detection\]"):
        score("map", lists([([0, 0, 1, 1], 1, 0)]), [[FILLING]])


DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 8, 6] x) => (float[n, 4] boxes, float[n] scores, int64[n] labels)
<int64[1] zero = {0}, int64[1] four = {4}, int64[1] five = {5}, int64[1] six = {6},
 int64[1] one = {1}, float[1] least = {LEAST}>
{
    flat = Squeeze (x, zero)
    score2 = Slice (flat, four, five, one)
    label2 = Slice (flat, five, six, one)
    likely = Greater (score2, least)
    likely1 = Squeeze (likely, one)
    all_boxes = Slice (flat, zero, four, one)
    boxes = Compress <axis = 0> (all_boxes, likely1)
    score1 = Squeeze (score2, one)
    scores = Compress <axis = 0> (score1, likely1)
    label1 = Squeeze (label2, one)
    label0 = Compress <axis = 0> (label1, likely1)
    labels = Cast <to = 7> (label0)
}
"""


def test_models_that_give_other_numbers_of_boxes() -> None:
    """One of them gives only what is likely: 0 to 8 boxes, and at times exactly one."""
    outputs, targets = scene(60)
    packed = np.concatenate(
        [outputs["boxes"], outputs["scores"][..., None], outputs["labels"][..., None]], axis=2
    )
    samples = [
        Row({"x": packed[image, :8].astype(np.float32)}, targets[image].astype(np.float32))
        for image in range(60)
    ]
    models = [onnx.parser.parse_model(DETECTOR.replace("LEAST", least)) for least in ("0", "0.85")]
    result = evaluate(models, samples, batch_size=8, metrics=make_metrics(["map", "map50"]))
    eight = {name: array[:, :8] for name, array in outputs.items()}
    assert [result.models[0].metrics[name] for name in ("map", "map50")] == pytest.approx(
        directly(eight, targets, range(60)), rel=1e-6
    )
    assert set(result.models[0].metrics) == {"map", "map50"}
    assert set(result.models[1].metrics) == {"map", "map50", "agreement"}
    found = result.differences(1)["map"]
    expected = result.models[1].metrics["map"] - result.models[0].metrics["map"]
    assert found.difference == pytest.approx(expected)
    assert found.low < expected < found.high < 0
    none = evaluate([models[0]] * 2, samples, metrics=make_metrics(["map"])).differences(1)["map"]
    assert (none.low, none.difference, none.high) == (0, 0, 0)


def agreement(found: Any, reference: Any, name: str = "map", **how: Any) -> float:
    metric = DetectionAgreement(MeanAveragePrecision(name), **how)
    read = [
        DetectorOutputs().read(outputs, len(outputs["boxes"])) for outputs in (found, reference)
    ]
    return metric.value(metric.rows(*read))


def test_agreement_of_detectors_by_hand() -> None:
    """The reference's box of 0.2 is no target; its two others are, and one of them is found.

    Precision 1 up to recall 1/2, which are 51 of 101 recalls. Of what meets no target only scores
    above the hit's would count.
    """
    reference = lists([([0, 0, 9, 9], 0.9, 3), ([20, 0, 29, 9], 0.3, 3), ([40, 0, 49, 9], 0.2, 3)])
    found = lists([([0, 0, 9, 9], 0.4, 3), ([40, 0, 49, 9], 0.3, 3), ([20, 0, 29, 9], 0.3, 4)])
    assert agreement(found, reference) == pytest.approx(51 / 101)
    assert agreement(found, reference, conf=0.5) == 1
    assert agreement(found, reference, conf=0.2) == pytest.approx(67 / 101)
    assert np.isnan(agreement(found, reference, conf=0.95))


def test_boxes_agree_with_themselves() -> None:
    """Whatever they are: more than 100 of a class, some of them equal, some without an area."""
    outputs, _ = scene(20)
    outputs = {name: np.repeat(array, 30, axis=1) for name, array in outputs.items()}
    outputs["boxes"][:, ::7, 2] = outputs["boxes"][:, ::7, 0]
    outputs["scores"] = np.round(outputs["scores"], 1)
    assert agreement(outputs, outputs) == 1
    worse = outputs | {"scores": outputs["scores"][:, ::-1]}
    assert agreement(worse, outputs) < 0.9
