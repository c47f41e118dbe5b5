import sys

import numpy as np
import pytest
from PIL import Image

from onnxprune.calibration import open_data
from onnxprune.errors import DataError, MissingDependencyError
from onnxprune.model import ValueSpec

GREY = [ValueSpec("x", np.dtype(np.float32), ("N", 1, 28, 28))]


@pytest.fixture
def fashion(tmp_path):
    """FashionMNIST's raw files with four images; image i is grey value 10 * i."""
    pytest.importorskip("torchvision")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.repeat(np.array([0, 10, 20, 30], np.uint8), 28 * 28)
    labels = np.array([9, 0, 4, 9], np.uint8)
    for part in ("train", "t10k"):
        images = np.array([2051, 4, 28, 28], ">i4").tobytes() + pixels.tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        header = np.array([2049, 4], ">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return tmp_path


def test_images_and_labels(fashion):
    spec = f"torchvision:FashionMNIST?root={fashion}&train=false"
    samples = open_data(spec, inputs=GREY, num_classes=10)
    assert [sample.label for sample in samples] == [9, 0, 4, 9]
    assert samples.classes[9] == "Ankle boot"
    assert samples.labelled
    assert samples[2].inputs["x"].shape == (1, 28, 28)
    assert round(float(samples[2].inputs["x"].max()) * 255) == 20
    assert samples.raw_image(3).size == (28, 28)
    train = open_data(f"torchvision:FashionMNIST?root={fashion}&train=true", inputs=GREY)
    assert train.digest() == samples.digest()


def test_labels_follow_the_models_class_order(fashion):
    spec = f"torchvision:FashionMNIST?root={fashion}"
    names = open_data(spec, inputs=GREY).classes
    samples = open_data(spec, inputs=GREY, classes=names[::-1], num_classes=10)
    assert [samples.label(i) for i in range(4)] == [0, 9, 5, 0]
    with pytest.raises(DataError, match="Ankle boot"):
        open_data(spec, inputs=GREY, classes=names[:9])


def test_labels_beyond_the_model(fashion):
    with pytest.raises(DataError, match=r"sample 0(.|\n)*got: 9"):
        open_data(f"torchvision:FashionMNIST?root={fashion}", inputs=GREY, num_classes=9)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("FashonMNIST?root=x", "FashionMNIST"),
        ("FashionMNIST?root=x&splitt=test", "'splitt'(.|\n)*train"),
        ("FashionMNIST?root=/nonexistent-folder", "cannot be opened(.|\n)*download"),
        ("CocoDetection?root=x", "cannot be opened"),
    ],
)
def test_what_cannot_be_opened(query, message):
    pytest.importorskip("torchvision")
    with pytest.raises(DataError, match=message):
        open_data(f"torchvision:{query}", inputs=GREY)


def test_image_folder_class(tmp_path):
    pytest.importorskip("torchvision")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (28, 28), 50).save(tmp_path / name / "0.png")
    samples = open_data(f"torchvision:ImageFolder?root={tmp_path}", inputs=GREY, num_classes=2)
    assert [sample.label for sample in samples] == [0, 1]


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"onnxprune\[train\]"):
        open_data("torchvision:FashionMNIST?root=x", inputs=GREY)
