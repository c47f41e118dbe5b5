"""Random changes of training images."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onnxprune.calibration import Augmentation, Samples, open_data, subset
from onnxprune.errors import UsageError
from onnxprune.finetune import BatchSource
from onnxprune.model import ValueSpec
from onnxprune.recipe import Preprocess, Recipe

pytest.importorskip("torchvision")
INPUTS = [ValueSpec("x", np.dtype(np.float32), ("N", 3, 8, 8))]
FLIP = {"name": "RandomHorizontalFlip", "p": 0.5}


@pytest.fixture
def images(tmp_path: Path) -> Samples:
    rng = np.random.default_rng(0)
    for index in range(24):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index:02d}.png")
    return open_data(str(tmp_path), inputs=INPUTS, preprocess=Preprocess())


def test_a_flip_is_that_of_the_preprocessed_image(images: Samples) -> None:
    augmented = Augmentation(images, [{"name": "RandomHorizontalFlip", "p": 1.0}], 0)
    np.testing.assert_array_equal(augmented(3, 0).inputs["x"], images[3].inputs["x"][:, :, ::-1])
    part = subset(images, [5, 3])
    flipped = Augmentation(part, [{"name": "RandomHorizontalFlip", "p": 1.0}], 0)(1, 0)
    np.testing.assert_array_equal(flipped.inputs["x"], images[3].inputs["x"][:, :, ::-1])


def test_what_is_drawn_depends_on_seed_epoch_and_sample_alone(images: Samples) -> None:
    def drawn(seed: int, epoch: int) -> list[bool]:
        augmented = Augmentation(images, [FLIP], seed)
        return [
            bool(np.array_equal(augmented(i, epoch).inputs["x"], images[i].inputs["x"]))
            for i in range(len(images))
        ]

    first = drawn(0, 0)
    assert 4 < sum(first) < 20
    assert drawn(0, 0) == first
    assert drawn(0, 1) != first
    assert drawn(1, 0) != first


def test_batches_do_not_depend_on_workers_or_on_where_a_run_resumed(images: Samples) -> None:
    def batches(workers: int, first_step: int) -> list[np.ndarray]:
        augmented = Augmentation(images, [FLIP, {"name": "ColorJitter", "brightness": 0.5}], 0)
        source = BatchSource(images, 8, workers=workers, augment=augmented, cache_bytes=2**20)
        shuffled = source.shuffled(first_step)
        return [next(shuffled).inputs["x"].numpy() for _ in range(6 - first_step)]

    whole = batches(0, 0)
    assert not np.array_equal(whole[0], whole[3])
    for found in (batches(1, 0), batches(0, 2)):
        for one, other in zip(found, whole[-len(found) :], strict=True):
            np.testing.assert_array_equal(one, other)


def test_other_batches_are_left_as_they_are(images: Samples) -> None:
    augmented = Augmentation(images, [{"name": "RandomHorizontalFlip", "p": 1.0}], 0)
    source = BatchSource(images, 4, augment=augmented)
    assert source.augmented
    for batches in (source.in_order(4), source.spread(4)):
        batch = next(batches)
        for row, index in zip(batch.inputs["x"], batch.indices, strict=True):
            np.testing.assert_array_equal(row.numpy(), images[int(index)].inputs["x"])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"name": "RandomHorizontalFlipp"}, "no such transform"),
        ({"name": "Lambda"}, "no such transform"),
        ({"name": "functional"}, "no such transform"),
        ({"name": "RandomHorizontalFlip", "prob": 1}, "arguments of RandomHorizontalFlip"),
        ({"name": "RandomResizedCrop"}, "arguments of RandomResizedCrop"),
    ],
)
def test_wrong_transforms_are_refused(
    images: Samples, transform: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Augmentation(images, [FLIP, transform], 0)
    assert "transforms[1]" in str(caught.value)


def test_a_transform_has_to_make_an_image(images: Samples) -> None:
    with pytest.raises(UsageError, match="makes no image"):
        Augmentation(images, [{"name": "ToImage"}], 0)(0, 0)


def test_arrays_are_not_augmented(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    samples = open_data(str(tmp_path / "x.npz"), inputs=INPUTS)
    with pytest.raises(UsageError, match="only images"):
        Augmentation(samples, [FLIP], 0)


def test_transforms_survive_toml(tmp_path: Path) -> None:
    crop = {"name": "RandomResizedCrop", "size": [8, 8], "scale": [0.7, 1.0]}
    recipe = Recipe.from_dict({"augment": {"transforms": [FLIP, crop]}})
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    again = Recipe.from_toml(path)
    assert again == recipe
    assert again.sha256() == recipe.sha256() != Recipe().sha256()


def test_transforms_within_transforms(images: Samples) -> None:
    flip = {"name": "RandomHorizontalFlip", "p": 1.0}
    nested = {"name": "RandomApply", "p": 1.0, "transforms": [flip]}
    changed = Augmentation(images, [nested], 0)(3, 0)
    np.testing.assert_array_equal(changed.inputs["x"], images[3].inputs["x"][:, :, ::-1])
    recipe = Recipe.from_dict({"augment": {"transforms": [nested]}})
    assert Recipe.from_dict(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    "inner", [{"name": "Lambda"}, {"name": "RandomHorizontalFlip", "prob": 1}, {"p": 1}, 3]
)
def test_wrong_transforms_within_transforms_are_refused_before_any_image(
    images: Samples, inner: object
) -> None:
    nested = {"name": "RandomApply", "p": 0.0, "transforms": [FLIP, inner]}
    with pytest.raises(UsageError) as caught:
        Augmentation(images, [nested], 0)
    assert "transforms[0].transforms[1]" in str(caught.value)


def test_draws_leave_the_generators_of_training_alone(
    images: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout on a GPU draws from the device's generator, which must not be seeded by a sample."""

    def refuse(seed: int) -> None:
        raise AssertionError("a device's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    Augmentation(images, [FLIP], 0)(0, 0)
    assert torch.equal(torch.get_rng_state(), before)
