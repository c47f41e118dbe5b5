"""`bench` against a plain loop: both in one process, in turns that take about half a second.

A machine that others use changes its speed within minutes, by more than what is asked about. So a
block of a plain loop is made at each of `bench`'s openings, before or after it by chance, and an
opening is compared with its own block. The median over many openings is then known to a
fraction of the noise. Both load the model anew each time, since a session keeps the luck of its
memory for as long as it is open.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnxruntime

from onnxprune.validate.bench_sessions import SharedProcess, session_burst
from onnxprune.validate.runtime_process import CLOCKS, Burst
from onnxprune.validate.session import PreparedModel, session_settings
from onnxprune.validate.speedup import estimate
from onnxprune.validate.timing import Plan, measure

WARM_UP = 10
BLOCK_S = 0.25
LEAST_CALLS = 10


@dataclass(frozen=True)
class LoopComparison:
    """Median of `bench` / median of the plain loop - 1, over openings.

    Attributes:
        difference: Hodges-Lehmann estimate, see `speedup`.
        low: Lower end of its 95 % interval.
        high: Upper end.
        openings: Pairs of an opening and a block.
        bench_ms: Median over openings.
        loop_ms: Median over blocks.
    """

    difference: float
    low: float
    high: float
    openings: int
    bench_ms: float
    loop_ms: float


@dataclass
class _Alternating:
    """Opens what `inner` opens, and makes a block of the plain loop before or after it.

    Attributes:
        inner: Opens the models.
        loop: Makes a block; milliseconds of its calls.
        order: Draws whether it comes first.
        blocks: Median of each block.
    """

    inner: SharedProcess
    loop: Callable[[], list[float]]
    order: np.random.Generator
    blocks: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def open_all(self, rng: np.random.Generator) -> Iterator[list[Burst]]:
        """See `timing.OpenAll`."""
        first = self.order.random() < 0.5
        if first:
            self.blocks.append(float(np.median(self.loop())))
        with self.inner.open_all(rng) as bursts:
            yield bursts
        if not first:
            del bursts
            gc.collect(1)
            self.blocks.append(float(np.median(self.loop())))


def compare(
    model: bytes,
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int,
    sessions: int,
    seconds: float,
    clock: str = "wall",
    seed: int = 0,
) -> LoopComparison:
    """Measure a model by `bench`'s openings and by a plain loop in turns.

    Args:
        model: The model.
        feeds: Input name -> array.
        threads: Threads within an operator.
        sessions: Sessions that `bench` has open side by side; the first one's times are taken.
        seconds: Time for both.
        clock: `wall` or `cpu`.
        seed: Seed of the order.
    """
    settings = session_settings(threads=threads)
    with contextlib.ExitStack() as stack:
        prepared = [
            stack.enter_context(PreparedModel(("model", model), settings)) for _ in range(sessions)
        ]
        opener = _Alternating(
            SharedProcess(prepared, session_burst(feeds, clock)),
            lambda: _block(model, feeds, threads, CLOCKS[clock]),
            np.random.default_rng([seed, 1]),
        )
        # The precision is out of reach, so that it measures until the time is up
        openings = measure(opener.open_all, Plan(max_seconds=seconds, precision=1e-6, seed=seed))
    return _compared([float(np.median(times[:, 0])) for times in openings], opener.blocks, seed)


def _block(
    model: bytes, feeds: Mapping[str, np.ndarray], threads: int, clock: Callable[[], int]
) -> list[float]:
    """A loop over a new session, as anyone would write it; ONNX Runtime's options are its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    for _ in range(WARM_UP):
        session.run(None, dict(feeds))
    end = time.perf_counter() + BLOCK_S
    elapsed: list[float] = []
    while len(elapsed) < LEAST_CALLS or time.perf_counter() < end:
        start = clock()
        session.run(None, dict(feeds))
        elapsed.append((clock() - start) / 1e6)
    return elapsed


def _compared(bench_ms: Sequence[float], loop_ms: Sequence[float], seed: int) -> LoopComparison:
    ratios = np.log(np.array(bench_ms) / np.array(loop_ms))
    difference, low, high = (float(np.expm1(value)) for value in estimate(ratios, seed))
    return LoopComparison(
        difference, low, high, len(ratios), float(np.median(bench_ms)), float(np.median(loop_ms))
    )
