r"""How much faster is a pruned model with sparse CPU kernels than dense in stock ONNX Runtime?

Networks with the shapes of production models and random weights, pruned at once by magnitude in
each weight; what they compute means nothing, and time does not depend on it. Each is compared with
its own dense model under ONNX Runtime with all optimisations, side by side in one process, as
`onnxprune bench` does; memory and loading in processes of their own.

python benchmarks/sparse_runtime.py
python benchmarks/sparse_runtime.py --models resnet50 --sparsities 0.9 --batches 1 --threads 1
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from record import write_results
from torch import nn

from onnxprune.runtime import compile_model, instruction_set
from onnxprune.validate import bench

BLOCK = 4


def encoder(width: int = 768, heads: int = 12, layers: int = 12) -> nn.Module:
    """Encoder layers on embeddings; by default of BERT-base's shape."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
    network = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    for parameter in network.parameters():  # the layers are copies of one
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return network


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet50": (torchvision.models.resnet50, (3, 224, 224)),
    "mobilenet_v3_large": (torchvision.models.mobilenet_v3_large, (3, 224, 224)),
    "bert_base": (encoder, (128, 768)),
}


def main() -> None:
    """Measure every combination that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--block-sparsities", nargs="*", type=float, default=[0.9])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20, help="for each comparison")
    parser.add_argument("--name", default="sparse_runtime")
    parser.add_argument("--shared", action="store_true", help="other programs ran meanwhile")
    arguments = parser.parse_args()
    patterns = [("unstructured", s) for s in arguments.sparsities]
    patterns += [(f"block:{BLOCK}x1", s) for s in arguments.block_sparsities]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            dense = Path(folder) / f"{model}.onnx"
            export(model, dense)
            for pattern, sparsity in patterns:
                compiled = Path(folder) / f"{model}.compiled.onnx"
                facts = compile_pruned(model, pattern, sparsity, compiled, Path(folder))
                facts |= apart(dense, compiled)
                for batch in arguments.batches:
                    for threads in arguments.threads:
                        entry = facts | compare(dense, compiled, batch, threads, arguments.seconds)
                        print(entry, flush=True)
                        results.append(entry)
    settings = {
        "seconds": arguments.seconds,
        "shared": arguments.shared,
        "instructions": instruction_set(),
        "seed": 0,
    }
    write_results(arguments.name, settings, results)


def export(
    name: str, path: Path, prune: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> None:
    """Write a network, with its weights pruned by a function if there is one."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    network = make().eval()
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


def compile_pruned(
    name: str, pattern: str, sparsity: float, path: Path, folder: Path
) -> dict[str, Any]:
    """Prune and compile a network, and say how."""
    pruned = folder / f"{name}.pruned.onnx"
    export(name, pruned, lambda weight: magnitude(weight, sparsity, pattern))
    compiled = compile_model(pruned)
    path.write_bytes(compiled.proto.SerializeToString())
    return {
        "model": name,
        "pattern": pattern,
        "sparsity": sparsity,
        "sparse_layers": compiled.record.replaced,
        "layers": len(compiled.record.layers),
    }


def magnitude(weight: torch.Tensor, sparsity: float, pattern: str) -> torch.Tensor:
    """The weight with its smallest values set to zero, one by one or in blocks of outputs."""
    size = weight.abs()
    if pattern != "unstructured" and len(weight) % BLOCK == 0:
        blocks = size.reshape(len(weight) // BLOCK, BLOCK, *weight.shape[1:]).sum(1)
        size = blocks.repeat_interleave(BLOCK, 0)
    count = int(size.numel() * sparsity)
    threshold = size.flatten().kthvalue(max(count, 1)).values
    return weight * (size > threshold)


def apart(dense: Path, compiled: Path) -> dict[str, Any]:
    """What each model takes to load and to run once, in a process of its own."""
    result = bench([dense, compiled], threads=1, rounds=5, processes=True)
    return {
        "load_ms": [model.load_ms for model in result.models],
        "peak_memory_bytes": [model.peak_memory_bytes for model in result.models],
        "size_bytes": [model.size_bytes for model in result.models],
    }


def compare(
    dense: Path, compiled: Path, batch: int, threads: int, seconds: float
) -> dict[str, Any]:
    """Time of the dense model over that of the compiled one."""
    result = bench([dense, compiled], batch=batch, threads=threads, max_seconds=seconds)
    speedup = result.models[1].speedup
    return {
        "batch": batch,
        "threads": threads,
        "speedup": {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high},
        "dense_ms": result.models[0].latency_ms["median"],
        "sparse_ms": result.models[1].latency_ms["median"],
    }


if __name__ == "__main__":
    main()
