"""Models as ONNX Runtime's optimisers write them: imported, trained and exported."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onnxprune.errors import UnsupportedModelError
from onnxprune.export import export
from onnxprune.importer import load

from .helpers import assert_equals_runtime, normal, outputs, runtime_outputs

HIDDEN, HEADS, WORDS = 16, 2, 8
ENCODER_WEIGHTS = 2 * (4 * 16 * 16 + 2 * 16 * 64) + 16 * 3
RESIDUAL_WEIGHTS = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 3


class Layer(nn.Module):
    """A layer of an encoder in the form that the transformer optimiser knows."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.inner, self.outer = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = [linear(x) for linear in (self.query, self.key, self.value)]
        q, k, v = (p.view(p.shape[0], p.shape[1], HEADS, -1).permute(0, 2, 1, 3) for p in parts)
        scores = q @ k.transpose(-1, -2) / (HIDDEN // HEADS) ** 0.5 + mask
        mixed = (torch.softmax(scores, -1) @ v).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(self.out(mixed.view(mixed.shape[0], mixed.shape[1], HIDDEN)) + x)
        return self.norm2(self.outer(F.gelu(self.inner(x))) + x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, HIDDEN), nn.Embedding(WORDS, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1]).unsqueeze(0)
        x = self.norm(self.words(ids) + self.places(places))
        mask = (1.0 - mask[:, None, None, :].float()) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x[:, 0])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norms[0](self.stem(x)))
        x = F.relu(self.norms[1](self.same(x)) + x)
        return self.head(x.mean(dim=(2, 3)))


def _export(net: nn.Module, feed: dict[str, np.ndarray], path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            tuple(torch.from_numpy(array) for array in feed.values()),
            str(path),
            dynamo=False,
            input_names=list(feed),
            opset_version=14,
            dynamic_axes={name: {0: "N"} for name in feed},
        )
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    mask = np.ones((3, WORDS), dtype=np.int64)
    mask[1, 5:] = 0
    feed = {"ids": np.random.default_rng(0).integers(0, 50, (3, WORDS)), "mask": mask}
    return _export(Encoder(), feed, tmp_path_factory.mktemp("encoder") / "net.onnx"), feed


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    feed = {"x": normal(3, 3, 12, 12)}
    return _export(Residual(), feed, tmp_path_factory.mktemp("residual") / "net.onnx"), feed


def _optimized(source: Path, level: ort.GraphOptimizationLevel) -> Path:
    target = source.with_name(f"{level}.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return target


def _by_transformer_optimizer(source: Path, *, packed: bool) -> Path:
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.use_multi_head_attention = not packed
    model = optimizer.optimize_model(
        str(source),
        model_type="bert",
        num_heads=HEADS,
        hidden_size=HIDDEN,
        optimization_options=options,
        opt_level=0,
    )
    target = source.with_name(f"packed_{packed}.onnx")
    model.save_model_to_file(str(target))
    return target


def _contrib(path: Path) -> set[str]:
    return {n.op_type for n in onnx.load(path).graph.node if n.domain == "com.microsoft"}


def _assert_trains(path: Path, feed: dict[str, np.ndarray], prunable: int) -> None:
    module = assert_equals_runtime(path, feed)
    assert sum(t.size for t in module.tensors.values() if t.prunable) == prunable
    inputs = {name: torch.from_numpy(array) for name, array in feed.items()}
    optimizer = torch.optim.SGD(module.train().parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(module(**inputs), torch.arange(3))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    trained = path.with_name(f"trained_{path.name}")
    export(module, trained)
    np.testing.assert_allclose(
        runtime_outputs(trained, feed)[0], outputs(module.eval(), feed)[0], atol=1e-4
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("packed", "attention"), [(True, "Attention"), (False, "MultiHeadAttention")]
)
def test_an_encoder_of_the_transformer_optimizer(
    encoder: tuple[Path, dict[str, np.ndarray]], packed: bool, attention: str
) -> None:
    source, feed = encoder
    path = _by_transformer_optimizer(source, packed=packed)
    assert _contrib(path) >= {attention, "SkipLayerNormalization", "BiasGelu"}
    _assert_trains(path, feed, ENCODER_WEIGHTS)


def test_an_encoder_that_a_session_optimized(encoder: tuple[Path, dict[str, np.ndarray]]) -> None:
    source, feed = encoder
    path = _optimized(source, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    assert _contrib(path) >= {"FusedMatMul", "SkipLayerNormalization", "BiasGelu"}
    _assert_trains(path, feed, ENCODER_WEIGHTS)


def test_convolutions_that_a_session_fused(residual: tuple[Path, dict[str, np.ndarray]]) -> None:
    source, feed = residual
    path = _optimized(source, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    assert _contrib(path) == {"FusedConv"}
    _assert_trains(path, feed, RESIDUAL_WEIGHTS)


def test_a_layout_for_one_kind_of_machine_is_refused_with_a_remedy(
    residual: tuple[Path, dict[str, np.ndarray]],
) -> None:
    source, _ = residual
    proto = onnx.load(source)
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft.nchwc", 1))
    convolution = next(node for node in proto.graph.node if node.op_type == "Conv")
    convolution.domain = "com.microsoft.nchwc"
    with pytest.raises(UnsupportedModelError, match="ORT_ENABLE_EXTENDED"):
        load(proto)
