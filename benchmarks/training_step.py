"""Our training step on imported networks beside a hand-written native loop with the same masks.

Both train the same weights on the same batch with 80 % of them masked. A ratio is the time of our
step over that of the native one, in turns whose order is drawn in each round, with a bootstrap 95 %
interval; 1.03 is 3 % slower. Ours is the trainer's whole loop, with a log entry at every step;
the native one reads the loss at every step, as a loop that prints it does.

The two share a process and its heap, so which of them pays for memory that malloc returns to the
system and fetches again is a matter of turn (about 1 to 4 % of a step, in either direction). On
Linux malloc is therefore told to keep it.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --device cuda --precision fp32 bf16 --name training_step_gpu
"""

import argparse
import os
import sys
import warnings
from typing import Any

import torch
from record import write_results
from training_pair import Setting, compare

SIZES = {
    "cpu": {"resnet50": (8, 128), "mobilenet_v3_large": (16, 128)},
    "cuda": {"resnet50": (64, 224), "mobilenet_v3_large": (128, 224)},
}
"""Device -> model -> batch and image size."""


HEAP = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""Settings of glibc's malloc under which it returns no memory to the system."""


def keep_heap() -> None:
    """Start this program again with `HEAP`, unless that is done or malloc is another one."""
    if sys.platform == "linux" and not HEAP.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HEAP)


def main() -> None:
    """Measure every model in every precision."""
    keep_heap()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(SIZES["cpu"]), choices=SIZES["cpu"])
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=("fp32", "bf16"))
    parser.add_argument("--seconds", type=float, default=120.0, help="for one ratio")
    parser.add_argument("--rounds", type=int, default=500, help="at most, for one ratio")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="training_step", help="of the results file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    warnings.simplefilter("ignore")
    results: list[dict[str, Any]] = []
    for model in arguments.models:
        batch, size = SIZES[arguments.device][model]
        for precision in arguments.precision:
            setting = Setting(
                arguments.device,
                precision,
                batch,
                size,
                seconds=arguments.seconds,
                rounds=arguments.rounds,
                seed=arguments.seed,
            )
            entry = {"model": model, "precision": precision, "batch": batch, "size": size}
            results.append(entry | compare(model, setting))
            print(results[-1], flush=True)
    write_results(arguments.name, vars(arguments) | {"malloc": HEAP}, results)


if __name__ == "__main__":
    main()
