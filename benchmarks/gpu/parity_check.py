"""Does an imported network compute and train on the GPU as the one it was exported from?

Both hold the same weights and see the same batches; after the output of the first batch come five
steps of SGD with momentum. TF32 is off and the kernels are the deterministic ones, so in fp32
little more than the order of additions can differ.
"""

import contextlib
import copy
import functools
import os

import torch
import torch.nn.functional as F
from rows import Outcome, Settings
from torch import Tensor, nn
from torch.onnx import TrainingMode
from torchvision import models
from training_pair import exported

STEPS = 5
LIMITS = {"fp32": (1e-4, 1e-2), "channels_last": (1e-4, 1e-2), "bf16": (3e-2, 2e-1)}
"""Form -> largest relative difference of output and losses, and of the parameters' way."""


def measure(item: str, settings: Settings) -> Outcome:
    """Compare one network in one form."""
    _, name, form = item.split()
    _be_exact()
    native, imported = (copy.deepcopy(module) for module in _pair(name, settings.seed))
    start = [p.detach().clone() for p in native.parameters()]
    batches = _batches(settings)
    results = [_trained(m, batches, form, settings.device) for m in (native, imported)]
    (output, losses), (our_output, our_losses) = results
    by_name = dict(imported.named_parameters())
    ours = {imported.tensor_names[key]: p for key, p in by_name.items()}
    measured = {
        "output": float((our_output - output).abs().max() / output.abs().max()),
        "losses": max(abs(a - b) / abs(a) for a, b in zip(losses, our_losses, strict=True)),
        "parameters": _way_difference(native, ours, start),
    }
    values, way = LIMITS[form]
    passed = max(measured["output"], measured["losses"]) <= values and measured["parameters"] <= way
    return Outcome(passed, measured, details={"losses": losses, "imported_losses": our_losses})


def _be_exact() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


@functools.cache
def _pair(name: str, seed: int) -> tuple[nn.Module, nn.Module]:
    """The native network and the imported one, on the CPU, with nothing random in them."""
    torch.manual_seed(seed)
    if name == "vit_tiny":
        native: nn.Module = models.VisionTransformer(64, 16, 3, 3, 192, 768, num_classes=10)
    else:
        native = models.get_model(name, num_classes=10)
    _make_distinct(native)
    return native, exported(native.eval(), torch.randn(2, 3, 64, 64), TrainingMode.PRESERVE)


def _make_distinct(network: nn.Module) -> None:
    """No Dropout, and no two tensors alike, since the exporter would tie them."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def _batches(settings: Settings) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(settings.seed)
    size = 4 if settings.tiny else 32
    return [
        (
            torch.randn(size, 3, 64, 64, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def _trained(
    module: nn.Module, batches: list[tuple[Tensor, Tensor]], form: str, device: str
) -> tuple[Tensor, list[float]]:
    """The output of the first batch in evaluation mode, and the loss of every step."""
    layout = torch.channels_last if form == "channels_last" else torch.contiguous_format
    module.to(device, memory_format=layout)
    bf16 = torch.autocast(device, torch.bfloat16)
    arithmetic = bf16 if form == "bf16" else contextlib.nullcontext()
    placed = [(x.to(device, memory_format=layout), labels.to(device)) for x, labels in batches]
    with torch.no_grad(), arithmetic:
        output = module.eval()(placed[0][0]).float()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    losses = []
    module.train()
    for x, labels in placed:
        with arithmetic:
            scores = module(x)
        loss = F.cross_entropy(scores.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return output, losses


def _way_difference(native: nn.Module, ours: dict[str, Tensor], start: list[Tensor]) -> float:
    """Distance between the two ends over the length of the native way, over all parameters."""
    apart, way = 0.0, 0.0
    for (name, parameter), first in zip(native.named_parameters(), start, strict=True):
        end = parameter.detach().cpu()
        apart += float((ours[name].detach().cpu() - end).square().sum())
        way += float((end - first).square().sum())
    return (apart / way) ** 0.5
