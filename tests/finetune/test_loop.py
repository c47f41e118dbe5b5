"""The trainer on a module that it knows nothing about."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxprune.cascade import ShedMonitor, courses_of, kept_rms
from onnxprune.errors import DataError, Interrupted, TrainingError, UsageError
from onnxprune.finetune import (
    Batch,
    BatchSource,
    CachedTeacher,
    CheckpointStore,
    CrossEntropy,
    Distillation,
    Objective,
    Plan,
    Pruner,
    Ranks,
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

    def rewound(self, step: int, sparsity: float, rollbacks: int) -> None:
        self.entries = [e for e in self.entries if e["step"] <= step or e["kind"] == "rollback"]

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
        if torch.is_grad_enabled():
            self.calls.append(len(x))
        return self.fc(self.drop(self.norm(x)))


def samples() -> list[Item]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(COUNT, FEATURES)).astype(np.float32)
    return [Item({"x": row}, index % CLASSES) for index, row in enumerate(rows)]


def trainer(observer: Recorder, plan: Plan, **changes: Any) -> Trainer:
    module = changes.pop("module", None) or Net()
    parameters = changes.pop("parameters", dict(module.named_parameters()))
    settings = FinetuneTable.model_validate(
        {"device": "cpu", "batch_size": 5, "lr": 0.1} | changes.pop("settings", {})
    )
    masks = MaskSet({"fc.weight": module.fc.weight})
    accelerator = make_accelerator(settings)
    return Trainer(
        accelerator=accelerator,
        ranks=Ranks(accelerator.device),
        module=module,
        output_names=["y"],
        parameters=parameters,
        masks=masks,
        pruner=Pruner(
            masks,
            plan.events,
            lambda zeros, *_: select_masks(
                {"fc.weight": module.fc.weight.detach()}, zeros, Magnitude(), masks=masks.masks
            ),
            ShedMonitor(0.01),
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
    assert modes == [True, True, False, False, False, True, False, False, False]
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
    run = trainer(observer, Plan(1, 4, {}), module=module, graph_batch=2)
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
        run = trainer(Recorder(), Plan(3, 4, {}), module=module, graph_batch=micro_batch)
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


def poisoned(module: Net, steps: set[int], value: float = float("nan")) -> Net:
    """A module whose output is spoiled in these training passes, counted from 1."""
    module.register_forward_hook(lambda m, args, y: y * value if len(m.calls) in steps else y)
    return module


def test_a_first_loss_that_is_not_finite_is_noticed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    observer = Recorder()
    settings = {"checkpoint_seconds": 0, "max_rollbacks": 1}
    module = poisoned(Net(), {1}, float("inf"))
    trainer(observer, Plan(3, 4, {}), module=module, checkpoints=store, settings=settings).fit()
    (rollback,) = observer.of("rollback")
    assert (rollback["failed_at"], rollback["step"]) == (1, 0)


@pytest.mark.parametrize("events", [{}, {step: 1 + step // 2 for step in range(0, 20, 2)}])
def test_a_loss_that_explodes_slowly_is_noticed_between_events_too(events: dict[int, int]) -> None:
    """It doubles in every step, from about 1; before pruning and training it was no higher."""
    module = Net()
    module.drop = nn.Identity()
    module.register_forward_hook(lambda m, args, y: y * 2 ** len(m.calls))
    settings = {"lr": 1e-9, "max_rollbacks": 0, "explosion": 10.0}
    observer = Recorder()
    with pytest.raises(TrainingError, match="knows nothing"):
        trainer(observer, Plan(20, 4, events), module=module, settings=settings).fit()
    losses = [entry["loss"] for entry in observer.of("train")]
    assert 3 < len(losses) < 10
    assert max(losses) < 10 * 5
    assert all(after < 10 * before for before, after in pairwise(losses))


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_model_that_knows_nothing_gives_the_answers_to_other_questions(
    micro_batch: int | None,
) -> None:
    """Measuring its loss changes nothing that training goes on with."""
    module = Net()
    module.norm.momentum = 0.5
    if micro_batch is not None:
        module.norm = nn.Identity()  # type: ignore[assignment]
        module.drop = nn.Identity()  # type: ignore[assignment]
    run = trainer(Recorder(), Plan(1, 4, {}), module=module, settings={"micro_batch": micro_batch})
    batch = next(run.batches.shuffled(0))
    assert batch.labels is not None
    torch.manual_seed(3)
    outputs = copy.deepcopy(module).train()(**batch.inputs).detach()
    labels = batch.labels, batch.labels.flip(0)
    expected = [functional.cross_entropy(outputs, asked) for asked in labels]
    assert abs(expected[0] - expected[1]) > 0.01

    torch.manual_seed(3)
    before = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    found = run.stepper.uninformed_loss(batch)
    torch.testing.assert_close(found, torch.stack(expected))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[0][name]), name
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(parameter.grad is None for parameter in module.parameters())


def test_weights_that_are_not_finite_from_the_start_are_an_error(tmp_path: Path) -> None:
    module = Net()
    with torch.no_grad():
        module.fc.bias[0] = float("nan")
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    with pytest.raises(TrainingError, match="before training"):
        trainer(Recorder(), Plan(3, 4, {}), module=module, checkpoints=store).fit()
    assert store.latest() == (None, [])


def test_without_checkpoints_divergence_is_an_error() -> None:
    module = poisoned(Net(), {2})
    with pytest.raises(TrainingError, match="not finite") as caught:
        trainer(Recorder(), Plan(3, 4, {}), module=module).fit()
    assert "step 2 of 3" in str(caught.value)


def test_divergence_is_noticed_however_long_the_run(tmp_path: Path) -> None:
    """Long runs do not log every step, yet save no broken checkpoint."""
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    run = trainer(
        Recorder(),
        Plan(100_000, 4, {}),
        module=poisoned(Net(), {3}),
        checkpoints=store,
        settings={"checkpoint_seconds": 0, "max_rollbacks": 0},
    )
    with pytest.raises(TrainingError, match="not finite"):
        run.fit()
    checkpoint, damaged = store.latest()
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert not damaged
    assert all(bool(t.isfinite().all()) for t in checkpoint.tensors.values())


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_a_diverged_run_goes_back_with_a_lower_learning_rate(tmp_path: Path, value: float) -> None:
    observer = Recorder()
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    run = trainer(
        observer,
        Plan(8, 4, {0: 3, 4: 9}),
        module=poisoned(Net(), {7}, value),
        checkpoints=store,
        settings={"checkpoint_seconds": 0, "lr_schedule": "constant", "warmup": 0.0},
    )
    run.fit()
    (rollback,) = observer.of("rollback")
    assert (rollback["failed_at"], rollback["step"], rollback["lr_scale"]) == (7, 5, 0.5)
    rates = {entry["step"]: entry["lr"] for entry in observer.of("train")}
    assert rates == pytest.approx({step: 0.1 if step <= 5 else 0.05 for step in range(1, 9)})
    assert [event["step"] for event in observer.of("event")] == [0, 4]
    assert any("diverged at step 7" in message for message in observer.messages)
    assert int((run.parameters["fc.weight"] == 0).sum()) == 9
    assert run.state.finite()


def test_rollbacks_are_bounded(tmp_path: Path) -> None:
    observer = Recorder()
    run = trainer(
        observer,
        Plan(8, 4, {}),
        module=poisoned(Net(), set(range(3, 100))),
        checkpoints=CheckpointStore(tmp_path / "checkpoints", "run"),
        settings={"checkpoint_seconds": 0, "max_rollbacks": 2, "rollback_lr": 0.1},
    )
    with pytest.raises(TrainingError, match="also after 2 rollbacks"):
        run.fit()
    assert [entry["lr_scale"] for entry in observer.of("rollback")] == pytest.approx([0.1, 0.01])


def test_a_resumed_run_remembers_its_rollbacks(tmp_path: Path) -> None:
    settings = {"checkpoint_seconds": 0, "lr_schedule": "constant", "warmup": 0.0}
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    observer = Recorder()
    first = trainer(
        observer,
        Plan(8, 4, {}),
        module=poisoned(Net(), {4}),
        checkpoints=store,
        settings=settings,
        stop=lambda: len(observer.of("train")) == 6,
    )
    with pytest.raises(Interrupted):
        first.fit()
    second = trainer(Recorder(), Plan(8, 4, {}), checkpoints=store, settings=settings)
    assert second.resume()
    assert (second.step, second.rollbacks, second.lr_scale) == (6, 1, 0.5)
    second.fit()
    assert second.stepper.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_rollback_is_saved_at_once(tmp_path: Path) -> None:
    """A run that is killed right after one goes on with the lower learning rate."""
    settings = {"checkpoint_seconds": 0, "lr_schedule": "constant", "warmup": 0.0}
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    module = poisoned(Net(), {4})

    def killed(*_: Any) -> None:
        if len(module.calls) == 4:
            raise KeyboardInterrupt

    module.register_forward_pre_hook(killed)
    first = trainer(Recorder(), Plan(8, 4, {}), module=module, checkpoints=store, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second = trainer(Recorder(), Plan(8, 4, {}), checkpoints=store, settings=settings)
    assert second.resume()
    assert (second.step, second.rollbacks, second.lr_scale) == (2, 1, 0.5)


@pytest.mark.parametrize(("fault", "expected"), [("loss", (5, 3)), ("weight", (5, 4))])
def test_the_state_that_a_loss_belongs_to_is_given_up(
    tmp_path: Path, fault: str, expected: tuple[int, int]
) -> None:
    """A step's loss is that of the weights before it, and no lower rate makes it better.

    Where the weights are at fault after a step, the state before it is gone back to first.
    """
    observer, module = Recorder(), Net()
    run = trainer(
        observer,
        Plan(8, 4, {}),
        module=poisoned(module, {5} if fault == "loss" else set()),
        checkpoints=CheckpointStore(tmp_path / "checkpoints", "run"),
        settings={"checkpoint_seconds": 0},
    )
    original = run.stepper.step

    def step(batch: Batch, lr: float, decay_factor: float) -> Tensor:
        loss = original(batch, lr, decay_factor)
        if fault == "weight" and len(module.calls) == 5:
            with torch.no_grad():
                module.fc.weight[0, 0] = float("inf")
        return loss

    run.stepper.step = step  # type: ignore[method-assign]
    run.fit()
    (rollback,) = observer.of("rollback")
    assert (rollback["failed_at"], rollback["step"]) == expected
    assert (run.rollbacks, run.lr_scale) == (1, 0.5)


def test_a_state_that_diverges_again_is_given_up(tmp_path: Path) -> None:
    """The look at the loss covers three steps here, and the last checkpoint is no better."""
    observer = Recorder()

    def save_and_stop() -> bool:
        if run.step in (3, 6):
            run.save()
        return run.step == 12

    run = trainer(
        observer,
        Plan(1600, 400, {}),
        module=poisoned(Net(), {8, 9, 10, 11}),
        checkpoints=CheckpointStore(tmp_path / "checkpoints", "run"),
        stop=save_and_stop,
    )
    with pytest.raises(Interrupted):
        run.fit()
    went_back = [(entry["failed_at"], entry["step"]) for entry in observer.of("rollback")]
    assert went_back == [(9, 6), (9, 3)]
    assert (run.rollbacks, run.lr_scale) == (2, 0.25)


def test_data_that_fail_leave_a_checkpoint(tmp_path: Path) -> None:
    observer = Recorder()
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    items = samples()

    class Vanishing(list[Item]):
        def __getitem__(self, index: Any) -> Any:
            if run.step == 5:
                raise DataError("the image cannot be read", where=index)
            return super().__getitem__(index)

    run = trainer(observer, Plan(9, 4, {0: 3, 5: 9}), checkpoints=store)
    run.batches = BatchSource(Vanishing(items), 5)
    with pytest.raises(DataError, match="cannot be read"):
        run.fit()
    checkpoint, _ = store.latest()
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert observer.messages == ["step 5 is saved; continue with --resume"]


class Limited(Net):
    """A module that has memory for a few samples only."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError(f"{len(x)} samples are too many")
        return super().forward(x)


def test_out_of_memory_halves_the_passes_and_keeps_the_step() -> None:
    """Without BatchNorm and Dropout, accumulated gradients are those of the whole batch."""
    observer = Recorder()
    updated = {}
    for module in (Net(), Limited(2)):
        module.norm, module.drop = nn.Identity(), nn.Identity()
        parameters = dict(module.named_parameters())
        run = trainer(observer, Plan(3, 4, {0: 9}), module=module, parameters=parameters)
        run.fit()
        updated[type(module)] = [p.detach().clone() for p in module.parameters()]
    for whole, parts in zip(*updated.values(), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-7)
    assert run.micro_batch == 2
    assert module.calls == [2, 2, 1] * 3
    assert [m for m in observer.messages if "out of memory" in m] == [
        f"the device is out of memory: {size} samples pass at a time from now on, and gradients "
        "are accumulated over the batch"
        for size in (3, 2)
    ]


def test_out_of_memory_for_a_single_sample_is_an_error() -> None:
    with pytest.raises(TrainingError, match="1 samples a pass"):
        trainer(Recorder(), Plan(3, 4, {}), module=Limited(0)).fit()


def test_a_set_micro_batch_is_kept_through_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    module = Net()
    first = trainer(
        Recorder(), Plan(1, 4, {}), module=module, checkpoints=store, settings={"micro_batch": 3}
    )
    first.fit()
    first.save()
    assert module.calls == [3, 2]
    second = trainer(Recorder(), Plan(1, 4, {}), checkpoints=store)
    assert second.resume()
    assert second.micro_batch == 3


@pytest.mark.parametrize("rewind", [None, 0, 2])
def test_rounds_restart_the_learning_rate_and_may_rewind_weights(rewind: int | None) -> None:
    """After a rewind, a step is that of the first course, taken from the same weights."""
    module = Net()
    module.drop = nn.Identity()
    starts = [0, 8] if not rewind else [5, 8]
    seen: dict[int, dict[str, Tensor]] = {}
    observer = Recorder()
    plan = Plan(
        12,
        4,
        {starts[0]: 6, starts[1]: 12},
        courses=courses_of(starts, 12, rewind or 0),
        rewind_point=rewind,
    )
    run = trainer(
        observer,
        plan,
        module=module,
        settings={"lr_schedule": "linear", "warmup": 0.0, "momentum": 0.9},
        stop=lambda: seen.update({run.step: copy.deepcopy(module.state_dict())}) or False,
    )
    seen[0] = copy.deepcopy(module.state_dict())
    before: dict[int, dict[str, Tensor]] = {}
    original = run.stepper.step

    def step(batch: Batch, lr: float, decay_factor: float) -> Tensor:
        before[run.step] = copy.deepcopy(module.state_dict())
        assert bool(run.stepper.optimizer.state) == (run.step not in (0, *starts))
        return original(batch, lr)

    run.stepper.step = step  # type: ignore[method-assign]
    run.fit()
    lrs = {entry["step"]: entry["lr"] for entry in observer.of("train")}
    skipped = rewind or 0
    assert lrs[9] == pytest.approx(0.1 * (1 - (skipped + 0.5) / (skipped + 4)))
    mask = run.masks.masks["fc.weight"]
    expected = seen[7 if rewind is None else rewind] if rewind is not None else seen[8]
    for name, tensor in before[8].items():
        wanted = expected[name] * mask if name == "fc.weight" else expected[name]
        assert torch.equal(tensor, wanted), name
    assert int((module.fc.weight == 0).sum()) == 12
    # Shed weights are counted from those that the round begins with.
    began = kept_rms({"fc.weight": before[8]["fc.weight"]}, {"fc.weight": mask})
    assert run.pruner.monitor.since == 8
    assert run.pruner.monitor.rms == pytest.approx(began)


def test_the_average_is_what_a_run_ends_with() -> None:
    """With decay d it becomes d * average + (1 - d) * weights after every step but the first."""
    weights: list[Tensor] = []
    module = Net()
    run = trainer(
        Recorder(),
        Plan(6, 4, {2: 9}),
        module=module,
        settings={"ema": 0.75},
        stop=lambda: weights.append(module.fc.weight.detach().clone()) or False,
    )
    run.fit()
    expected = weights[0]
    for number, weight in enumerate(weights[1:], start=1):
        if number == 2:
            expected = expected * run.masks.masks["fc.weight"]
        expected = 0.75 * expected + 0.25 * weight
    run.finish()
    torch.testing.assert_close(module.fc.weight.detach(), expected)
    assert int((module.fc.weight == 0).sum()) == 9


def test_the_average_begins_anew_with_rewound_weights() -> None:
    """After a rewind it is made of the weights since, and masked as they are."""
    weights: list[Tensor] = []
    module = Net()
    plan = Plan(8, 4, {0: 4, 6: 12}, courses=courses_of([0, 6], 8, 0), rewind_point=0)
    run = trainer(
        Recorder(),
        plan,
        module=module,
        settings={"ema": 0.75},
        stop=lambda: weights.append(module.fc.weight.detach().clone()) or False,
    )
    run.fit()
    assert int(run.stepper.average.n_averaged) == 2
    run.finish()
    torch.testing.assert_close(module.fc.weight.detach(), 0.75 * weights[6] + 0.25 * weights[7])


def test_the_average_survives_a_checkpoint(tmp_path: Path) -> None:
    settings = {"ema": 0.5}
    whole = trainer(Recorder(), Plan(8, 4, {0: 3, 4: 9}), settings=settings)
    torch.manual_seed(0)
    whole.fit()
    store = CheckpointStore(tmp_path / "checkpoints", "run")
    first = trainer(
        Recorder(),
        Plan(8, 4, {0: 3, 4: 9}),
        settings=settings,
        checkpoints=store,
        stop=lambda: first.step == 5,
    )
    torch.manual_seed(0)
    with pytest.raises(Interrupted):
        first.fit()
    second = trainer(Recorder(), Plan(8, 4, {0: 3, 4: 9}), settings=settings, checkpoints=store)
    assert second.resume()
    second.fit()
    assert torch.equal(whole.finish().fc.weight, second.finish().fc.weight)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_sharpness_aware_training_keeps_the_masks(optimizer: str) -> None:
    observer = Recorder()
    module = Net()
    run = trainer(
        observer,
        Plan(6, 4, {0: 3, 3: 9}),
        module=module,
        settings={"sam_rho": 0.1, "optimizer": optimizer},
    )
    run.fit()
    assert len(module.calls) == 12
    assert int((module.fc.weight == 0).sum()) == 9


def test_a_compiled_model_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiler(module: nn.Module) -> Any:
        calls.append(module)
        return compile_module(module, backend="aot_eager")

    compile_module = torch.compile
    monkeypatch.setattr(torch, "compile", compiler)
    updated = []
    for compiled in (False, True):
        module = Net()
        module.drop = nn.Identity()
        trainer(Recorder(), Plan(3, 4, {0: 6}), module=module, settings={"compile": compiled}).fit()
        updated.append(module.fc.weight.detach().clone())
    torch.testing.assert_close(*updated, rtol=1e-5, atol=1e-7)
    assert calls == [module]


def test_long_runs_log_some_steps_and_the_last() -> None:
    observer = Recorder()
    run = trainer(observer, Plan(4001, 4, {}))
    run.step = 3980
    run.fit()
    assert [entry["step"] for entry in observer.of("train")] == [3984, 3992, 4000, 4001]


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


def test_shed_weights_are_counted_between_events_and_at_the_end() -> None:
    """So the shed rate can be seen to rise between two events, and the end of a run is its end."""
    observer = Recorder()
    trainer(observer, Plan(250, 4, {0: 3, 9: 6, 18: 9})).fit()
    steps = [entry["step"] for entry in observer.of("shed")]
    assert [step for step in steps if 9 <= step <= 18] == [9, 10, 11, 12, 13, 14, 15, 16, 18]
    assert steps[-1] == 250
    assert len(steps) < 150
