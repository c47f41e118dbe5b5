"""Distances from the dense model: axes, masks, inner tensors."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import UnsupportedModelError
from onnxprune.finetune import ArrayTeacher, Batch, Ending, ModuleTeacher
from onnxprune.finetune.losses.distillation import Distillation, distance
from onnxprune.recipe import DistillTable


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compare(
    student: Tensor, teacher: Tensor, ending: Ending | None = None, **settings: object
) -> float:
    table = DistillTable.model_validate(settings)
    distillation = Distillation(table, ("y",), {"y": ending or Ending()})
    return float(distillation({"y": student}, {"y": teacher}, {}))


class TestAxis:
    """Of KL, which is along the axis on which the softmax at the end adds up to 1."""

    @pytest.mark.parametrize("loss", ["auto", "kl"])
    def test_is_that_of_the_softmax(self, loss: str) -> None:
        student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
        found = compare(student.softmax(1), teacher.softmax(1), Ending("softmax", 1), loss=loss)
        q, p = teacher.softmax(1), student.log_softmax(1)
        expected = (q * (q.log() - p)).sum(dim=1).mean()
        assert found == pytest.approx(float(expected), rel=1e-5)

    def test_is_the_last_without_a_softmax(self) -> None:
        student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
        q, p = teacher.softmax(2), student.log_softmax(2)
        expected = (q * (q.log() - p)).sum(dim=2).mean()
        assert compare(student, teacher, loss="kl") == pytest.approx(float(expected), rel=1e-5)

    def test_that_is_not_known_is_refused(self) -> None:
        student = random(2, 3, 4)
        with pytest.raises(UnsupportedModelError, match=r"'y', \[distill\] loss = 'kl'"):
            compare(student, student, Ending("softmax"), loss="kl")
        assert compare(student, student + 1, Ending("softmax")) == pytest.approx(
            1 / float(student.var()), rel=1e-5
        )


class TestScores:
    """Class scores without a softmax and without labels: compared both ways."""

    def test_are_compared_as_probabilities_and_as_values(self) -> None:
        student, teacher = {"y": random(4, 5)}, {"y": random(4, 5, seed=1)}
        parts = [compare(student["y"], teacher["y"], loss=loss) for loss in ("kl", "mse")]
        both = compare(student["y"], teacher["y"], loss="kl+mse")
        assert both == pytest.approx(sum(parts), rel=1e-6)
        auto = Distillation(DistillTable(), ("y",), scores=frozenset({"y"}))
        assert float(auto(student, teacher, {})) == pytest.approx(both)

    @pytest.mark.parametrize(
        ("shape", "ending", "class_output", "expected"),
        [
            ((4, 5), Ending(), None, "kl+mse"),
            ((4, 5), Ending(), "y", "kl"),
            ((4, 5), Ending("softmax", 1), None, "kl"),
            ((4, 1), Ending(), None, "mse"),
            ((4, 3, 5), Ending(), None, "mse"),
        ],
    )
    def test_only_where_nothing_else_is_known(
        self, shape: tuple[int, ...], ending: Ending, class_output: str | None, expected: str
    ) -> None:
        distillation = Distillation(
            DistillTable(), ("y",), {"y": ending}, class_output, frozenset({"y"})
        )
        assert distillation.kind("y", torch.Size(shape)) == expected


class TestMask:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])

    @pytest.mark.parametrize(
        ("loss", "feature_loss"), [("mse", "mae"), ("cosine", "cosine"), ("kl", "mse")]
    )
    def test_padded_positions_do_not_count(self, loss: str, feature_loss: str) -> None:
        """Equal to the same loss on the positions that count, in any order of them."""
        table = DistillTable.model_validate(
            {"loss": loss, "mask_input": "m", "features": {"h": 0.5}, "feature_loss": feature_loss}
        )
        whole = Distillation(table, ("y",), masked=frozenset({"y", "h"}))
        bare = Distillation(table, ("y",))
        student = {"y": random(2, 3, 5), "h": random(2, 3, 4, seed=2)}
        teacher = {"y": random(2, 3, 5, seed=1), "h": random(2, 3, 4, seed=3)}
        found = whole(student, teacher, {"m": self.mask})
        kept = [{n: t[self.mask == 1] for n, t in values.items()} for values in (student, teacher)]
        expected = bare(*kept, {"m": self.mask})
        torch.testing.assert_close(found, expected)
        for values in (student, teacher):
            values["y"][self.mask == 0] = 1e3 * random(3, 5, seed=7)
        torch.testing.assert_close(whole(student, teacher, {"m": self.mask}), expected)

    def test_of_a_tensor_with_a_number_for_each_position(self) -> None:
        student, teacher = random(2, 3), random(2, 3, seed=1)
        kept = self.mask == 1
        expected = distance("mse", student[kept], teacher[kept])
        torch.testing.assert_close(distance("mse", student, teacher, kept), expected)


class TestFeatures:
    def test_are_added_with_their_weights(self) -> None:
        table = DistillTable(features={"h": 0.5, "g": 2.0}, loss="mse")
        student = {"y": random(2, 3), "h": random(2, 4, seed=1), "g": random(2, 5, seed=2)}
        teacher = {name: tensor + 1 for name, tensor in student.items()}
        found = Distillation(table, ("y",))(student, teacher, {})
        expected = sum(
            weight / float(student[name].var())
            for name, weight in {"y": 1.0, "h": 0.5, "g": 2.0}.items()
        )
        assert float(found) == pytest.approx(expected, rel=1e-5)

    def test_may_be_all_that_is_compared(self) -> None:
        table = DistillTable(features={"h": 3.0}, outputs=[])
        values = {"y": random(2, 3), "h": random(2, 4)}
        found = Distillation(table, ())(values, {"h": values["h"] + 1}, {})
        assert float(found) == pytest.approx(3 / float(values["h"].var()), rel=1e-5)

    def test_mae_does_not_depend_on_the_scale(self) -> None:
        student, teacher = random(4, 6), random(4, 6, seed=1)
        plain = distance("mae", student, teacher)
        expected = (student - teacher).abs().mean() / teacher.std()
        torch.testing.assert_close(plain, expected)
        torch.testing.assert_close(distance("mae", 50 * student, 50 * teacher), plain)

    @pytest.mark.parametrize(
        ("shape", "vectors"), [((3, 8), (3, 8)), ((3, 4, 8), (12, 8)), ((3, 2, 4, 5), (3, 40))]
    )
    def test_cosine_is_of_the_vectors(
        self, shape: tuple[int, ...], vectors: tuple[int, int]
    ) -> None:
        student, teacher = random(*shape), random(*shape, seed=1)
        cosines = functional.cosine_similarity(
            student.reshape(vectors), teacher.reshape(vectors), dim=1
        )
        found = distance("cosine", student, teacher)
        torch.testing.assert_close(found, (1 - cosines).mean())
        assert found != 0

    def test_one_value_alone_has_no_spread(self) -> None:
        found = distance("mse", torch.tensor([[3.0]]), torch.tensor([[2.0]]))
        assert float(found) == pytest.approx(0.25)


class TestRunningTeachers:
    batch = Batch(torch.arange(5), {"x": random(5, 3)}, None)

    @pytest.mark.parametrize("size", [None, 2])
    def test_give_what_the_model_gives(self, size: int | None) -> None:
        calls = []

        def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            calls.append(len(feeds["x"]))
            return {"y": 2 * feeds["x"].astype(np.float64), "n": np.zeros(len(feeds["x"]), int)}

        found = ArrayTeacher(run, ["y"], size)(self.batch)
        assert found.keys() == {"y"}
        assert found["y"].dtype == torch.float32
        assert torch.equal(found["y"], 2 * self.batch.inputs["x"])
        assert calls == ([5] if size is None else [2, 2, 2])

    @pytest.mark.parametrize("size", [None, 2])
    def test_in_pytorch_is_a_frozen_copy(self, size: int | None) -> None:
        module = Twice()
        teacher = ModuleTeacher(module, ["y"], size)
        with torch.no_grad():
            module.linear.weight.zero_()
        found = teacher(self.batch)
        expected = self.batch.inputs["x"] @ Twice().linear.weight.T
        torch.testing.assert_close(found["y"], expected)
        assert found.keys() == {"y"}
        assert not found["y"].requires_grad


class Twice(torch.nn.Module):
    output_names = ("y", "z")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = torch.nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x
