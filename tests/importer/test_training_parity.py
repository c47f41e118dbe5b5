"""Training beside the native module: exports in training form give the same losses and tensors."""

import copy
import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from onnxprune.importer import ImportedModel, load

TOLERANCE = 1e-4
VOCABULARY = 30


class Tagger(nn.Module):
    """Embedding, bidirectional LSTM, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.lstm = nn.LSTM(12, 10, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


class SequenceClassifier(nn.Module):
    """Embedding, GRU, linear layer on the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.gru = nn.GRU(12, 10, 2, batch_first=True)
        self.head = nn.Linear(10, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(tokens))[1][-1])


class Recogniser(nn.Module):
    """Convolutions, bidirectional LSTM over columns, log-softmax for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.lstm = nn.LSTM(64, 12, bidirectional=True)
        self.head = nn.Linear(24, 11)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).permute(3, 0, 1, 2).flatten(2)
        return F.log_softmax(self.head(self.lstm(columns)[0]), dim=-1)


class UNet(nn.Module):
    """Down, up with a transposed convolution, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 3, 2, padding=1, output_padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        up = self.up(self.middle(F.max_pool2d(skip, 2)))
        return self.head(torch.cat([up, skip], dim=1)).movedim(1, -1)


class Encoder(nn.Module):
    """Transformer encoder with learned positions added to its input."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            16, 4, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.position = nn.Parameter(torch.randn(1, 9, 16))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x + self.position).mean(dim=1))


class Pooling(nn.Module):
    """Attention pooling: a table behind a fixed index, a learned scalar, a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.table = nn.Parameter(torch.randn(7, 8))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.query = nn.Parameter(torch.randn(1, 8))
        self.head = nn.Linear(8, 5)
        self.register_buffer("places", torch.tensor([0, 2, 4, 6, 1]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x) + self.table[self.places]
        weights = F.softmax((hidden * self.query).sum(-1) / self.temperature, dim=1)
        return self.head((hidden * weights.unsqueeze(-1)).sum(dim=1))


def audio_net() -> nn.Module:
    """Depthwise-separable one-dimensional convolutions with GroupNorm."""
    return nn.Sequential(
        *(nn.Conv1d(1, 8, 9, stride=4, padding=4), nn.Conv1d(8, 8, 5, padding=2, groups=8)),
        *(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv1d(8, 16, 1), nn.GroupNorm(4, 16), nn.GELU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5)),
    )


def small_norms_net() -> nn.Module:
    """Instance norms with and without parameters, PReLU with one and many slopes, weight norm."""
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(
        *(convolution, nn.InstanceNorm2d(8, affine=True), nn.PReLU(8)),
        *(nn.Conv2d(8, 8, 3, stride=2), nn.InstanceNorm2d(8), nn.PReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


Case = tuple[nn.Module, tuple[int, ...]]


def image(
    network: Callable[..., nn.Module], *arguments: Any, batch: int = 8, size: int = 32
) -> Callable[[], Case]:
    return lambda: (network(*arguments, num_classes=10), (batch, 3, size, size))


def convnext(num_classes: int) -> nn.Module:
    """Two stages and the downsampling between them."""
    blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
    return models.ConvNeXt(blocks, num_classes=num_classes)


def swin(num_classes: int) -> nn.Module:
    """Of 16 × 16 and 8 × 8 places, which windows of 7 × 7 have to pad; every other is shifted."""
    return models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=num_classes)


# Few and narrow blocks of each kind: whether a graph is read rightly does not depend on their size.
CASES: dict[str, Callable[[], Case]] = {
    "resnet": image(models.ResNet, BasicBlock, [1, 1, 1, 1]),
    "mobilenet_v3": image(partial(models.mobilenet_v3_small, width_mult=0.5)),
    "efficientnet_b0": image(models.efficientnet_b0),
    "densenet": image(models.DenseNet, 8, (2, 2, 2), 16),
    "shufflenet_v2_x0_5": image(models.shufflenet_v2_x0_5),
    "regnet_y_400mf": image(models.regnet_y_400mf),
    "convnext": image(convnext, batch=2),
    "swin": image(swin, batch=2, size=64),
    "vit": image(models.VisionTransformer, 32, 16, 2, 4, 64, 128, batch=2),
    "squeezenet1_1": image(models.squeezenet1_1),
    "tagger": lambda: (Tagger(), (4, 9)),
    "gru": lambda: (SequenceClassifier(), (4, 9)),
    "recogniser": lambda: (Recogniser(), (3, 1, 16, 24)),
    "unet": lambda: (UNet(), (2, 3, 16, 16)),
    "encoder": lambda: (Encoder(norm_first=False), (4, 9, 16)),
    "encoder_norm_first": lambda: (Encoder(norm_first=True), (4, 9, 16)),
    "pooling": lambda: (Pooling(), (4, 5, 6)),
    "audio": lambda: (audio_net(), (4, 1, 256)),
    "small_norms": lambda: (small_norms_net(), (4, 3, 16, 16)),
}
DYNAMO = ["unet", "tagger", "encoder", "audio", "pooling"]


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    """A network without random layers and with no two equal tensors, and its first input."""
    torch.manual_seed(0)
    net, shape = CASES[name]()
    for module in net.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-2)
    return net.train(), batch_of(shape, 0)


def batch_of(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 2:
        return torch.randint(0, VOCABULARY, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def export(net: nn.Module, x: Tensor, path: Path, dynamo: bool) -> None:
    """Export in training form: nothing folded, nothing fused."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    training = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
    settings = {"optimize": False, "verbose": False} if dynamo else training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), dynamo=dynamo, **settings)


def loss_of(scores: Tensor, seed: int) -> Tensor:
    classes = scores.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (scores.numel() // classes,), generator=generator)
    return F.cross_entropy(scores.reshape(-1, classes), labels)


def matched(native: nn.Module, imported: ImportedModel) -> list[tuple[Tensor, Tensor]]:
    """Each native parameter with the imported one of the same values, which may lie transposed."""
    rest = dict(imported.named_parameters())
    pairs = []
    for name, parameter in native.named_parameters():
        found = next((k for k, p in rest.items() if _same(parameter, p)), None)
        assert found is not None, f"{name} is not a parameter of the imported model"
        pairs.append((parameter, rest.pop(found)))
    assert not rest, f"parameters that the native module does not have: {sorted(rest)}"
    return pairs


def _same(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.flatten(), _oriented(b, a).flatten())


def _oriented(imported: Tensor, native: Tensor) -> Tensor:
    transposed = imported.ndim == 2 and imported.shape == native.shape[::-1]
    square = transposed and imported.shape == native.shape
    return imported.t() if transposed and not square else imported


def assert_close(actual: Tensor, expected: Tensor) -> None:
    actual, expected = actual.detach(), expected.detach()
    scale = float(expected.abs().max())
    assert float((actual - expected).abs().max()) <= TOLERANCE * scale + 1e-12


@pytest.mark.parametrize(
    ("name", "dynamo"), [*((n, False) for n in CASES), *((n, True) for n in DYNAMO)]
)
def test_training_follows_the_native_module(name: str, dynamo: bool, tmp_path: Path) -> None:
    net, x = prepared(name)
    native = copy.deepcopy(net)
    export(net, x, tmp_path / "net.onnx", dynamo)
    module = load(tmp_path / "net.onnx").train()
    buffers = dict(module.named_buffers())
    statistics = {onnx: buffers[key] for key, onnx in module.buffer_names.items()}
    pairs = matched(native, module)
    running = {k: v for k, v in native.named_buffers() if k.rpartition(".")[2][:8] == "running_"}
    assert statistics.keys() == running.keys()
    for key, value in running.items():
        value.copy_(statistics[key])  # tracing has run the network, too
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in (native, module)]
    for step in range(5):
        x = batch_of(tuple(x.shape), step)
        losses = []
        for model, optimizer in zip((native, module), optimizers, strict=True):
            loss = loss_of(model(x), step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE)
    for expected, actual in pairs:
        assert_close(_oriented(actual, expected).reshape(expected.shape), expected)
    for key, value in running.items():
        assert_close(statistics[key], value)


def test_aliases_of_an_untrained_export_are_one_parameter(tmp_path: Path) -> None:
    """Exporters merge equal initializers: 62 parameters become 30, read through `Identity`."""
    torch.manual_seed(0)
    net = models.resnet18(weights=None).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.randn(2, 3, 64, 64),),
            str(tmp_path / "net.onnx"),
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    module = load(tmp_path / "net.onnx").train()
    graph = module.source.proto.graph
    assert sum(node.op_type == "Identity" for node in graph.node) == 72
    assert len(list(net.parameters())) == 62
    assert len(list(module.parameters())) == 30
    x = torch.randn(4, 3, 64, 64)
    for model in (net.train(), module):
        F.cross_entropy(model(x), torch.arange(4)).backward()
    scales = [p for n, p in net.named_parameters() if p.shape == (64,) and n.endswith("weight")]
    shared = [p for p in module.parameters() if p.shape == (64,) and bool((p == 1).all())]
    assert (len(scales), len(shared)) == (5, 1)
    assert_close(shared[0].grad, sum(p.grad for p in scales))


def test_dropout_is_active_while_training(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.25)).train()
    export(net, torch.ones(2, 4), tmp_path / "net.onnx", dynamo=False)
    module = load(tmp_path / "net.onnx").train()
    with torch.no_grad():
        y = module(torch.ones(200, 4))
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    with torch.no_grad():
        kept = (y / net[0](torch.ones(200, 4)))[y != 0]
    np.testing.assert_allclose(kept, 4 / 3, rtol=1e-4)
