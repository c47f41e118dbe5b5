"""An imported module beside the native one it was exported from: forward and training step.

Each torchvision model is exported in several forms and imported again; both modules then hold the
same weights and see the same batch. A ratio is the time of the imported module over that of the
native one, round by round in random order, with a bootstrap interval; 1.03 is 3 % slower. Both
modules are in the mode of the export: `train()` for the training form, whose BatchNorm uses batch
statistics in the file itself, otherwise `eval()`. The `eval` forms have BatchNorm folded into the
convolutions, so there is less to compute than in the native module.

    python benchmarks/import_speed.py
    python benchmarks/import_speed.py --models resnet50 vit_b_16 --works "training step"
        --seconds 90 --name import_speed_steps
"""

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from paired import measure_calls
from record import write_results
from torch import Tensor, nn
from torch.onnx import TrainingMode

from onnxprune.importer import load
from onnxprune.validate.speedup import speedup
from onnxprune.validate.timing import Plan

MODELS: dict[str, dict[str, Any]] = {
    "resnet50": {"batch": 2, "size": 128},
    "mobilenet_v3_large": {"batch": 4, "size": 128},
    "vit_b_16": {"batch": 1, "size": 128, "options": {"image_size": 128}},
}
"""Batch and image size, so that a round of forward or training takes less than two seconds."""

WORKS = ("forward", "training step")
FORMS: dict[str, dict[str, Any]] = {
    "torchscript-training-17": {"opset_version": 17, "training": TrainingMode.TRAINING},
    "torchscript-unfolded-17": {"opset_version": 17, "training": TrainingMode.PRESERVE},
    "torchscript-eval-17": {"opset_version": 17},
    "dynamo-eval": {"dynamo": True},
    "torchscript-training-14": {"opset_version": 14, "training": TrainingMode.TRAINING},
}
"""Arguments of the exporters; before version 17 there is no LayerNormalization."""


def main() -> None:
    """Measure every model in every form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--name", default="import_speed", help="of the results file")
    parser.add_argument("--seconds", type=float, default=25.0, help="for one ratio")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine")
    parser.add_argument("--quick", action="store_true", help="a few seconds for each ratio")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = 6.0
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            native, x = _native(model, arguments.seed)
            for form in _forms(model, arguments.forms):
                path = Path(folder) / f"{model}.onnx"
                native.train("training" in form)
                _export(native, x, path, FORMS[form])
                for work in arguments.works:
                    ratio = _compared(_calls(native, path, x, work), arguments)
                    results.append({"model": model, "form": form, "work": work} | ratio)
                    print(results[-1], flush=True)
    write_results(arguments.name, {**vars(arguments), "sizes": MODELS}, results)


def _forms(model: str, chosen: list[str]) -> list[str]:
    """Convolutional networks have no operator that version 14 lacks, so it would measure twice."""
    return [form for form in chosen if model == "vit_b_16" or not form.endswith("14")]


def _native(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    settings = MODELS[name]
    torch.manual_seed(seed)
    module = torchvision.models.get_model(name, **settings.get("options", {}))
    return module, torch.randn(settings["batch"], 3, settings["size"], settings["size"])


def _export(module: nn.Module, x: Tensor, path: Path, form: dict[str, Any]) -> None:
    """Export a copy, since exporting in training form updates running statistics."""
    settings = {"dynamo": False, "input_names": ["x"]} | form
    if not settings["dynamo"]:
        settings["dynamic_axes"] = {"x": {0: "batch"}}
        settings["do_constant_folding"] = "training" not in form
    torch.onnx.export(copy.deepcopy(module), (x,), str(path), **settings)


def _calls(native: nn.Module, path: Path, x: Tensor, work: str) -> list[Callable[[], object]]:
    """The imported module's call and the native one's."""
    modules = [load(path).train(native.training), copy.deepcopy(native)]
    make = _forward if work == "forward" else _training_step
    return [make(module, x) for module in modules]


def _forward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return module(x)

    return call


def _training_step(module: nn.Module, x: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)
    label = torch.arange(len(x))

    def call() -> object:
        optimizer.zero_grad()
        F.cross_entropy(module(x), label).backward()
        optimizer.step()
        return None

    return call


def _compared(
    calls: list[Callable[[], object]], arguments: argparse.Namespace
) -> dict[str, float | int]:
    clock = time.process_time_ns if arguments.cpu_time else time.perf_counter_ns
    plan = Plan(warmup=3, precision=0.005, max_seconds=arguments.seconds, seed=arguments.seed)
    times = measure_calls(calls, plan, clock)
    imported, native = (
        np.concatenate([opening[:, index].ravel() for opening in times]) for index in (0, 1)
    )
    ratio = speedup(times, 1, arguments.seed)
    return {
        "ratio": round(ratio.ratio, 4),
        "low": round(ratio.low, 4),
        "high": round(ratio.high, 4),
        "rounds": sum(len(opening) for opening in times),
        "imported_ms": round(float(np.median(imported)), 3),
        "native_ms": round(float(np.median(native)), 3),
    }


if __name__ == "__main__":
    main()
