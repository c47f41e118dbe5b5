"""How long is a training step with the channels of images last in memory, beside channels first?

Forward, backward and an SGD step of the same network, in turns whose order is drawn in each round.
A ratio is the time with channels last over that with channels first; 0.8 is a fifth less.

    python benchmarks/memory_format.py
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from paired import ratio_of_rounds
from record import write_results
from torch import nn
from torchvision import models

sys.path.append(str(Path(__file__).parent / "cascade"))

from networks import NETWORKS

SMALL = {"resnet8": (64, 14), "mobilenet-tiny": (64, 14), "resnet20": (32, 28)}
"""Networks of the cascade experiments -> batch and image size."""

LARGE = {
    "resnet18": (16, 64),
    "resnet50": (4, 96),
    "mobilenet_v3_small": (8, 224),
    "efficientnet_b0": (8, 128),
    "squeezenet1_1": (8, 128),
    "shufflenet_v2_x1_0": (8, 128),
    "densenet121": (8, 64),
    "regnet_x_400mf": (8, 128),
    "vgg11_bn": (8, 64),
    "convnext_tiny": (4, 64),
    "vit_b_32": (4, 224),
}
"""torchvision's networks -> batch and image size."""

WARMUP = 2
"""Rounds that are not counted."""


def step_of(network: nn.Module, x: torch.Tensor, layout: torch.memory_format) -> Callable[[], None]:
    """A training step on one batch, of a copy of the network."""
    model = copy.deepcopy(network).train().to(memory_format=layout)
    x = x.contiguous(memory_format=layout)
    labels = torch.arange(len(x)) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """One network."""
    torch.manual_seed(seed)
    small = name in SMALL
    batch, size = SMALL[name] if small else LARGE[name]
    network = NETWORKS[name](10) if small else models.get_model(name)
    x = torch.randn(batch, 1 if small else 3, size, size)
    steps = [step_of(network, x, f) for f in (torch.channels_last, torch.contiguous_format)]
    rng = np.random.default_rng(seed)
    times: list[list[float]] = [[], []]
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(times[0]) < WARMUP + 5:
        for which in rng.permutation(2):
            before = time.perf_counter()
            steps[which]()
            times[which].append(1e3 * (time.perf_counter() - before))
    last, first = (np.array(column[WARMUP:]) for column in times)
    ratio = ratio_of_rounds(last, first, seed)
    return {
        "network": name,
        "batch": batch,
        "size": size,
        "ratio": round(ratio.ratio, 3),
        "low": round(ratio.low, 3),
        "high": round(ratio.high, 3),
        "channels_last_ms": round(float(np.median(last)), 2),
        "channels_first_ms": round(float(np.median(first)), 2),
        "rounds": len(last),
    }


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*SMALL, *LARGE]
    parser.add_argument("--networks", nargs="+", default=names, choices=names, metavar="NETWORK")
    parser.add_argument("--seconds", type=float, default=20.0, help="for one network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="memory_format", help="of the results file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for name in arguments.networks:
        results.append(measure(name, arguments.seconds, arguments.seed))
        print(results[-1], flush=True)
    write_results(arguments.name, vars(arguments), results)


if __name__ == "__main__":
    main()
