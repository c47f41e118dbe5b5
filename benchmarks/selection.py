"""Exact global selection over many weights: seconds, and memory beyond the weights and masks.

python benchmarks/selection.py
"""

import argparse
import resource
import time

import torch
from record import spread, write_results

from onnxprune.sparsity import Magnitude, select_masks, target_zeros


def main() -> None:
    """Rank, choose, and compare the count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=100_000_000)
    parser.add_argument("--tensors", type=int, default=50)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(arguments.seed)
    size = arguments.weights // arguments.tensors
    weights = {
        f"layer{i}": torch.randn(size, generator=generator) * (1 + i % 7)
        for i in range(arguments.tensors)
    }
    total = size * arguments.tensors
    zeros = target_zeros(arguments.sparsity, total)
    floors = dict.fromkeys(weights, size // 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        masks = select_masks(weights, zeros, Magnitude(), floors=floors)
        seconds.append(time.perf_counter() - started)
        assert sum(int((~mask).sum()) for mask in masks.values()) == zeros
        del masks
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_results(
        "selection",
        {**vars(arguments), "threads": torch.get_num_threads()},
        {
            "weights": total,
            "zeros": zeros,
            "seconds": spread(seconds),
            "weights_bytes": total * 4,
            "masks_bytes": total,
            "peak_growth_bytes": (peak - before) * 1024,
        },
    )


if __name__ == "__main__":
    main()
