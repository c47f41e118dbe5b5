"""A tiny pruning job on generated data: a convolutional classifier and noise with a pattern."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASSES = 4


@dataclass(frozen=True)
class SmallRun:
    """Files of a job.

    Attributes:
        model: A dense `.onnx` file, whose input is `x`.
        train: Samples as `.npz`.
        evaluation: Other samples.
    """

    model: Path
    train: Path
    evaluation: Path


def make_small_run(folder: Path, *, samples: int, size: int, width: int, seed: int) -> SmallRun:
    """Write model and data.

    Args:
        folder: Where to.
        samples: Training samples; there are half as many for evaluation.
        size: Height and width of an image.
        width: Channels of the convolutions.
        seed: Seed of weights and data.
    """
    torch.manual_seed(seed)
    # Without BatchNorm, whose statistics depend on how a batch is spread over ranks.
    network = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, CLASSES),
    ).eval()
    run = SmallRun(folder / "model.onnx", folder / "train.npz", folder / "eval.npz")
    torch.onnx.export(
        network,
        (torch.randn(2, 3, size, size),),
        str(run.model),
        dynamo=False,
        input_names=["x"],
        output_names=["scores"],
        dynamic_axes={"x": {0: "batch"}, "scores": {0: "batch"}},
    )
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(CLASSES, 3, size, size))
    for path, count in ((run.train, samples), (run.evaluation, samples // 2)):
        label = rng.integers(0, CLASSES, count)
        x = rng.normal(scale=0.5, size=(count, 3, size, size)) + patterns[label]
        np.savez(path, x=x.astype(np.float32), label=label.astype(np.int64))
    return run
