import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import DataError
from onnxprune.finetune import Batch
from onnxprune.finetune.losses import (
    CrossEntropy,
    Distillation,
    Ending,
    Objective,
    accuracy_metrics,
    class_scores,
)
from onnxprune.recipe import DistillTable

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
LABELS = torch.tensor([0, 2])


def objective(
    activation: str | None = None,
    *,
    labelled: bool = True,
    smoothing: float = 0.0,
    **distill: object,
) -> Objective:
    table = DistillTable.model_validate(distill)
    ending = Ending(activation, 1 if activation in ("softmax", "log_softmax") else None)
    scores = "y" if labelled else None
    distillation = Distillation(table, ("y",), {"y": ending}, class_output=scores)
    return Objective("y", task(activation, smoothing) if labelled else None, distillation)


def task(activation: str | None = None, smoothing: float = 0.0) -> CrossEntropy:
    return CrossEntropy("y", Ending(activation), smoothing)


def labelled(labels: Tensor | None, samples: int = 2) -> Batch:
    return Batch(torch.arange(samples), {}, labels)


def distil(loss: Objective, outputs: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    return loss.distillation(outputs, teacher, {})


@pytest.mark.parametrize("activation", [None, "softmax", "log_softmax"])
def test_cross_entropy_is_the_same_however_the_graph_ends(activation: str | None) -> None:
    ends = {None: lambda x: x, "softmax": lambda x: x.softmax(1)}
    output = ends.get(activation, lambda x: x.log_softmax(1))(LOGITS)
    expected = functional.cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(task(activation)({"y": output}, labelled(LABELS)), expected)


def test_a_probability_of_zero_gives_a_finite_loss_and_gradient() -> None:
    output = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = task("softmax")({"y": output}, labelled(torch.tensor([1])))
    loss.backward()
    assert math.isfinite(loss.item())
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_score_is_a_binary_decision(activation: str | None) -> None:
    logits = torch.tensor([[2.0], [-1.0]])
    labels = torch.tensor([1, 0])
    output = logits.sigmoid() if activation else logits
    loss = task(activation)({"y": output}, labelled(labels))
    expected = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 / (1 + math.exp(-1)))) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_label_smoothing() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.2)
    assert task(smoothing=0.2)({"y": LOGITS}, labelled(LABELS)) == expected


@pytest.mark.parametrize(
    ("with_labels", "weight", "expected"),
    [(True, None, 0.5), (True, 0.0, 0.0), (True, 0.3, 0.3), (False, 0.3, 1.0), (False, None, 1.0)],
)
def test_share_of_distillation(with_labels: bool, weight: float | None, expected: float) -> None:
    assert objective(labelled=with_labels, weight=weight).distill_weight == expected


def test_the_loss_is_the_weighted_sum() -> None:
    loss = objective(weight=0.25)
    teacher = {"y": LOGITS.flip(0)}
    on_labels = task()({"y": LOGITS}, labelled(LABELS))
    distance = distil(loss, {"y": LOGITS}, teacher)
    total = loss({"y": LOGITS}, labelled(LABELS), teacher)
    torch.testing.assert_close(total, 0.75 * on_labels + 0.25 * distance)
    assert objective(weight=1.0)({"y": LOGITS}, labelled(LABELS), teacher) == distance
    assert objective(weight=0.0)({"y": LOGITS}, labelled(LABELS), None) == on_labels


def test_kl_divergence_with_temperature() -> None:
    """Hinton et al. (2015): at temperature T, times T squared."""
    teacher = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, -1.0]])
    p, q = (LOGITS / 2).softmax(1), (teacher / 2).softmax(1)
    expected = 4 * (q * (q.log() - p.log())).sum(1).mean()
    loss = objective(loss="kl", temperature=2.0)
    torch.testing.assert_close(distil(loss, {"y": LOGITS}, {"y": teacher}), expected)


def test_kl_of_probabilities_equals_kl_of_logits() -> None:
    teacher = LOGITS.flip(0)
    of_logits = distil(objective(loss="kl"), {"y": LOGITS}, {"y": teacher})
    of_probabilities = distil(
        objective("softmax", loss="kl"), {"y": LOGITS.softmax(1)}, {"y": teacher.softmax(1)}
    )
    torch.testing.assert_close(of_probabilities, of_logits)


@pytest.mark.parametrize(
    ("activation", "with_labels", "kind"),
    [
        (None, True, "kl"),
        (None, False, "mse"),
        ("softmax", False, "kl"),
        ("log_softmax", False, "kl"),
        ("sigmoid", False, "mse"),
    ],
)
def test_auto_chooses_by_how_the_output_ends(
    activation: str | None, with_labels: bool, kind: str
) -> None:
    outputs = {"y": LOGITS.softmax(1)}
    teacher = {"y": LOGITS.flip(0).softmax(1)}
    auto = distil(objective(activation, labelled=with_labels), outputs, teacher)
    named = objective(activation, labelled=with_labels, loss=kind)
    assert auto == distil(named, outputs, teacher)


def test_mean_squared_error_is_relative_to_the_teachers_spread() -> None:
    loss = objective(loss="mse")
    teacher = torch.tensor([[0.0, 2.0]])
    small = distil(loss, {"y": teacher + 1}, {"y": teacher})
    large = distil(loss, {"y": 1000 * (teacher + 1)}, {"y": 1000 * teacher})
    assert float(small) == pytest.approx(0.5)
    torch.testing.assert_close(small, large)


def test_a_constant_teacher_gives_a_finite_loss() -> None:
    loss = distil(objective(loss="mse"), {"y": LOGITS}, {"y": torch.zeros(2, 3)})
    assert math.isfinite(float(loss))


def test_cosine_distance() -> None:
    loss = objective(loss="cosine")
    assert float(distil(loss, {"y": 3 * LOGITS}, {"y": LOGITS})) == pytest.approx(0, abs=1e-6)
    opposite = distil(loss, {"y": -LOGITS}, {"y": LOGITS})
    assert float(opposite) == pytest.approx(2)


def test_every_output_of_the_teacher_counts() -> None:
    loss = Objective("y", None, Distillation(DistillTable(), ("y", "z")))
    same, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    distance = distil(loss, {"y": same, "z": other}, {"y": same, "z": same})
    assert float(distance) == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 1, 1), (5, 1)])
def test_class_scores_drop_axes_of_length_one(shape: tuple[int, ...]) -> None:
    assert class_scores(torch.zeros(shape)).shape == (5, 3 if 3 in shape else 1)


def test_labels_need_scores() -> None:
    with pytest.raises(DataError, match=r"\(5, 3, 2\)"):
        class_scores(torch.zeros(5, 3, 2))


def test_metrics_of_a_batch() -> None:
    loss = objective()
    sums = accuracy_metrics({"y": LOGITS}, labelled(LABELS), {"y": LOGITS.flip(0)}, loss)
    assert sums["top1"] == 1
    assert sums["agreement"] == 0
    total = 2 * float(loss({"y": LOGITS}, labelled(LABELS), {"y": LOGITS.flip(0)}))
    assert sums["loss"] == pytest.approx(total)


def test_metrics_of_a_binary_model_use_the_threshold_of_its_output() -> None:
    logits = torch.tensor([[0.1], [-3.0]])
    labels = torch.tensor([1, 0])
    for activation, output in ((None, logits), ("sigmoid", logits.sigmoid())):
        sums = accuracy_metrics({"y": output}, labelled(labels), None, objective(activation))
        assert sums["top1"] == 2
