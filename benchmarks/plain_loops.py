"""`bench` against a plain loop: both in one process, in turns of a few hundredths of a second.

A machine that others use changes its speed within seconds, by more than what is asked about. So
what is compared lies close together: in each opening the model is loaded once as `bench` does and
once as anyone would, and then both take turns in random order, a stretch of `bench`'s rounds and a
stretch of a plain loop. A turn is one value, its median. The ratio and its interval come from them
as `bench`'s own speedups do from calls (see `speedup`): by openings, since a session keeps the luck
of its memory for as long as it is open.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from onnxprune.validate.bench_sessions import SharedProcess, session_burst
from onnxprune.validate.runtime_process import CLOCKS, Burst
from onnxprune.validate.session import PreparedModel, session_settings
from onnxprune.validate.speedup import speedup
from onnxprune.validate.timing import Plan, measure

TURN_NS = 30_000_000
LEAST_CALLS = 3


@dataclass(frozen=True)
class LoopComparison:
    """Median of `bench` / median of the plain loop - 1.

    Attributes:
        difference: The estimate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        openings: How often the model was loaded.
        turns: Turns of each.
        bench_ms: Median of `bench`'s turns.
        loop_ms: Median of the plain loop's turns.
    """

    difference: float
    low: float
    high: float
    openings: int
    turns: int
    bench_ms: float
    loop_ms: float


def compare(
    model: bytes,
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int,
    sessions: int,
    plan: Plan,
    clock: str = "wall",
) -> LoopComparison:
    """Measure a model by `bench`'s rounds and by a plain loop in turns.

    Args:
        model: The model.
        feeds: Input name -> array.
        threads: Threads within an operator.
        sessions: Sessions that `bench` has open side by side; the first one's times are taken.
        plan: How much to measure.
        clock: `wall` or `cpu`.
    """
    settings = session_settings(threads=threads)
    with contextlib.ExitStack() as stack:
        opener = SharedProcess(
            [
                stack.enter_context(PreparedModel(("model", model), settings))
                for _ in range(sessions)
            ],
            session_burst(feeds, clock),
        )

        @contextlib.contextmanager
        def open_all(rng: np.random.Generator) -> Iterator[list[Burst]]:
            plain_first = rng.random() < 0.5
            plain = _plain_turns(model, feeds, threads, clock) if plain_first else None
            with opener.open_all(rng) as bursts:
                plain = plain or _plain_turns(model, feeds, threads, clock)
                yield [plain, _bench_turns(bursts, rng)]

        openings = measure(open_all, plan)
    ratio = speedup(openings, 1, plan.seed)
    medians = np.median(np.concatenate(openings)[:, :, 0], axis=0)
    return LoopComparison(
        1 / ratio.ratio - 1,
        1 / ratio.high - 1,
        1 / ratio.low - 1,
        len(openings),
        sum(map(len, openings)),
        bench_ms=float(medians[1]),
        loop_ms=float(medians[0]),
    )


def _plain_turns(model: bytes, feeds: Mapping[str, np.ndarray], threads: int, clock: str) -> Burst:
    """A plain loop over a session of its own, with ONNX Runtime's default options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    now = CLOCKS[clock]

    def once() -> list[int]:
        start = now()
        session.run(None, dict(feeds))
        return [now() - start]

    def turn(calls: int) -> list[int]:
        session.run(None, dict(feeds))
        return [_median_of_a_turn(once)] * calls

    return turn


def _bench_turns(bursts: Sequence[Burst], rng: np.random.Generator) -> Burst:
    """Rounds of all of `bench`'s sessions, of which the first one's times count."""

    def turn(calls: int) -> list[int]:
        def one_round() -> list[int]:
            times = {index: bursts[index](calls) for index in rng.permutation(len(bursts))}
            return times[0]

        return [_median_of_a_turn(one_round)] * calls

    return turn


def _median_of_a_turn(times: Callable[[], list[int]]) -> int:
    """Median of the calls that a turn has room for, by the clock that times them."""
    elapsed: list[int] = []
    while len(elapsed) < LEAST_CALLS or sum(elapsed) < TURN_NS:
        elapsed += times()
    return int(np.median(elapsed))
