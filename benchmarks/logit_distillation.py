"""Which distance a label-free run should use on class scores that leave the graph as logits.

A small network that tells drawn characters apart is trained here; with `--lines`, the PP-OCR angle
classifier without its last softmax is pruned too, on drawn lines of text:

python benchmarks/logit_distillation.py --seeds 0 1 --losses mse "kl T=1" "kl+mse T=1"
python benchmarks/logit_distillation.py --embedding --losses mse "kl+mse T=1" cosine \
    --name logit_distillation_embedding
python benchmarks/logit_distillation.py --epochs 4 --sparsity 0.5 \
    --losses mse "kl T=1" "kl+mse T=1" --lines ch_ppocr_mobile_v2.0_cls_infer.onnx \
    --name logit_distillation_lines
"""

import argparse
import string
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import onnx
import torch
from PIL import Image, ImageDraw, ImageFont
from record import write_results
from torch import nn
from torch.nn import functional

import onnxprune

CHARACTERS = string.ascii_uppercase + string.digits
FONTS = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))
LOSSES: dict[str, dict[str, Any]] = {
    "mse": {"loss": "mse"},
    "kl T=1": {"loss": "kl", "temperature": 1.0},
    "kl T=2": {"loss": "kl", "temperature": 2.0},
    "kl T=4": {"loss": "kl", "temperature": 4.0},
    "kl+mse T=1": {"loss": "kl+mse"},
    "cosine": {"loss": "cosine"},
}


def main() -> None:
    """One run for each sparsity, distance and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--embedding", action="store_true", help="leave out the network's head")
    parser.add_argument("--lines", type=Path, help="the PP-OCR angle classifier")
    parser.add_argument("--name", default="logit_distillation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = (
            _lines(arguments.lines, folder) if arguments.lines else _characters(folder, arguments)
        )
        runs = [
            _run(folder, model, loss, sparsity, seed, arguments.epochs)
            for sparsity in arguments.sparsity
            for loss in arguments.losses
            for seed in arguments.seeds
        ]
    write_results(arguments.name, {k: str(v) for k, v in vars(arguments).items()}, runs)


def _run(
    folder: Path, model: Path, loss: str, sparsity: float, seed: int, epochs: float
) -> dict[str, Any]:
    recipe = onnxprune.Recipe.from_dict(
        {
            "data": {"train": str(folder / "train.npz"), "eval": str(folder / "eval.npz")},
            "sparsity": {"target": sparsity},
            "finetune": {
                "epochs": epochs,
                "seed": seed,
                "device": "cpu",
                "threads": 1,
                "evaluations": 0,
            },
            "distill": LOSSES[loss],
            "validate": {"latency": False, "threads": 1},
        }
    )
    output = folder / "pruned.onnx"
    validation = onnxprune.prune(model, output, recipe, run_dir=folder / f"run-{loss}-{seed}")[
        "validation"
    ]
    result = {
        "loss": loss,
        "sparsity": sparsity,
        "seed": seed,
        "dense": validation["dense"],
        "pruned": validation["pruned"],
    }
    print(result, flush=True)
    return result


def _characters(folder: Path, arguments: argparse.Namespace) -> Path:
    """A trained network with 36 logits, unlabelled training data, and labelled evaluation data."""
    rng = np.random.default_rng(0)
    train, train_label = _glyphs(rng, 3000)
    evaluation, label = _glyphs(rng, 1500)
    torch.manual_seed(0)
    network = nn.Sequential(
        *_block(1, 16, 2),
        *_block(16, 48, 2),
        *_block(48, 64, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, len(CHARACTERS)),
    )
    _train(network, torch.from_numpy(train), torch.from_numpy(train_label))
    if arguments.embedding:
        network = network[:-1]
    path = folder / "dense.onnx"
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.onnx.export(
        network.eval(), (torch.zeros(2, 1, 24, 24),), path, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}, dynamo=False,
    )  # fmt: skip
    np.savez(folder / "train.npz", x=train)
    labels = {} if arguments.embedding else {"label": label}
    np.savez(folder / "eval.npz", x=evaluation, **labels)
    return path


def _block(channels: int, out_channels: int, stride: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
    yield nn.BatchNorm2d(out_channels)
    yield nn.ReLU()


def _train(network: nn.Module, x: torch.Tensor, label: torch.Tensor, epochs: int = 12) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x) // 64 * 64, 64):
            rows = order[start : start + 64]
            optimizer.zero_grad()
            functional.cross_entropy(network(x[rows]), label[rows]).backward()
            optimizer.step()
            schedule.step()


def _glyphs(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn characters `(count, 1, 24, 24)` with noise, and which they are."""
    label = rng.integers(0, len(CHARACTERS), count)
    images = []
    for index in label:
        font = ImageFont.truetype(str(FONTS[rng.integers(len(FONTS))]), int(rng.integers(14, 22)))
        image = Image.new("L", (24, 24))
        place = tuple(int(value) for value in rng.integers(9, 16, 2))
        ImageDraw.Draw(image).text(place, CHARACTERS[index], 255, font, anchor="mm")
        images.append(np.asarray(image.rotate(float(rng.uniform(-10, 10)))))
    x = np.stack(images)[:, None].astype(np.float32) / 255
    return (x + rng.normal(scale=0.1, size=x.shape)).astype(np.float32), label


def _lines(source: Path, folder: Path) -> Path:
    """The angle classifier without its softmax, and drawn lines, upright or upside down."""
    proto = onnx.load(source)
    (index,) = (i for i, node in enumerate(proto.graph.node) if node.op_type == "Softmax")
    proto.graph.output[0].name = proto.graph.node[index].input[0]
    del proto.graph.node[index:]
    path = folder / "dense.onnx"
    onnx.save(proto, path)
    rng = np.random.default_rng(0)
    for name, count in (("train", 400), ("eval", 400)):
        label = np.arange(count) % 2
        x = np.stack([_line(rng, bool(turned)) for turned in label])
        arrays = {"x": x} if name == "train" else {"x": x, "label": label}
        np.savez(folder / f"{name}.npz", **arrays)
    return path


def _line(rng: np.random.Generator, turned: bool) -> np.ndarray:
    """A line of text `(3, 48, 192)` as the classifier takes it: (pixel / 255 - 0.5) / 0.5."""
    font = ImageFont.truetype(str(FONTS[rng.integers(len(FONTS))]), int(rng.integers(20, 34)))
    image = Image.new("L", (192, 48), int(rng.integers(140, 256)))
    text = "".join(rng.choice(list(string.ascii_letters + " "), 14))
    place = (int(rng.integers(0, 10)), int(rng.integers(18, 30)))
    ImageDraw.Draw(image).text(place, text, int(rng.integers(0, 110)), font, anchor="lm")
    image = image.rotate(180 if turned else 0)
    x = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)
    x += rng.normal(scale=12, size=x.shape).astype(np.float32)
    return ((x / 255 - 0.5) / 0.5).astype(np.float32)


if __name__ == "__main__":
    main()
