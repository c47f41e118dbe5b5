import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from onnxprune.cascade import ShedMonitor
from onnxprune.errors import CheckpointError, OutputError
from onnxprune.finetune import Checkpoint, CheckpointStore
from onnxprune.finetune.ranks import Ranks
from onnxprune.finetune.state import TrainingState
from onnxprune.sparsity import MaskSet


def checkpoint(step: int) -> Checkpoint:
    tensors = {"model.w": torch.full((2, 3), float(step)), "mask.w": torch.eye(2, dtype=torch.bool)}
    return Checkpoint(step, tensors, {"note": step})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", "run-a")


def test_round_trip(store: CheckpointStore) -> None:
    store.save(checkpoint(3))
    found, damaged = store.latest()
    assert damaged == []
    assert found is not None
    assert found.step == 3
    assert found.facts == {"note": 3}
    assert torch.equal(found.tensors["model.w"], torch.full((2, 3), 3.0))
    assert torch.equal(found.tensors["mask.w"], torch.eye(2, dtype=torch.bool))


def test_none_yet(store: CheckpointStore) -> None:
    assert store.latest() == (None, [])


def test_the_last_two_are_kept(store: CheckpointStore) -> None:
    for step in (9, 10, 100):
        store.save(checkpoint(step))
    names = sorted(folder.name for folder in store.folder.iterdir())
    assert names == ["step-00000010", "step-00000100"]
    found, _ = store.latest()
    assert found is not None
    assert found.step == 100


def test_what_a_process_left_that_died_before_it_cleared_up_goes_with_the_next_save(
    store: CheckpointStore,
) -> None:
    """Also if that one is there already, as when training was over."""
    for step in (10, 20):
        store.save(checkpoint(step))
    shutil.copytree(store.folder / "step-00000010", store.folder / "step-00000005")
    (store.folder / ".step-00000030.tmp").mkdir()
    resumed = CheckpointStore(store.folder, store.run_id)
    found, _ = resumed.latest()
    assert found is not None
    resumed.save(found)
    assert sorted(f.name for f in store.folder.iterdir()) == ["step-00000010", "step-00000020"]


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    store.save(checkpoint(1))
    assert [folder.name for folder in store.folder.iterdir()] == ["step-00000001"]


def test_a_run_that_went_back_writes_another_checkpoint_of_the_step(store: CheckpointStore) -> None:
    """The one before is kept for it to go back further, and the old one until the new one is."""
    for step in (1, 2):
        store.save(checkpoint(step))
    store.save(Checkpoint(2, {"model.w": torch.zeros(1)}, {"note": "again"}, revision=1))
    found, damaged = store.latest()
    assert found is not None
    assert (found.step, found.revision, found.facts) == (2, 1, {"note": "again"})
    assert not damaged
    names = sorted(folder.name for folder in store.folder.iterdir())
    assert names == ["step-00000001", "step-00000002-00000001"]
    store.discard(2)
    found, _ = store.latest()
    assert found is not None
    assert (found.step, found.revision) == (1, 0)
    store.discard(1)
    assert store.latest()[0] is not None


def test_tensors_that_share_memory_or_are_views(store: CheckpointStore) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    store.save(Checkpoint(1, {"a": base, "b": base, "c": base.T}, {}))
    found, _ = store.latest()
    assert found is not None
    assert torch.equal(found.tensors["a"], found.tensors["b"])
    assert torch.equal(found.tensors["c"], base.T)


def test_a_half_written_checkpoint_is_no_checkpoint(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    partial = store.folder / ".step-00000002.tmp"
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"half")
    found, damaged = store.latest()
    assert found is not None
    assert (found.step, damaged) == (1, [])
    store.save(checkpoint(2))
    assert not partial.exists()


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff" * 64])
def test_damage_falls_back_to_the_one_before(
    store: CheckpointStore, file: str, content: bytes | None
) -> None:
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    target = store.folder / "step-00000002" / file
    if content is None:
        target.unlink()
    else:
        target.write_bytes(content)
    found, damaged = store.latest()
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert "step-00000002" in damaged[0]


def test_tensors_that_changed_under_their_checksum_are_damage(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    folder = store.folder / "step-00000001"
    facts = json.loads((folder / "state.json").read_text())
    facts["sha256"] = "0" * 64
    (folder / "state.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="checksum"):
        store.latest()


@pytest.mark.parametrize(
    "change", [{"step": 7}, {"facts": {"lr_scale": 9}}, {"run_id": "another"}], ids=str
)
def test_facts_that_changed_under_the_checksum_are_damage(
    store: CheckpointStore, change: dict[str, object]
) -> None:
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    file = store.folder / "step-00000002" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    found, damaged = store.latest()
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in damaged[0]


def test_another_run(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    with pytest.raises(CheckpointError, match="another model, recipe or data"):
        CheckpointStore(store.folder, "run-b").latest()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OutputError, match="a checkpoint cannot be written"):
        CheckpointStore(tmp_path / "checkpoints", "run").save(checkpoint(1))


class Product(nn.Module):
    """A matrix, a scalar and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = Parameter(torch.randn(3, 2))
        self.scalar = Parameter(torch.randn(()))
        self.register_buffer("count", torch.zeros(2))

    def forward(self) -> torch.Tensor:
        self.count += 1
        return (self.w**2).sum() * self.scalar


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_the_state_of_a_run_comes_back(optimizer_class: type[torch.optim.Optimizer]) -> None:
    """Steps after a restore are those that would have followed, scalars and counters included."""
    states = []
    for _ in range(2):
        module = Product()
        named = {"a.w": module.w, "scalar": module.scalar}
        options = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
        optimizer = optimizer_class(named.values(), lr=0.1, **options)
        ranks = Ranks(torch.device("cpu"))
        masks = MaskSet({"a.w": module.w})
        states.append(
            TrainingState(module, named, optimizer, masks, ShedMonitor(0.01), None, ranks, 0)
        )

    def step(state: TrainingState) -> None:
        state.module().backward()
        state.masks.mask_gradients()
        state.optimizer.step()
        state.optimizer.zero_grad()

    first, second = states
    mask = torch.tensor([[True, False]] * 3)
    first.masks.update({"a.w": mask})
    step(first)
    saved = {name: tensor.detach().clone() for name, tensor in first.tensors().items()}
    drawn = torch.rand(3)
    second.restore(saved, 1)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(second.masks.masks["a.w"], mask)
    assert second.masks.zeros == 3
    for state in states:
        step(state)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    assert first.module.count.tolist() == [2, 2]
