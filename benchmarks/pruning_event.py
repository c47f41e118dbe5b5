"""What a pruning event costs: seconds and bytes on 1 to 8 ranks, and a model for more of both.

python benchmarks/pruning_event.py
python benchmarks/pruning_event.py --device cuda --weights 100000000 1000000000

An event chooses the masks of 50 tensors, of which 60 % are masked already and 80 % are to be, and
puts them in place. Ranks are processes. On a CPU they talk over gloo and share its cores, so that
the processor time of a rank says more than the clock; on CUDA each has a GPU, and NCCL.

Layouts: `sharded`, where a rank holds its rows alone; `shared`, where every rank holds everything,
ranks its rows, and is told the masks of the rest; `replicated`, where every rank holds and ranks
everything. The latter two are measured for the first number of weights only.
"""

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from record import spread, write_results
from torch import Tensor, nn

from onnxprune.finetune.ranks import Ranks
from onnxprune.sparsity import (
    Magnitude,
    MaskSet,
    partition,
    select_masks,
    select_replicated_masks,
    target_zeros,
)
from onnxprune.sparsity.scores import split_mix

TENSORS = 50
COLUMNS = 1000
MODEL_WEIGHTS = [10**7, 10**8, 10**9, 10**10]
MODEL_RANKS = [1, 2, 4, 8, 16, 32, 64]


@dataclass(frozen=True)
class Case:
    """A number of weights, in a layout, on a number of ranks."""

    layout: str
    weights: int
    world: int
    device: str
    repeats: int


class CountingRanks(Ranks):
    """Counts what a rank hands to the others."""

    calls = 0
    sent_bytes = 0

    def sum(self, tensor: Tensor) -> Tensor:
        self._count(tensor)
        return super().sum(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        self._count(tensor)
        return super().gather(tensor)

    def _count(self, tensor: Tensor) -> None:
        self.calls += 1
        self.sent_bytes += tensor.nbytes


def main() -> None:
    """Measure every case, and extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--weights", type=int, nargs="+", default=[10**7, 10**8])
    parser.add_argument("--ranks", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency-us", type=float, default=20.0)
    parser.add_argument("--bandwidth-gb-s", type=float, default=10.0)
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    most = 8 if on_cpu else torch.cuda.device_count()
    worlds = arguments.ranks or [world for world in (1, 2, 4, 8) if world <= most]
    cases = [("sharded", size, world) for size in arguments.weights for world in worlds]
    cases += [("shared", arguments.weights[0], world) for world in worlds[1:]]
    # Each rank of a replicated model costs what one does.
    cases += [("replicated", arguments.weights[0], world) for world in worlds[1:2]]
    measured = [measure(Case(*case, arguments.device, arguments.repeats)) for case in cases]
    for size in arguments.weights:
        sums = {entry["mask_checksum"] for entry in measured if entry["weights"] == size}
        assert len(sums) == 1, "the masks depend on the layout"
    results = {
        "measured": measured,
        "model": model(measured, arguments.latency_us * 1e-6, arguments.bandwidth_gb_s * 1e9),
    }
    settings = {**vars(arguments), "threads_per_rank": 1, "tensors": TENSORS}
    if not on_cpu:
        settings["gpu"] = torch.cuda.get_device_name()
    write_results("pruning_event" if on_cpu else "pruning_event_gpu", settings, results)


def measure(case: Case) -> dict[str, Any]:
    """Run one case in as many processes as it has ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (case, folder), nprocs=case.world)
        by_rank = [torch.load(Path(folder, str(rank))) for rank in range(case.world)]
    (checksum,) = {entry["checksum"] for entry in by_rank}
    (calls,) = {entry["calls"] for entry in by_rank}
    (sent_bytes,) = {entry["sent_bytes"] for entry in by_rank}
    slowest = {
        key: [max(values) for values in zip(*(entry[key] for entry in by_rank), strict=True)]
        for key in ("seconds", "cpu_seconds")
    }
    return {
        "layout": case.layout,
        "weights": case.weights,
        "ranks": case.world,
        "seconds": spread(slowest["seconds"]),
        "cpu_seconds_of_a_rank": spread(slowest["cpu_seconds"]),
        "exchanges": calls,
        "sent_bytes_of_a_rank": sent_bytes,
        "peak_gpu_bytes": max(entry["peak"] for entry in by_rank),
        "mask_checksum": checksum,
    }


def run_rank(rank: int, case: Case, folder: str) -> None:
    """One rank of a case: repeats the event and leaves its figures in a file."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if case.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=case.world,
    )
    ranks = CountingRanks(device)
    weights = make_weights(case, ranks)
    parameters = {name: nn.Parameter(weight) for name, weight in weights.items()}
    sharded = case.layout == "sharded"
    zeros = [target_zeros(sparsity, case.weights) for sparsity in (0.6, 0.8)]
    figures: dict[str, Any] = {"seconds": [], "cpu_seconds": []}
    for _ in range(case.repeats + 1):  # the first is a warm-up
        masks = MaskSet(parameters, ranks if sharded else None)
        masks.update(choose(case, masks, zeros[0], ranks))
        ranks.barrier()
        ranks.calls = ranks.sent_bytes = 0
        started, cpu_started = time.perf_counter(), time.process_time()
        masks.update(choose(case, masks, zeros[1], ranks))
        if device.type == "cuda":
            torch.cuda.synchronize()
        figures["cpu_seconds"].append(time.process_time() - cpu_started)
        figures["seconds"].append(time.perf_counter() - started)
        assert masks.zeros == zeros[1]
    figures = {key: values[1:] for key, values in figures.items()}
    figures["calls"], figures["sent_bytes"] = ranks.calls, ranks.sent_bytes
    figures["peak"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    figures["checksum"] = checksum(case, masks.masks, ranks)
    torch.save(figures, Path(folder, str(rank)))
    ranks.barrier()
    ranks.close()


def choose(case: Case, masks: MaskSet, zeros: int, ranks: Ranks) -> dict[str, Tensor]:
    """The masks of one event."""
    weights = {name: parameter.detach() for name, parameter in masks.parameters.items()}
    floors = dict.fromkeys(weights, case.weights // TENSORS // 100)
    if case.layout == "sharded":
        shards = ranks if ranks.world > 1 else None
        return select_masks(
            weights, zeros, Magnitude(), masks=masks.masks, floors=floors, shards=shards
        )
    if case.layout == "shared":
        return select_replicated_masks(
            weights, zeros, Magnitude(), ranks, masks=masks.masks, floors=floors
        )
    return select_masks(weights, zeros, Magnitude(), masks=masks.masks, floors=floors)


def make_weights(case: Case, ranks: Ranks) -> dict[str, Tensor]:
    """The weights of one rank: normal ones, the same however they are cut."""
    rows = case.weights // TENSORS // COLUMNS
    assert rows * TENSORS * COLUMNS == case.weights, "use a multiple of 50 000 weights"
    weights = {}
    for index in range(TENSORS):
        generator = torch.Generator(ranks.device).manual_seed(index)
        whole = torch.randn(rows, COLUMNS, generator=generator, device=ranks.device)
        whole *= 1 + index % 7
        if case.layout == "sharded":
            whole = partition({"whole": whole}, ranks.rank, ranks.world)["whole"].clone()
        weights[f"layer{index}"] = whole
    return weights


def checksum(case: Case, masks: dict[str, Tensor], ranks: Ranks) -> int:
    """A sum over the kept weights' positions, the same however the masks are cut."""
    sums = []
    for index, mask in enumerate(masks.values()):
        own = torch.tensor([mask.numel()])
        start = int(ranks.before(own)) if case.layout == "sharded" else 0
        sums.append((split_mix(index, start, mask.numel(), mask.device) * mask.reshape(-1)).sum())
    total = torch.stack(sums).sum()
    return int(ranks.sum(total) if case.layout == "sharded" else total)


def model(measured: list[dict[str, Any]], latency: float, bandwidth: float) -> dict[str, Any]:
    """Seconds of an event by number of weights and sharded ranks, on paper.

    Ranking is a fixed part and a part for each weight that a rank holds, both fitted to what was
    measured (processor time on a CPU). Every exchange and its bytes pass log2(ranks) links one
    after the other; the latency and the bandwidth of a link are assumed.
    """
    sharded = [entry for entry in measured if entry["layout"] == "sharded"]
    kind = "seconds" if sharded[0]["peak_gpu_bytes"] else "cpu_seconds_of_a_rank"
    per_weight, fixed = statistics.linear_regression(
        [entry["weights"] / entry["ranks"] for entry in sharded],
        [entry[kind]["median"] for entry in sharded],
    )
    exchanges = max(entry["exchanges"] for entry in sharded)
    sent_bytes = max(entry["sent_bytes_of_a_rank"] for entry in sharded)

    def seconds(weights: int, ranks: int) -> float:
        exchange = math.log2(ranks) * (exchanges * latency + sent_bytes / bandwidth)
        return fixed + per_weight * weights / ranks + exchange

    return {
        "formula": "fixed_s + seconds_per_weight * weights / ranks + log2(ranks) * "
        "(exchanges * link_latency_s + sent_bytes / link_bytes_per_s)",
        "fixed_s": fixed,
        "seconds_per_weight": per_weight,
        "exchanges": exchanges,
        "sent_bytes": sent_bytes,
        "link_latency_s": latency,
        "link_bytes_per_s": bandwidth,
        "seconds": {
            f"{weights:.0e}": {str(ranks): seconds(weights, ranks) for ranks in MODEL_RANKS}
            for weights in MODEL_WEIGHTS
        },
    }


if __name__ == "__main__":
    main()
