"""Openings and rounds of timed calls: order, warm-up, and when there are enough.

All models are loaded anew several times; each time is an *opening*. Where a session's weights and
buffers come to lie in memory can make a model some per cent faster or slower for as long as it is
open, so calls of one opening are not independent, and openings are what the interval of a speedup
is made from (see `speedup`).

Within an opening every *round* runs each model once, in an order drawn anew, so that drift of the
machine (heat, neighbours, clock) meets all alike and cancels in the ratio of one round. A model's
turn is a *burst*: one untimed call, since the model before left its own data in the caches, and
then timed calls, several if they are short.

Sessions stop spinning when a call returns (see `session.open_session`), or else the idle ones would
take cores from the one that works; `benchmarks/bench_interleaving.py` compares other ways.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from onnxprune.validate.runtime_process import Burst
from onnxprune.validate.speedup import half_width

MIN_ROUNDS = 5
_MIN_OPENINGS = 5
_OPENINGS = 10
_MOST_OPENINGS = 60
_ROUNDS = 30
_BURST_MS = 5.0
_MAX_CALLS = 20
_WARM_WINDOWS = 20
_WARM_WITHIN = 0.03
_FIRST_WARM_UP = (10, 0.1)
_LATER_WARM_UP = (4, 0.01)
"""Rounds in a window, and the largest share of the time."""

Clock = Callable[[], int]
"""Nanoseconds from an arbitrary origin, as `time.perf_counter_ns`."""

OpenAll = Callable[[np.random.Generator], AbstractContextManager[Sequence[Burst]]]
"""Loads all models, in an order of its own; their bursts in the order of the models."""


@dataclass(frozen=True)
class Plan:
    """How much is measured; see `bench` for the fields."""

    rounds: int | None = None
    warmup: int | None = None
    precision: float = 0.01
    max_seconds: float = 20.0
    seed: int = 0


def measure(
    open_all: OpenAll,
    plan: Plan,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> list[np.ndarray]:
    """Time models in openings and rounds; the first is the baseline.

    At least 5 openings and rounds are made. Without a number of rounds there are 10 openings or
    more, until the intervals are as narrow as `plan.precision` or the time is up. The garbage
    collector is off meanwhile.

    Args:
        open_all: Loads the models.
        plan: How much to measure.
        on_progress: Called with (rounds done, rounds expected) after each round.
        clock: Source of time.

    Returns:
        Milliseconds for each opening, `(rounds, models, calls)`.
    """
    return _Measurement(open_all, plan, on_progress, clock).run()


class _Measurement:
    def __init__(
        self,
        open_all: OpenAll,
        plan: Plan,
        on_progress: Callable[[int, int], None] | None,
        clock: Clock,
    ) -> None:
        self.open_all = open_all
        self.plan = plan
        self.on_progress = on_progress
        self.clock = clock
        self.rng = np.random.default_rng(plan.seed)
        self.calls = 1
        self.begun = clock()
        self.openings: list[np.ndarray] = []
        self.opening_s = 0.0

    def run(self) -> list[np.ndarray]:
        with _no_collection():
            while not self._enough():
                gc.collect(1)  # what the last opening left; a large process has much that is older
                begun = self.clock()
                self.openings.append(self._opening())
                self.opening_s = (self.clock() - begun) / 1e9
        return self.openings

    def _opening(self) -> np.ndarray:
        """Load the models and time them; nothing of them is left afterwards."""
        begun = self.clock()
        with self.open_all(self.rng) as bursts:
            self._warm_up(bursts)
            ready = self.clock()
            opening_s = (ready - begun) / 1e9
            times: list[np.ndarray] = []
            round_s = 0.0
            while not times or len(times) < self._rounds(opening_s, round_s):
                times.append(_round(bursts, self.calls, self.rng))
                round_s = (self.clock() - ready) / 1e9 / len(times)
                self._tell(len(times))
        return np.array(times)

    @property
    def _spent_s(self) -> float:
        return (self.clock() - self.begun) / 1e9

    @property
    def _done(self) -> int:
        return sum(len(times) for times in self.openings)

    def _enough(self) -> bool:
        if self.plan.rounds is not None:
            return self._done >= self.plan.rounds
        if len(self.openings) < _MIN_OPENINGS:
            return False
        if self._spent_s + self.opening_s / 2 >= self.plan.max_seconds:
            return True
        count = len(self.openings)
        if count < _OPENINGS or count % (count // _OPENINGS):
            return False
        return half_width(self.openings, self.plan.seed) <= self.plan.precision

    def _rounds(self, opening_s: float, round_s: float) -> int:
        """Rounds of this opening: enough to outweigh opening it, few enough to open it again."""
        if self.plan.rounds is not None:
            left = max(min(_OPENINGS, self.plan.rounds) - len(self.openings), 1)
            return math.ceil((self.plan.rounds - self._done) / left)
        limit = self.plan.max_seconds
        wanted_s = max(2 * opening_s, _ROUNDS * round_s, limit / _MOST_OPENINGS - opening_s)
        wanted_s = min(wanted_s, max(limit / (_OPENINGS + 2) - opening_s, limit / 40))
        return max(1, int(wanted_s / max(round_s, 1e-9)))

    def _warm_up(self, bursts: Sequence[Burst]) -> None:
        """Run until the medians of two windows of rounds agree, or for `warmup` rounds.

        Sets the number of calls in a burst at the first opening.
        """
        if self.plan.warmup is not None:
            medians = self._window(bursts, self.plan.warmup) if self.plan.warmup else None
        else:
            medians = self._warm_up_until_steady(bursts)
        if medians is not None and not self.openings:
            self.calls = _calls_in_a_burst(float(medians.max()))

    def _warm_up_until_steady(self, bursts: Sequence[Burst]) -> np.ndarray:
        size, share = _LATER_WARM_UP if self.openings else _FIRST_WARM_UP
        end = self.clock() + round(self.plan.max_seconds * 1e9 * share)
        before = self._window(bursts, size, end)
        for _ in range(_WARM_WINDOWS):
            if self.clock() >= end:
                break
            medians = self._window(bursts, size, end)
            if np.all(np.abs(medians - before) <= _WARM_WITHIN * before):
                return medians
            before = medians
        return before

    def _window(self, bursts: Sequence[Burst], rounds: int, end: int | None = None) -> np.ndarray:
        """Medians `(models,)` of rounds of single calls: so many, or until the time `end`."""
        window: list[np.ndarray] = []
        while len(window) < rounds and (not window or end is None or self.clock() < end):
            window.append(_round(bursts, 1, self.rng)[:, 0])
        return np.median(window, axis=0)

    def _tell(self, made: int) -> None:
        if self.on_progress is None:
            return
        done = self._done + made
        spent_s, limit = self._spent_s, self.plan.max_seconds
        expected = round(done * max(limit, spent_s) / max(spent_s, 1e-9))
        self.on_progress(done, self.plan.rounds or max(expected, done))


def _calls_in_a_burst(slowest_ms: float) -> int:
    return min(max(math.ceil(_BURST_MS / max(slowest_ms, 1e-6)), 1), _MAX_CALLS)


def _round(bursts: Sequence[Burst], calls: int, rng: np.random.Generator) -> np.ndarray:
    """Milliseconds `(models, calls)`, in the order of the models; made in a random order."""
    elapsed = np.empty((len(bursts), calls))
    for index in rng.permutation(len(bursts)):
        elapsed[index] = bursts[index](calls)
    return elapsed / 1e6


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
