import math

import pytest
import torch
from torch.nn import functional

from onnxprune.errors import DataError
from onnxprune.finetune.losses import Objective, accuracy_metrics, class_scores
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
    return Objective("y", {"y": activation}, labelled, table, smoothing)


@pytest.mark.parametrize("activation", [None, "softmax", "log_softmax"])
def test_cross_entropy_is_the_same_however_the_graph_ends(activation: str | None) -> None:
    ends = {None: lambda x: x, "softmax": lambda x: x.softmax(1)}
    output = ends.get(activation, lambda x: x.log_softmax(1))(LOGITS)
    expected = functional.cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(objective(activation).task_loss(output, LABELS), expected)


def test_a_probability_of_zero_gives_a_finite_loss_and_gradient() -> None:
    output = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = objective("softmax").task_loss(output, torch.tensor([1]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_score_is_a_binary_decision(activation: str | None) -> None:
    logits = torch.tensor([[2.0], [-1.0]])
    labels = torch.tensor([1, 0])
    output = logits.sigmoid() if activation else logits
    loss = objective(activation).task_loss(output, labels)
    expected = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 / (1 + math.exp(-1)))) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_label_smoothing() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.2)
    assert objective(smoothing=0.2).task_loss(LOGITS, LABELS) == expected


@pytest.mark.parametrize(
    ("labelled", "weight", "expected"),
    [(True, None, 0.5), (True, 0.0, 0.0), (True, 0.3, 0.3), (False, 0.3, 1.0), (False, None, 1.0)],
)
def test_share_of_distillation(labelled: bool, weight: float | None, expected: float) -> None:
    assert objective(labelled=labelled, weight=weight).distill_weight == expected


def test_the_loss_is_the_weighted_sum() -> None:
    loss = objective(weight=0.25)
    teacher = {"y": LOGITS.flip(0)}
    task = loss.task_loss(LOGITS, LABELS)
    distance = loss.distillation_loss({"y": LOGITS}, teacher)
    total = loss({"y": LOGITS}, LABELS, teacher)
    torch.testing.assert_close(total, 0.75 * task + 0.25 * distance)
    assert objective(weight=1.0)({"y": LOGITS}, LABELS, teacher) == distance
    assert objective(weight=0.0)({"y": LOGITS}, LABELS, None) == task


def test_kl_divergence_with_temperature() -> None:
    """Hinton et al. (2015): at temperature T, times T squared."""
    teacher = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, -1.0]])
    p, q = (LOGITS / 2).softmax(1), (teacher / 2).softmax(1)
    expected = 4 * (q * (q.log() - p.log())).sum(1).mean()
    loss = objective(loss="kl", temperature=2.0)
    torch.testing.assert_close(loss.distillation_loss({"y": LOGITS}, {"y": teacher}), expected)


def test_kl_of_probabilities_equals_kl_of_logits() -> None:
    teacher = LOGITS.flip(0)
    of_logits = objective(loss="kl").distillation_loss({"y": LOGITS}, {"y": teacher})
    of_probabilities = objective("softmax", loss="kl").distillation_loss(
        {"y": LOGITS.softmax(1)}, {"y": teacher.softmax(1)}
    )
    torch.testing.assert_close(of_probabilities, of_logits)


@pytest.mark.parametrize(
    ("activation", "labelled", "kind"),
    [
        (None, True, "kl"),
        (None, False, "mse"),
        ("softmax", False, "kl"),
        ("log_softmax", False, "kl"),
        ("sigmoid", False, "mse"),
    ],
)
def test_auto_chooses_by_how_the_output_ends(
    activation: str | None, labelled: bool, kind: str
) -> None:
    outputs = {"y": LOGITS.softmax(1)}
    teacher = {"y": LOGITS.flip(0).softmax(1)}
    auto = objective(activation, labelled=labelled).distillation_loss(outputs, teacher)
    named = objective(activation, labelled=labelled, loss=kind)
    assert auto == named.distillation_loss(outputs, teacher)


def test_mean_squared_error_is_relative_to_the_teachers_spread() -> None:
    loss = objective(loss="mse")
    teacher = torch.tensor([[0.0, 2.0]])
    small = loss.distillation_loss({"y": teacher + 1}, {"y": teacher})
    large = loss.distillation_loss({"y": 1000 * (teacher + 1)}, {"y": 1000 * teacher})
    assert float(small) == pytest.approx(0.5)
    torch.testing.assert_close(small, large)


def test_a_constant_teacher_gives_a_finite_loss() -> None:
    loss = objective(loss="mse").distillation_loss({"y": LOGITS}, {"y": torch.zeros(2, 3)})
    assert math.isfinite(float(loss))


def test_cosine_distance() -> None:
    loss = objective(loss="cosine")
    assert float(loss.distillation_loss({"y": 3 * LOGITS}, {"y": LOGITS})) == pytest.approx(
        0, abs=1e-6
    )
    opposite = loss.distillation_loss({"y": -LOGITS}, {"y": LOGITS})
    assert float(opposite) == pytest.approx(2)


def test_every_output_of_the_teacher_counts() -> None:
    loss = Objective("y", {"y": None, "z": None}, False, DistillTable())
    same, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    distance = loss.distillation_loss({"y": same, "z": other}, {"y": same, "z": same})
    assert float(distance) == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 1, 1), (5, 1)])
def test_class_scores_drop_axes_of_length_one(shape: tuple[int, ...]) -> None:
    assert class_scores(torch.zeros(shape)).shape == (5, 3 if 3 in shape else 1)


def test_labels_need_scores() -> None:
    with pytest.raises(DataError, match=r"\(5, 3, 2\)"):
        class_scores(torch.zeros(5, 3, 2))


def test_metrics_of_a_batch() -> None:
    loss = objective()
    sums = accuracy_metrics({"y": LOGITS}, LABELS, {"y": LOGITS.flip(0)}, loss)
    assert sums["correct"] == 1
    assert sums["agree"] == 0
    total = 2 * float(loss({"y": LOGITS}, LABELS, {"y": LOGITS.flip(0)}))
    assert sums["loss"] == pytest.approx(total)


def test_metrics_of_a_binary_model_use_the_threshold_of_its_output() -> None:
    logits = torch.tensor([[0.1], [-3.0]])
    labels = torch.tensor([1, 0])
    for activation, output in ((None, logits), ("sigmoid", logits.sigmoid())):
        sums = accuracy_metrics({"y": output}, labels, None, objective(activation))
        assert sums["correct"] == 2
