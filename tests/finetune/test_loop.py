"""The trainer on a module that it knows nothing about."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxprune.errors import Interrupted, TrainingError, UsageError
from onnxprune.finetune import (
    Batch,
    BatchSource,
    CachedTeacher,
    CheckpointStore,
    CrossEntropy,
    Distillation,
    Objective,
    Plan,
    Trainer,
    make_accelerator,
    named_outputs,
)
from onnxprune.recipe import DistillTable, FinetuneTable
from onnxprune.sparsity import Magnitude, MaskSet, select_masks

COUNT, FEATURES, CLASSES = 20, 6, 3


@dataclass(frozen=True)
class Item:
    inputs: dict[str, np.ndarray]
    label: int | None


class Recorder:
    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.messages: list[str] = []

    def record(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["kind"] == kind]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.fc(self.drop(self.norm(x)))


def samples() -> list[Item]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(COUNT, FEATURES)).astype(np.float32)
    return [Item({"x": row}, index % CLASSES) for index, row in enumerate(rows)]


def trainer(observer: Recorder, plan: Plan, **changes: Any) -> Trainer:
    module = changes.pop("module", None) or Net()
    settings = FinetuneTable.model_validate(
        {"device": "cpu", "batch_size": 5, "lr": 0.1} | changes.pop("settings", {})
    )
    masks = MaskSet({"fc.weight": module.fc.weight})
    return Trainer(
        module=module,
        output_names=["y"],
        parameters=dict(module.named_parameters()),
        masks=masks,
        choose=lambda zeros: select_masks(
            {"fc.weight": module.fc.weight.detach()}, zeros, Magnitude(), masks=masks.masks
        ),
        batches=BatchSource(samples(), settings.batch_size),
        objective=Objective("y", CrossEntropy("y"), Distillation(DistillTable(weight=0.0), ())),
        teacher=None,
        settings=settings,
        plan=plan,
        observer=observer,
        **changes,
    )


def test_events_happen_at_their_steps_and_are_logged() -> None:
    observer = Recorder()
    run = trainer(observer, Plan(4, 4, {0: 3, 2: 9, 4: 10}))
    torch.manual_seed(0)
    run.fit()
    events = [(e["step"], e["pruned"], e["target_sparsity"]) for e in observer.of("event")]
    assert events == [(0, 3, 3 / 18), (2, 6, 9 / 18), (4, 1, 10 / 18)]
    trained = observer.of("train")
    assert [entry["step"] for entry in trained] == [1, 2, 3, 4]
    assert [entry["sparsity"] for entry in trained] == [3 / 18, 3 / 18, 9 / 18, 9 / 18]
    assert [entry["progress"] for entry in trained] == [0.25, 0.5, 0.75, 1.0]
    assert int((run.parameters["fc.weight"] == 0).sum()) == 10


def test_no_steps_still_prune() -> None:
    observer = Recorder()
    run = trainer(observer, Plan(0, 1, {0: 7}))
    before = run.parameters["fc.weight"].detach().clone()
    run.fit()
    after = run.parameters["fc.weight"].detach()
    assert int((after == 0).sum()) == 7
    assert torch.equal(after[after != 0], before[after != 0])


def test_evaluation_is_in_inference_mode_and_training_goes_on() -> None:
    observer = Recorder()
    module = Net()
    modes: list[bool] = []
    module.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    source = BatchSource(samples(), 8)

    def evaluation() -> Iterator[Batch]:
        return source.in_order()

    teacher = CachedTeacher({"y": np.eye(CLASSES, dtype=np.float32)[np.arange(COUNT) % CLASSES]})
    run = trainer(
        observer,
        Plan(2, 4, {}, frozenset({1, 2})),
        module=module,
        evaluation=evaluation,
        evaluation_teacher=teacher,
    )
    run.fit()
    assert modes == [True, False, False, False, True, False, False, False]
    entries = observer.of("eval")
    assert [entry["step"] for entry in entries] == [1, 2]
    module.eval()
    x = torch.from_numpy(np.stack([item.inputs["x"] for item in samples()]))
    predicted = module(x).argmax(dim=1)
    share = float((predicted == torch.arange(COUNT) % CLASSES).float().mean())
    assert entries[-1]["metrics"]["top1"] == pytest.approx(share)
    assert entries[-1]["metrics"]["agreement"] == pytest.approx(share)


def test_only_batch_size_pads_parts_and_keeps_statistics() -> None:
    observer = Recorder()
    module = Net()
    run = trainer(observer, Plan(1, 4, {}), module=module, micro_batch=2)
    mean = module.norm.running_mean.clone()
    weight = module.fc.weight.detach().clone()
    run.fit()
    assert module.calls == [2, 2, 2]
    assert torch.equal(module.norm.running_mean, mean)
    assert module.drop.training
    assert not torch.equal(module.fc.weight, weight)


def test_parts_add_up_to_the_gradient_of_the_batch() -> None:
    weights = []
    for micro_batch in (None, 2):
        module = Net()
        module.norm.eval()
        module.drop = nn.Identity()
        module.norm = nn.Identity()
        run = trainer(Recorder(), Plan(3, 4, {}), module=module, micro_batch=micro_batch)
        run.fit()
        weights.append(module.fc.weight.detach())
    torch.testing.assert_close(*weights)


def test_stop_writes_a_checkpoint_from_which_a_new_trainer_goes_on(tmp_path: Path) -> None:
    plan = Plan(8, 4, {0: 2, 3: 6, 6: 9})
    torch.manual_seed(5)
    whole = trainer(Recorder(), plan)
    whole.fit()

    torch.manual_seed(5)
    observer = Recorder()
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    first = trainer(observer, plan, checkpoints=store, stop=lambda: len(observer.of("train")) == 5)
    with pytest.raises(Interrupted, match="after step 5 of 8"):
        first.fit()

    torch.manual_seed(77)
    second = trainer(Recorder(), plan, checkpoints=store)
    assert second.resume()
    assert second.step == 5
    assert second.masks.zeros == 6
    second.fit()
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, second.parameters[name]), name
    for name, buffer in whole.module.named_buffers():
        assert torch.equal(buffer, dict(second.module.named_buffers())[name]), name


def test_resume_without_a_store_or_a_checkpoint(tmp_path: Path) -> None:
    assert not trainer(Recorder(), Plan(1, 4, {})).resume()
    store = CheckpointStore(tmp_path / "none", "run")
    assert not trainer(Recorder(), Plan(1, 4, {}), checkpoints=store).resume()


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    module = Net()
    with torch.no_grad():
        module.fc.bias[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite") as caught:
        trainer(Recorder(), Plan(3, 4, {}), module=module).fit()
    assert "step 1 of 3" in str(caught.value)


def test_divergence_is_noticed_however_long_the_run(tmp_path: Path) -> None:
    """Runs of more than 2 000 steps do not log every step, yet save no broken checkpoint."""
    module = Net()
    with torch.no_grad():
        module.fc.bias[0] = float("nan")
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    run = trainer(
        Recorder(),
        Plan(100_000, 4, {}),
        module=module,
        checkpoints=store,
        settings={"checkpoint_seconds": 0},
    )
    with pytest.raises(TrainingError, match="not finite"):
        run.fit()
    assert store.latest() == (None, [])


def test_long_runs_log_some_steps_and_the_last() -> None:
    observer = Recorder()
    run = trainer(observer, Plan(4001, 4, {}))
    run.step = 3990
    run.fit()
    assert [entry["step"] for entry in observer.of("train")] == [3992, 3994, 3996, 3998, 4000, 4001]


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UsageError, match="--device cpu"):
        make_accelerator(FinetuneTable(device="cuda"))


def test_named_outputs() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert named_outputs(a, ["y"]) == {"y": a}
    assert list(named_outputs((a, b), ["y", "z"])) == ["y", "z"]
    with pytest.raises(ValueError, match="argument"):
        named_outputs((a, b), ["y"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(tmp_path: Path, precision: str) -> None:
    observer = Recorder()
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    settings = {"device": "cuda", "precision": precision}
    run = trainer(observer, Plan(6, 4, {0: 3, 3: 9}), checkpoints=store, settings=settings)
    run.fit()
    run.save()
    assert run.parameters["fc.weight"].device.type == "cuda"
    assert int((run.parameters["fc.weight"] == 0).sum()) == 9
    again = trainer(observer, Plan(6, 4, {0: 3, 3: 9}), checkpoints=store, settings=settings)
    assert again.resume()
    assert torch.equal(again.parameters["fc.weight"], run.parameters["fc.weight"])
