"""Scales that pass for initial values, in a network as an exporter writes it."""

import io
import warnings

import onnx
import pytest
import torch
import torchvision

from onnxprune.cascade import close
from onnxprune.closing import initial_scales
from onnxprune.importer import load
from onnxprune.structure import read_flow
from onnxprune.tensors import find_tensors


@pytest.mark.parametrize(("zero", "shared"), [(True, True), (True, False), (False, True)])
def test_zero_initialised_residuals_are_not_dead(zero: bool, shared: bool) -> None:
    """Untrained, many tensors of a network are equal, and exporters store them once.

    The scales then share their zeros with shifts and running means.
    """
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None, zero_init_residual=zero, num_classes=4)
    if not shared:
        for name, tensor in network.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                torch.nn.init.normal_(tensor, std=0.1)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 3, 32, 32),),
            buffer,
            dynamo=False,
            input_names=["x"],
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps BatchNorm apart
        )
    proto = onnx.load_from_string(buffer.getvalue())
    tensors = load(proto).export_tensors()
    masks = {
        name: torch.ones(tensor.shape, dtype=torch.bool)
        for name, tensor in find_tensors(proto).items()
        if tensor.prunable
    }
    flow, initial = read_flow(proto), initial_scales(find_tensors(proto))
    assert bool(initial) == zero
    assert (sum(close(flow, tensors, masks).dead.values()) > 1_000_000) == zero
    known = {name: tensor for name, tensor in tensors.items() if name not in initial}
    assert not close(flow, known, masks).dead
