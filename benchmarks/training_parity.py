"""Does an imported network train as the one that it was exported from?

python benchmarks/training_parity.py

torchvision's architectures with random weights are exported in training form by both exporters,
imported, and trained beside the native module on the same batches. Dropout and stochastic depth are
switched off in both, since they draw other numbers. Reported is the largest relative difference of
a step's loss, and of a parameter after the last step relative to its largest value.

The results file is written after each architecture: those that its settings name and its results
lack were not reached.
"""

import argparse
import copy
import logging
import tempfile
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from record import write_results
from torch import Tensor, nn
from torchvision import models

import onnxprune

SIZES = {"vit_b_16": 224, "maxvit_t": 224, "inception_v3": 128}
_AUXILIARY = ("googlenet", "inception_v3")
ARCHITECTURES = (
    *("resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0"),
    *("regnet_y_400mf", "regnet_x_400mf", "convnext_tiny", "swin_t", "vit_b_16", "maxvit_t"),
    *("googlenet", "inception_v3", "mnasnet0_5", "squeezenet1_1", "resnext50_32x4d"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--name", default="training_parity", help="of the results file")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    settings = {**vars(arguments), "optimizer": "SGD, momentum 0.9", "seed": 0}
    results: list[dict[str, Any]] = []
    for name in arguments.only:
        for exporter in ("torchscript", "dynamo"):
            try:
                entry = compare(name, exporter, arguments)
            except Exception as error:
                entry = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            results.append({"architecture": name, "exporter": exporter, **entry})
        write_results(arguments.name, settings, results)


def compare(name: str, exporter: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Differences of losses and parameters after some steps of training."""
    torch.manual_seed(0)
    native, size = network(name), SIZES.get(name, 64)
    batches = [
        (
            torch.randn(arguments.batch_size, 3, size, size),
            torch.randint(10, (arguments.batch_size,)),
        )
        for _ in range(arguments.steps)
    ]
    state = copy.deepcopy(native.state_dict())
    imported = exported_and_imported(native, batches[0][0], exporter)
    native.load_state_dict(state)  # tracing runs the network, which moves its running statistics
    statistics = dict(imported.named_buffers())
    with torch.no_grad():
        for key, onnx_name in imported.buffer_names.items():
            statistics[key].copy_(state[onnx_name])
    losses = [train(model, batches, arguments.learning_rate) for model in (native, imported)]
    return {
        "parameters": [len(list(model.parameters())) for model in (native, imported)],
        "losses": [round(loss, 6) for loss in losses[0]],
        "loss_difference": max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True)),
        "parameter_difference": parameter_difference(native, imported),
    }


def network(name: str) -> nn.Module:
    """An architecture in training mode that does nothing at random."""
    settings = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
    net = models.get_model(name, weights=None, num_classes=10, **settings)
    for module in net.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    return net.train()


def exported_and_imported(net: nn.Module, x: Tensor, exporter: str) -> Any:
    """The network after a trip through a file in training form: nothing folded, nothing fused."""
    dynamo = exporter == "dynamo"
    training = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
    settings = {"optimize": False, "verbose": False} if dynamo else training
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/net.onnx"
        torch.onnx.export(net, (x,), path, dynamo=dynamo, **settings)
        return onnxprune.load(path).train()


def train(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], learning_rate: float
) -> list[float]:
    """The loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    losses = []
    for x, labels in batches:
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parameter_difference(native: nn.Module, imported: Any) -> float:
    """Largest difference of a parameter, relative to its largest value; all must have a partner."""
    ours = {imported.tensor_names[key]: p for key, p in imported.named_parameters()}
    theirs = dict(native.named_parameters())
    if ours.keys() != theirs.keys():
        raise ValueError(f"parameters without a partner: {sorted(ours.keys() ^ theirs.keys())}")
    differences = [
        float((ours[name] - p).detach().abs().max() / p.detach().abs().max().clamp(min=1e-12))
        for name, p in theirs.items()
    ]
    return max(differences)


if __name__ == "__main__":
    main()
