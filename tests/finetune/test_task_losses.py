"""Losses on targets, against PyTorch's own on the same numbers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import DataError, UnsupportedModelError, UsageError
from onnxprune.finetune import Batch
from onnxprune.finetune.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Ctc,
    Distillation,
    Ending,
    Objective,
    PythonLoss,
    SquaredError,
    TaskLoss,
    accuracy_metrics,
    class_axis,
)
from onnxprune.recipe import DistillTable


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of(labels: Tensor | None, samples: int = 2, **inputs: Tensor) -> Batch:
    return Batch(torch.arange(samples), inputs, labels)


def same_with_gradients(
    loss: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], logits: Tensor
) -> None:
    """Both losses, and their gradients by the logits, are equal and not zero."""
    results = []
    for function in (loss, expected):
        leaf = logits.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        assert leaf.grad is not None
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
    assert float(results[1][1].abs().sum()) > 0.01


ENDS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "sigmoid": lambda x: x.sigmoid(),
}


class TestCrossEntropy:
    labels = torch.tensor([[0, 2, 1, -1], [3, -100, -1, -1]])

    @pytest.mark.parametrize("end", [None, "softmax", "log_softmax"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_of_positions_with_classes_last(self, end: str | None, smoothing: float) -> None:
        loss = CrossEntropy("y", Ending(end), smoothing, axis=2)
        same_with_gradients(
            lambda x: loss({"y": ENDS[end](x)}, of(self.labels)),
            lambda x: functional.cross_entropy(
                x.transpose(1, 2),
                self.labels.masked_fill(self.labels < 0, -100),
                label_smoothing=smoothing,
            ),
            random(2, 4, 5),
        )

    def test_of_a_map_of_classes(self) -> None:
        labels = torch.tensor([[[0, 1, 2], [2, -1, 0]], [[1, 1, 1], [0, 0, -1]]])
        loss = CrossEntropy("y", axis=1)
        same_with_gradients(
            lambda x: loss({"y": x}, of(labels)),
            lambda x: functional.cross_entropy(x, labels.masked_fill(labels < 0, -100)),
            random(2, 3, 2, 3),
        )

    def test_targets_may_be_shorter_than_the_positions(self) -> None:
        short, logits = self.labels[:, :3], random(2, 4, 5)
        loss = CrossEntropy("y", axis=2)
        assert loss({"y": logits}, of(short)) == loss({"y": logits}, of(self.labels))
        with pytest.raises(DataError, match=r"float32\[2, 2, 5\] and targets int64\[2, 4\]"):
            loss.check({"y": logits[:, :2]}, of(self.labels))

    def test_nothing_but_ignored_positions_is_no_loss(self) -> None:
        labels = torch.full((2, 4), -1)
        assert CrossEntropy("y", axis=2)({"y": random(2, 4, 5)}, of(labels)) == 0

    def test_smoothing_of_a_single_score_equals_that_of_two_classes(self) -> None:
        labels = torch.tensor([1, 0])
        loss = CrossEntropy("y", smoothing=0.3)
        same_with_gradients(
            lambda x: loss({"y": x}, of(labels)),
            lambda x: functional.cross_entropy(
                torch.cat([torch.zeros_like(x), x], dim=1), labels, label_smoothing=0.3
            ),
            random(2, 1),
        )

    @pytest.mark.parametrize(
        ("shape", "labels", "ending", "axis"),
        [
            ((2, 4, 5), (2, 4), Ending(), 2),
            ((2, 5, 4), (2, 4), Ending(), 1),
            ((2, 4, 4), (2, 4), Ending(), 2),
            ((2, 4, 4), (2, 4), Ending("softmax", 1), 1),
            ((2, 3, 6, 7), (2, 6, 7), Ending(), 1),
            ((2, 6, 7, 3), (2, 6, 7), Ending(), 3),
            ((2, 5, 5, 5), (2, 5, 5), Ending(), 1),
        ],
    )
    def test_axis_of_the_classes(
        self, shape: tuple[int, ...], labels: tuple[int, ...], ending: Ending, axis: int
    ) -> None:
        assert class_axis(torch.zeros(shape), torch.zeros(labels), ending) == axis

    @pytest.mark.parametrize(
        ("output", "labels", "match"),
        [
            (random(2, 3), torch.tensor([0.5, 1.0]), r"float32\[2\](.|\n)*\[finetune\] loss"),
            (random(2, 3), torch.tensor([0, 3]), "a label of 3(.|\n)*labels of 0 to 2"),
            (random(2, 3, 4), torch.tensor([0, 1]), r"\(2, 3, 4\)|\[2, 3, 4\]"),
            (random(2, 4, 5), torch.tensor([[0, 5, 1, 1], [0, 0, 0, 0]]), "a label of 5"),
            (torch.ones(2, 3, dtype=torch.int64), torch.tensor([0, 1]), "int64"),
        ],
    )
    def test_misfits_are_found(self, output: Tensor, labels: Tensor, match: str) -> None:
        with pytest.raises(DataError, match=match):
            CrossEntropy("y", axis=-1).check({"y": output}, of(labels))

    def test_missing_labels(self) -> None:
        with pytest.raises(DataError, match="'cross-entropy' needs targets"):
            CrossEntropy("y").check({"y": random(2, 3)}, of(None))

    def test_accuracy_counts_the_positions_of_each_sample(self) -> None:
        logits = functional.one_hot(torch.tensor([[0, 2, 0, 0], [3, 0, 0, 0]]), 5).float()
        sums = CrossEntropy("y", axis=2).metrics({"y": logits}, of(self.labels))
        assert sums == {"accuracy": pytest.approx(2 / 3 + 1)}


class TestBinaryCrossEntropy:
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.25]])

    @pytest.mark.parametrize("end", [None, "sigmoid"])
    def test_equals_pytorch(self, end: str | None) -> None:
        loss = BinaryCrossEntropy("y", Ending(end))
        same_with_gradients(
            lambda x: loss({"y": ENDS[end](x)}, of(self.labels)),
            lambda x: functional.binary_cross_entropy(x.sigmoid(), self.labels),
            random(2, 3),
        )

    def test_smoothing(self) -> None:
        loss = BinaryCrossEntropy("y", smoothing=0.2)
        wanted = self.labels * 0.8 + 0.1
        expected = functional.binary_cross_entropy_with_logits(random(2, 3), wanted)
        torch.testing.assert_close(loss({"y": random(2, 3)}, of(self.labels)), expected)

    @pytest.mark.parametrize("end", [None, "sigmoid"])
    def test_accuracy_is_at_one_half(self, end: str | None) -> None:
        logits = torch.tensor([[2.0, 0.1, -1.0], [-1.0, -0.1, -3.0]])
        sums = BinaryCrossEntropy("y", Ending(end)).metrics(
            {"y": ENDS[end](logits)}, of(self.labels)
        )
        assert sums == {"accuracy": pytest.approx(1 / 3 + 1)}

    @pytest.mark.parametrize(
        ("labels", "match"),
        [
            (torch.tensor([0, 2]), r"output float32\[2, 3\] and targets int64\[2\]"),
            (torch.tensor([[0.0, 1.0, 2.0], [0, 0, 0]]), "targets from 0 to 2"),
            (torch.tensor([[0, 1, -1], [0, 0, 0]]), "targets from -1 to 1"),
        ],
    )
    def test_misfits_are_found(self, labels: Tensor, match: str) -> None:
        with pytest.raises(DataError, match=match):
            BinaryCrossEntropy("y").check({"y": random(2, 3)}, of(labels))

    def test_a_softmax_is_refused(self) -> None:
        with pytest.raises(UnsupportedModelError, match="compete"):
            BinaryCrossEntropy("y", Ending("softmax", 1)).check(
                {"y": random(2, 3)}, of(self.labels)
            )


class TestSquaredError:
    @pytest.mark.parametrize("shape", [(2,), (2, 1)])
    def test_equals_pytorch_and_never_broadcasts(self, shape: tuple[int, ...]) -> None:
        labels = torch.tensor([1.5, -2.0]).reshape(shape)
        same_with_gradients(
            lambda x: SquaredError("y")({"y": x}, of(labels)),
            lambda x: functional.mse_loss(x, labels.reshape(2, 1)),
            random(2, 1),
        )

    def test_misfits_are_found(self) -> None:
        with pytest.raises(DataError, match=r"float32\[2, 3\] and targets float32\[2, 2\]"):
            SquaredError("y").check({"y": random(2, 3)}, of(torch.zeros(2, 2)))


class TestCtc:
    labels = torch.tensor([[1, 2, 2], [3, -1, -1]])

    @pytest.mark.parametrize("end", [None, "softmax", "log_softmax"])
    @pytest.mark.parametrize("time_first", [False, True])
    def test_equals_pytorch(self, end: str | None, time_first: bool) -> None:
        loss = Ctc("y", Ending(end), time_first=time_first)

        def ours(x: Tensor) -> Tensor:
            return loss({"y": ENDS[end](x if time_first else x.transpose(0, 1))}, of(self.labels))

        def theirs(x: Tensor) -> Tensor:
            return functional.ctc_loss(
                x.log_softmax(2),
                torch.tensor([1, 2, 2, 3]),
                torch.tensor([7, 7]),
                torch.tensor([3, 1]),
            )

        same_with_gradients(ours, theirs, random(7, 2, 5))

    def test_another_blank(self) -> None:
        labels = torch.tensor([[0, 1], [2, -1]])
        expected = functional.ctc_loss(
            random(6, 2, 5).log_softmax(2),
            torch.tensor([0, 1, 2]),
            torch.tensor([6, 6]),
            torch.tensor([2, 1]),
            blank=4,
        )
        loss = Ctc("y", blank=4)({"y": random(6, 2, 5).transpose(0, 1)}, of(labels))
        torch.testing.assert_close(loss, expected)

    def test_lengths_of_the_inputs_become_time_steps(self) -> None:
        """A padded input of 30 becomes 8 steps: a sample of 12 has 3.2 of them, so 4."""
        logits = random(8, 2, 5)
        batch = Batch(
            torch.arange(2),
            {"x": torch.zeros(2, 40, 30)},
            self.labels,
            lengths={"x": torch.tensor([30, 12])},
        )
        expected = functional.ctc_loss(
            logits.log_softmax(2),
            self.labels.clamp_min(0),
            torch.tensor([8, 4]),
            torch.tensor([3, 1]),
        )
        loss = Ctc("y")({"y": logits.transpose(0, 1)}, batch)
        torch.testing.assert_close(loss, expected)

    def test_the_input_whose_length_counts_is_named_where_several_are_padded(self) -> None:
        """A prompt of another length must not decide how many steps a sound has."""
        logits = random(8, 2, 5)
        inputs = {"prompt": torch.zeros(2, 6), "sound": torch.zeros(2, 16, 40)}
        lengths = {"prompt": torch.tensor([1, 6]), "sound": torch.tensor([16, 10])}
        batch = Batch(torch.arange(2), inputs, self.labels, lengths=lengths)
        outputs = {"y": logits.transpose(0, 1)}
        with pytest.raises(UsageError, match=r"ctc_input(.|\n)*'prompt', 'sound'"):
            Ctc("y").check(outputs, batch)
        with pytest.raises(UsageError, match="not padded"):
            Ctc("y", length_of="mask").check(outputs, batch)
        loss = Ctc("y", length_of="sound")
        loss.check(outputs, batch)
        expected = functional.ctc_loss(
            logits.log_softmax(2),
            self.labels.clamp_min(0),
            torch.tensor([8, 5]),
            torch.tensor([3, 1]),
        )
        torch.testing.assert_close(loss(outputs, batch), expected)

    def test_a_target_that_does_not_fit(self) -> None:
        """Three classes of which two are equal need four steps."""
        logits = random(2, 3, 5)
        with pytest.raises(DataError, match="needs 4 time steps, in a sample with 3"):
            Ctc("y").check({"y": logits}, of(self.labels))
        assert math.isfinite(Ctc("y")({"y": logits}, of(self.labels)))
        Ctc("y").check({"y": random(2, 4, 5)}, of(self.labels))

    @pytest.mark.parametrize(
        ("output", "labels", "match"),
        [
            (random(2, 5), labels, r"float32\[2, 5\]"),
            (random(2, 7, 5), labels.float(), "float32"),
            (random(2, 7, 3), labels, "targets that hold 3"),
            (random(2, 7, 5), torch.tensor([[1, 0, 2], [3, -1, -1]]), "targets that hold 0"),
            (random(2, 7, 5), torch.tensor([[1, -1, 2], [3, -1, -1]]), "padding before its end"),
            (random(3, 7, 5), labels, r"\[3, 7, 5\]"),
        ],
    )
    def test_misfits_are_found(self, output: Tensor, labels: Tensor, match: str) -> None:
        with pytest.raises(DataError, match=match):
            Ctc("y").check({"y": output}, of(labels))

    def test_a_blank_out_of_range(self) -> None:
        with pytest.raises(UsageError, match=r"ctc_blank(.|\n)*got: 5(.|\n)*0 to 4"):
            Ctc("y", blank=5).check({"y": random(2, 7, 5)}, of(self.labels))


class TestPythonLoss:
    def test_is_called_with_outputs_targets_and_inputs(self) -> None:
        seen = {}

        def function(
            outputs: dict[str, Tensor], labels: Tensor | None, inputs: dict[str, Tensor]
        ) -> Tensor:
            seen.update(outputs=set(outputs), labels=labels, inputs=set(inputs))
            return outputs["y"].square().mean()

        labels = torch.tensor([[7]])
        y = random(2, 3).requires_grad_()
        loss = PythonLoss("m:f", function)({"y": y, "z": y}, of(labels, x=random(2, 4)))
        assert loss == y.square().mean()
        assert seen == {"outputs": {"y", "z"}, "labels": labels, "inputs": {"x"}}

    @pytest.mark.parametrize(
        ("function", "match"),
        [
            (lambda y: y, r"float32\[2, 3\](.|\n)*finite scalar"),
            (lambda y: 1.0, "got: float"),
            (lambda y: y.argmax(), "int64"),
            (lambda y: y.detach().mean(), "without gradients"),
            (lambda y: y.mean() * float("nan"), "got: nan"),
        ],
    )
    def test_what_it_returns_is_checked(
        self, function: Callable[[Tensor], object], match: str
    ) -> None:
        loss = PythonLoss("m:f", lambda outputs, labels, inputs: function(outputs["y"]))
        with pytest.raises(UsageError, match=match):
            loss.check({"y": random(2, 3).requires_grad_()}, of(None))

    def test_its_errors_say_where(self) -> None:
        def broken(outputs: object, labels: object, inputs: object) -> Tensor:
            raise KeyError("no such output")

        with pytest.raises(UsageError, match=r"test_task_losses.py:\d+ in broken") as caught:
            PythonLoss("m:broken", broken)({"y": random(2, 3)}, of(None))
        assert "KeyError: 'no such output'" in str(caught.value)
        assert "python:m:broken" in str(caught.value)

    def test_measuring_needs_no_gradients(self) -> None:
        loss = PythonLoss("m:f", lambda outputs, labels, inputs: outputs["y"].mean())
        with torch.no_grad():
            assert loss({"y": random(2, 3)}, of(None)) == random(2, 3).mean()


@pytest.mark.parametrize(
    ("task", "labels", "keys"),
    [
        (BinaryCrossEntropy("y"), torch.tensor([[1.0, 0, 1], [0, 0, 1]]), {"loss", "accuracy"}),
        (SquaredError("y"), random(2, 3, seed=1), {"loss"}),
        (CrossEntropy("y"), torch.tensor([0, 2]), {"loss", "top1", "agreement"}),
    ],
)
def test_metrics_of_other_tasks_are_of_the_task_alone(
    task: TaskLoss, labels: Tensor, keys: set[str]
) -> None:
    """Never an accuracy of classes where there are none, and no share of the distillation."""
    objective = Objective("y", task, Distillation(DistillTable(weight=0.5), ("y",)))
    y, teacher = {"y": random(2, 3)}, {"y": random(2, 3, seed=2)}
    sums = accuracy_metrics(y, of(labels), teacher, objective)
    assert sums.keys() == keys
    whole = objective(y, of(labels), teacher)
    expected = whole if "top1" in keys else task(y, of(labels))
    assert sums["loss"] == pytest.approx(2 * float(expected))


def test_targets_of_evaluation_data_alone_are_measured_and_not_learnt() -> None:
    distillation = Distillation(DistillTable(weight=0.5), ("y",))
    objective = Objective("y", CrossEntropy("y"), distillation, learns_task=False)
    y, teacher = {"y": random(2, 3)}, {"y": random(2, 3, seed=2)}
    labels = y["y"].argmax(dim=1)
    assert objective(y, of(labels), teacher) == distillation(y, teacher, {})
    assert accuracy_metrics(y, of(labels), teacher, objective)["top1"] == 2
    assert "top1" not in accuracy_metrics(y, of(None), teacher, objective)
