"""A global pruning event over many weights: choose exactly, then zero weights and momentum.

1e8 weights are the tensors of several ResNet-50 (many and small), 1e9 those of a transformer of
width 2048 (few and large). The bars are those of an H100 or H200; on another GPU the time is
reported and not judged.
"""

import statistics
from collections.abc import Iterator

import torch
from rows import Outcome, Settings
from torch import Tensor, nn
from training_pair import Watch

from onnxprune.sparsity import Magnitude, MaskSet, select_masks, target_zeros

LIMITS_MS = {"1e8": 50.0, "1e9": 1000.0}
SPARSITY = 0.8
REPEATS = 5
_JUDGED = ("H100", "H200", "H800", "GH200", "B100", "B200", "B300", "GB200", "GB300")
_BYTES_A_WEIGHT = 16
"""Weight, momentum, mask and its factor, and room for what the selection needs."""


def measure(item: str, settings: Settings) -> Outcome:
    """Milliseconds of an event, and the memory that it takes beyond weights and momentum."""
    label = item.split()[1]
    count = int(float(label)) // (1000 if settings.tiny else 1)
    reason = _no_room(count, settings.device)
    if reason:
        return Outcome(None, {}, reason)
    shapes = list(_shapes(label, count))
    torch.manual_seed(settings.seed)
    parameters = {
        f"layer{i}": nn.Parameter(torch.empty(shape, device=settings.device))
        for i, shape in enumerate(shapes)
    }
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9)
    for parameter in parameters.values():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    times, extra = _events(parameters, optimizer, settings.device)
    median = statistics.median(times)
    measured = {"median_ms": median}
    details = {
        "weights": count,
        "tensors": len(shapes),
        "sparsity": SPARSITY,
        "milliseconds": times,
        "weights_bytes": 4 * count,
        "peak_bytes_beyond_weights_and_momentum": extra,
    }
    if not settings.judges_speed or not any(name in _gpu_name() for name in _JUDGED):
        return Outcome(None, measured, "the bar is that of an H100 or H200", details)
    return Outcome(median < LIMITS_MS[label], measured, details=details)


def _gpu_name() -> str:
    return torch.cuda.get_device_name()


def _no_room(count: int, device: str) -> str:
    if device != "cuda":
        return ""
    free, _ = torch.cuda.mem_get_info()
    need = count * _BYTES_A_WEIGHT
    return f"{need / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free" if need > free else ""


def _shapes(label: str, count: int) -> Iterator[tuple[int, ...]]:
    """Shapes of whole layers, and a last tensor that makes up the exact number of weights."""
    layers = _transformer() if label == "1e9" else _resnet50()
    left = count
    while left:
        for shape in layers:
            size = torch.Size(shape).numel()
            if size >= left:
                yield (left,)
                return
            yield shape
            left -= size


def _transformer(width: int = 2048) -> list[tuple[int, ...]]:
    return [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]


def _resnet50() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            shapes += [(inner, width, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            if block == 0:
                shapes.append((4 * inner, width, 1, 1))
            width = 4 * inner
    return [*shapes, (1000, width)]


def _events(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, device: str
) -> tuple[list[float], int]:
    """Milliseconds of every event but the first, and bytes beyond what was there before."""
    zeros = target_zeros(SPARSITY, sum(p.numel() for p in parameters.values()))
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    milliseconds, chosen = _event(parameters, optimizer, zeros, device)
    _check_exact(parameters, chosen, zeros)
    del chosen
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(REPEATS):
        milliseconds, _ = _event(parameters, optimizer, zeros, device)
        times.append(milliseconds)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return times, max(0, peak - before)


def _event(
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    zeros: int,
    device: str,
) -> tuple[float, dict[str, Tensor]]:
    """Milliseconds of one event on fresh weights, and the masks that it chose."""
    weights = {name: p.detach() for name, p in parameters.items()}
    for number, weight in enumerate(weights.values()):
        weight.normal_(std=1 + number % 7)
    floors = {name: weight.numel() // 100 for name, weight in weights.items()}
    masks = MaskSet(parameters)
    watch = Watch(device)
    started = watch.now()
    chosen = select_masks(weights, zeros, Magnitude(), masks=masks.masks, floors=floors)
    masks.update(chosen, optimizer)
    return 1e3 * (watch.now() - started), chosen


def _check_exact(parameters: dict[str, nn.Parameter], masks: dict[str, Tensor], zeros: int) -> None:
    """The count is exact, and zero is what was removed and nothing else.

    Raises:
        ValueError: It is not so.
    """
    removed = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    zero = sum(int((p == 0).sum()) for p in parameters.values())
    if removed != zeros or zero < zeros:
        raise ValueError(f"{removed} weights removed and {zero} zero; {zeros} were asked for")
