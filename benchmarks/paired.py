"""Paired times of two plain calls, measured and judged as `onnxprune bench` does sessions."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onnxprune.validate import Speedup
from onnxprune.validate.speedup import speedup
from onnxprune.validate.timing import Burst, Clock, OpenAll, Plan, measure

_BLOCKS = 10


def measure_calls(
    calls: Sequence[Callable[[], object]], plan: Plan, clock: Clock = time.perf_counter_ns
) -> list[np.ndarray]:
    """Milliseconds as `timing.measure` returns them; nothing is loaded anew between openings."""
    return measure(_open_all([_burst(call, clock) for call in calls]), plan, clock=clock)


def _open_all(bursts: list[Burst]) -> OpenAll:
    @contextlib.contextmanager
    def open_all(rng: np.random.Generator) -> Iterator[list[Burst]]:
        yield bursts

    return open_all


def _burst(call: Callable[[], object], clock: Clock) -> Burst:
    def burst(calls: int) -> list[int]:
        call()
        elapsed = []
        for _ in range(calls):
            start = clock()
            call()
            elapsed.append(clock() - start)
        return elapsed

    return burst


def ratio_of_rounds(first: np.ndarray, second: np.ndarray, seed: int) -> Speedup:
    """First / second over rounds in the order of time, by a bootstrap over ten blocks of them.

    Args:
        first: Times in each round, `(rounds,)`; at least two rounds.
        second: Times in the same rounds.
        seed: Seed of the bootstrap.
    """
    times = np.stack([first, second], axis=1)[:, :, None]
    return speedup(np.array_split(times, min(_BLOCKS, len(times))), 1, seed)
