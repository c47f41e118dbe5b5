"""The networks of the experiments, and their way into `.onnx` files that can be trained.

- ResNets with BatchNorm as He et al. (arXiv 1512.03385, section 4.2) build them for small images:
  three stages of basic blocks, of width w, 2w and 4w, with projections where the shape changes.
- MobileNetV3 (Howard et al., arXiv 1905.02244): inverted bottlenecks with depthwise convolutions,
  squeeze-and-excitation and hard swish, in a small form of our own and in torchvision's.
- torchvision's ResNet-50.

torchvision's have a first convolution of stride 1 and no pooling after it, since images are small.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.onnx import TrainingMode
from torchvision import models

INPUT, OUTPUT = "image", "scores"


@dataclass(frozen=True)
class Row:
    """An inverted bottleneck.

    Attributes:
        kernel: Side of the depthwise kernel.
        expanded: Channels inside.
        out: Channels that it hands on.
        excited: Whether it has squeeze-and-excitation.
        hard_swish: Hard swish, or ReLU.
        stride: Of the depthwise convolution.
    """

    kernel: int
    expanded: int
    out: int
    excited: bool
    hard_swish: bool
    stride: int


_TINY_ROWS = (
    Row(3, 24, 16, excited=True, hard_swish=False, stride=1),
    Row(3, 64, 24, excited=False, hard_swish=False, stride=2),
    Row(3, 72, 24, excited=False, hard_swish=False, stride=1),
    Row(5, 96, 32, excited=True, hard_swish=True, stride=2),
    Row(5, 128, 32, excited=True, hard_swish=True, stride=1),
)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: (batch, c, h, w) -> (batch, out, h/s, w/s)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, out, 3, stride, nn.ReLU()), *_convolution(out, out, 3, 1, None)
        )
        same = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*_convolution(channels, out, 1, stride, None))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Excitation(nn.Module):
    """Squeeze-and-excitation: every channel times a factor that depends on all of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, channels // 4)
        self.factors = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors(x)


class Bottleneck(nn.Module):
    """An inverted bottleneck, with a shortcut where the shape stays."""

    def __init__(self, channels: int, row: Row) -> None:
        super().__init__()
        activation = nn.Hardswish() if row.hard_swish else nn.ReLU()
        wide = row.expanded
        self.body = nn.Sequential(
            *_convolution(channels, wide, 1, 1, activation),
            *_convolution(wide, wide, row.kernel, row.stride, activation, groups=wide),
            Excitation(wide) if row.excited else nn.Identity(),
            *_convolution(wide, row.out, 1, 1, None),
        )
        self.same = row.stride == 1 and channels == row.out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def resnet(classes: int, *, blocks: int, width: int) -> nn.Module:
    """A ResNet of 6 × `blocks` + 2 layers for grey images."""
    layers = [*_convolution(1, width, 3, 1, nn.ReLU())]
    channels = width
    for stage in range(3):
        for block in range(blocks):
            out = width * 2**stage
            layers.append(BasicBlock(channels, out, 2 if stage and not block else 1))
            channels = out
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def mobilenet_tiny(classes: int) -> nn.Module:
    """A MobileNetV3 of five bottlenecks for grey images from 14×14 pixels."""
    layers = [*_convolution(1, 16, 3, 1, nn.Hardswish())]
    channels = 16
    for row in _TINY_ROWS:
        layers.append(Bottleneck(channels, row))
        channels = row.out
    last = 4 * channels
    return nn.Sequential(
        *layers,
        *_convolution(channels, last, 1, 1, nn.Hardswish()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, classes),
    )


def resnet50(classes: int) -> nn.Module:
    """torchvision's, 23.5 million parameters."""
    network = models.resnet50(weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(1, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def mobilenet_v3_small(classes: int) -> nn.Module:
    """torchvision's, 1.5 million parameters, without its Dropout."""
    network = models.mobilenet_v3_small(weights=None, num_classes=classes, dropout=0.0)
    network.features[0][0] = nn.Conv2d(1, 16, 3, stride=1, padding=1, bias=False)
    network.classifier[2] = nn.Identity()
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": partial(resnet, blocks=1, width=12),
    "resnet20": partial(resnet, blocks=3, width=16),
    "resnet50": resnet50,
    "mobilenet-tiny": mobilenet_tiny,
    "mobilenet-v3-small": mobilenet_v3_small,
}
"""Name -> what makes it, given the number of classes."""


def write_untrained(name: str, classes: int, size: int, seed: int, path: Path) -> None:
    """Write a network with random weights as `.onnx`, in training form with a free batch axis.

    BatchNorm keeps its training flag, and equal tensors stay apart: in inference form the exporter
    would tie all BatchNorms of a width, which begin alike. `to_inference` clears the flags later.

    Args:
        name: In `NETWORKS`.
        classes: Number of classes.
        size: Height and width of the images, in pixels.
        seed: Of the weights.
        path: Where to; written under another name first, so that it is whole or missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and keeps parameter names
        torch.manual_seed(seed)
        network = NETWORKS[name](classes).train()
        partial_path = path.with_suffix(".part")
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, size, size),),
            str(partial_path),
            dynamo=False,
            opset_version=17,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            training=TrainingMode.TRAINING,
            do_constant_folding=False,
        )
    partial_path.replace(path)


def _convolution(
    channels: int, out: int, kernel: int, stride: int, activation: nn.Module | None, groups: int = 1
) -> list[nn.Module]:
    """Convolution, BatchNorm and activation."""
    convolution = nn.Conv2d(
        channels, out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(out)]
    return layers if activation is None else [*layers, activation]
