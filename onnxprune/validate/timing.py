"""Rounds of timed calls: order, warm-up, and when there are enough.

Every round times each call once, in an order drawn anew for each round, so that drift of the
machine (heat, neighbours, clock) meets all alike and cancels in the ratios of one round. Before
each timed call the same model runs once untimed: the call before belonged to another model and
left its own weights in the caches. Measured on two cores with two threads, for a 4 ms model next
to a second session: 8.2 ms where idle sessions keep spinning, 3.65 ms as done here with sessions
that stop (see `session.open_session`), 3.64 ms alone.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

_MIN_ROUNDS = 5
_CHECK_AFTER = 100
_CHECK_EVERY = 50
_MAX_ROUNDS = 5000
_PRECISION = 0.005
_WARM_WINDOW = 10
_WARM_WINDOWS = 20
_WARM_WITHIN = 0.03
_WARM_SHARE = 0.2

Clock = Callable[[], int]
"""Nanoseconds from an arbitrary origin, as `time.perf_counter_ns`."""


def measure(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int | None,
    warmup: int | None,
    max_seconds: float,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> np.ndarray:
    """Time calls in rounds, each once a round in shuffled order.

    The garbage collector is off meanwhile.

    Args:
        calls: What is timed; the first is the baseline.
        rounds: See `bench`.
        warmup: See `bench`.
        max_seconds: See `bench`.
        seed: Seed of the order.
        on_progress: See `bench`.
        clock: Source of time.

    Returns:
        Milliseconds, `(rounds, len(calls))`.
    """
    rng = np.random.default_rng(seed)
    deadline = clock() + round(max_seconds * 1e9)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        _warm_up(calls, warmup, round(max_seconds * 1e9 * _WARM_SHARE), rng, clock)
        times: list[list[float]] = []
        while not _enough(times, rounds, deadline, clock):
            times.append(_round(calls, rng, clock))
            if on_progress is not None:
                on_progress(
                    len(times), rounds or _expected(len(times), deadline, max_seconds, clock)
                )
    finally:
        if collecting:
            gc.enable()
    return np.array(times)


def _round(
    calls: Sequence[Callable[[], object]], rng: np.random.Generator, clock: Clock
) -> list[float]:
    """Milliseconds of each call, in the order of `calls`; made in a random order."""
    elapsed = [0.0] * len(calls)
    for index in rng.permutation(len(calls)):
        call = calls[index]
        call()
        start = clock()
        call()
        elapsed[index] = (clock() - start) / 1e6
    return elapsed


def _warm_up(
    calls: Sequence[Callable[[], object]],
    warmup: int | None,
    budget_ns: int,
    rng: np.random.Generator,
    clock: Clock,
) -> None:
    """Run until the medians of two windows of rounds agree, or for `warmup` rounds."""
    if warmup is not None:
        for _ in range(warmup):
            _round(calls, rng, clock)
        return
    end = clock() + budget_ns
    before: np.ndarray | None = None
    for _ in range(_WARM_WINDOWS):
        window: list[list[float]] = []
        while len(window) < _WARM_WINDOW and (clock() < end or not window):
            window.append(_round(calls, rng, clock))
        medians = np.median(window, axis=0)
        steady = before is not None and np.all(np.abs(medians - before) <= _WARM_WITHIN * before)
        if steady or clock() >= end:
            return
        before = medians


def _enough(times: list[list[float]], rounds: int | None, deadline: int, clock: Clock) -> bool:
    if rounds is not None:
        return len(times) >= rounds
    if len(times) < _MIN_ROUNDS:
        return False
    if clock() >= deadline or len(times) >= _MAX_ROUNDS:
        return True
    if len(times) < _CHECK_AFTER or len(times) % _CHECK_EVERY:
        return False
    return _half_width(np.array(times)) <= _PRECISION


def _half_width(times: np.ndarray) -> float:
    """Largest relative half-width of a 95 % interval of a median: of ratios, or of one model.

    From order statistics (the binomial interval of a median), which is cheap enough to ask often.
    """
    values = times if times.shape[1] == 1 else times[:, :1] / times[:, 1:]
    ordered = np.sort(values, axis=0)
    count = len(ordered)
    reach = math.ceil(1.96 * math.sqrt(count) / 2)
    low = ordered[max(count // 2 - reach, 0)]
    high = ordered[min(count // 2 + reach, count - 1)]
    return float(((high - low) / 2 / ordered[count // 2]).max())


def _expected(done: int, deadline: int, max_seconds: float, clock: Clock) -> int:
    """Rounds that the time allows, going by those made."""
    left = max(deadline - clock(), 0) / 1e9
    spent = max(max_seconds - left, 1e-9)
    return min(max(round(done * max_seconds / spent), done), _MAX_ROUNDS)
