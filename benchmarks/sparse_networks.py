"""Networks for measuring sparse kernels: shapes of production models, random weights.

Pruned at once by magnitude in each weight; what they compute means nothing, and time does not
depend on it.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

from onnxprune.runtime import library_path

BLOCK = 4


class TextClassifier(nn.Module):
    """Convolutions over embedded tokens, pooled; no size is a multiple of a vector's."""

    def __init__(self, width: int = 203, channels: int = 331, classes: int = 37) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(width, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, padding=1, stride=2),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(channels, 517), nn.GELU(), nn.Linear(517, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings `(batch, tokens, width)` to classes `(batch, classes)`."""
        logits: torch.Tensor = self.head(self.body(x.transpose(1, 2)).mean(2))
        return logits


def encoder(width: int, heads: int, layers: int) -> nn.Module:
    """Encoder layers on embeddings, with four times the width inside."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
    network = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    for parameter in network.parameters():  # the layers are copies of one
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return network


_IMAGE = (3, 224, 224)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet50": (torchvision.models.resnet50, _IMAGE),
    "mobilenet_v3_large": (torchvision.models.mobilenet_v3_large, _IMAGE),
    "bert_base": (lambda: encoder(768, 12, 12), (128, 768)),
    "resnet18": (torchvision.models.resnet18, _IMAGE),
    "resnet34": (torchvision.models.resnet34, _IMAGE),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, _IMAGE),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, _IMAGE),
    "vit_tiny": (lambda: encoder(192, 3, 12), (197, 192)),
    "text_classifier": (TextClassifier, (77, 203)),
}
"""How each is made, and the shape of one sample."""

UNSEEN = (
    *("convnext_tiny", "densenet121", "efficientnet_v2_s", "googlenet", "mnasnet1_0"),
    *("regnet_y_400mf", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t"),
)
"""Networks of torchvision whose layers no cost was measured on."""


def export(
    name: str, path: Path, prune: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> None:
    """Write a network, with its weights pruned by a function if there is one."""
    make, shape = NETWORKS.get(name, (None, _IMAGE))
    torch.manual_seed(0)
    network = (torchvision.models.get_model(name, weights=None) if make is None else make()).eval()
    torch.backends.mha.set_fastpath_enabled(False)
    if prune is not None:
        with torch.no_grad():
            for weight in network.parameters():
                depthwise = weight.ndim == 4 and weight.shape[1] == 1
                if weight.ndim > 1 and not depthwise:
                    weight.copy_(prune(weight))
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, *shape),),
            path,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
            dynamo=False,
        )


def export_pruned(name: str, path: Path, sparsity: float, pattern: str) -> None:
    """Write a network pruned by magnitude; `pattern` is `unstructured` or blocks of outputs."""
    export(name, path, lambda weight: magnitude(weight, sparsity, pattern))


def magnitude(weight: torch.Tensor, sparsity: float, pattern: str) -> torch.Tensor:
    """The weight with its smallest values set to zero, one by one or in blocks of outputs."""
    size = weight.abs()
    if pattern != "unstructured" and len(weight) % BLOCK == 0:
        blocks = size.reshape(len(weight) // BLOCK, BLOCK, *weight.shape[1:]).sum(1)
        size = blocks.repeat_interleave(BLOCK, 0)
    count = int(size.numel() * sparsity)
    threshold = size.flatten().kthvalue(max(count, 1)).values
    return weight * (size > threshold)


def runtime_digest() -> str:
    """The kernels and the compiler that results belong to."""
    library = library_path()
    digest = hashlib.sha256(library.read_bytes())
    for source in sorted(library.parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
