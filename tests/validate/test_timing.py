import contextlib
import gc
import math

import numpy as np
import pytest

from onnxprune.validate.speedup import speedup
from onnxprune.validate.timing import Plan, measure


class Machine:
    """A clock that only calls move.

    Call i takes `costs[i](machine)` nanoseconds; loading all models takes `load_s` seconds.
    """

    def __init__(self, *costs, load_s=0.0):
        self.now = 0
        self.log = []
        self.opened = 0
        self.load_s = load_s
        self.bursts = [self._burst(index, cost) for index, cost in enumerate(costs)]

    def _burst(self, index, cost):
        def call():
            took = round(cost(self))
            self.now += took
            return took

        def burst(calls):
            self.log.append((index, calls))
            call()
            return [call() for _ in range(calls)]

        return burst

    @contextlib.contextmanager
    def open_all(self, rng):
        self.opened += 1
        self.log.append("open")
        self.now += round(self.load_s * 1e9)
        self.luck = rng.random()
        yield self.bursts

    def measure(self, on_progress=None, **plan):
        return measure(
            self.open_all,
            Plan(**({"warmup": 0} | plan)),
            on_progress=on_progress,
            clock=lambda: self.now,
        )


def constant(ms):
    return lambda machine: ms * 1e6


def test_each_round_times_each_model_in_an_order_of_its_own():
    machine = Machine(constant(10), constant(20), constant(30))
    openings = machine.measure(rounds=50)
    np.testing.assert_allclose(np.concatenate(openings)[:, :, 0], np.tile([10, 20, 30], (50, 1)))
    order = np.array([entry[0] for entry in machine.log if entry != "open"]).reshape(50, 3)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile([0, 1, 2], (50, 1)))
    assert len({tuple(row) for row in order}) == 6


def test_models_are_loaded_anew_and_rounds_are_shared_out():
    for rounds, expected in ((50, [5] * 10), (23, [3] * 3 + [2] * 7), (7, [1] * 7), (5, [1] * 5)):
        machine = Machine(constant(10), constant(10))
        assert [len(times) for times in machine.measure(rounds=rounds)] == expected
        assert machine.opened == len(expected)


def test_the_order_is_seeded():
    logs = []
    for seed in (0, 0, 1):
        machine = Machine(constant(1), constant(1))
        machine.measure(rounds=30, seed=seed)
        logs.append(machine.log)
    assert logs[0] == logs[1] != logs[2]


@pytest.mark.parametrize(("ms", "calls"), [(20, 1), (2.6, 2), (1, 5), (0.01, 20)])
def test_short_calls_come_in_bursts(ms, calls):
    openings = Machine(constant(ms), constant(ms / 2)).measure(rounds=10, warmup=2)
    assert {times.shape for times in openings} == {(1, 2, calls)}


def test_drift_cancels_within_rounds():
    def slowing(ms):
        return lambda machine: ms * 1e6 * (1 + machine.now / 1e9)

    openings = Machine(slowing(2), slowing(1)).measure(rounds=200)
    assert openings[-1][-1, 0, 0] > 2 * openings[0][0, 0, 0]
    result = speedup(openings, 1, seed=0)
    assert result.low < 2.0 < result.high
    assert result.high - result.low < 0.05


def test_outliers_do_not_move_the_ratio():
    rng = np.random.default_rng(0)

    def disturbed(ms):
        return lambda machine: ms * 1e6 * (20 if rng.random() < 0.15 else 1)

    result = speedup(Machine(disturbed(2), disturbed(1)).measure(rounds=300), 1, seed=0)
    assert result.low == result.high == pytest.approx(2)


def test_the_luck_of_a_session_is_inside_the_interval():
    def lucky(machine):
        return 1e6 * (1.1 if machine.luck < 0.5 else 1) * rng.normal(1, 0.001)

    rng = np.random.default_rng(0)
    result = speedup(Machine(constant(1), lucky).measure(rounds=300, seed=3), 1, seed=0)
    assert result.low < 1 / 1.09
    assert result.high > 0.99


def test_warm_up_goes_on_until_times_are_steady():
    def warming(machine):
        return 1e6 * (1 + 5 * math.exp(-machine.now / 50e6))

    steady = Machine(warming).measure(rounds=20, warmup=None)
    assert np.concatenate([times.ravel() for times in steady]).max() < 1.1
    cold = Machine(warming).measure(rounds=20, warmup=0)
    assert cold[0].max() > 3


def test_every_opening_is_warmed_up():
    machine = Machine(constant(1))
    machine.measure(rounds=20, warmup=3)
    entries = " ".join("open" if entry == "open" else str(entry[1]) for entry in machine.log)
    openings = [part.split() for part in entries.split("open")[1:]]
    assert openings == [["1"] * 3 + ["5"] * 2] * 10


def test_warm_up_has_an_end():
    rng = np.random.default_rng(0)
    machine = Machine(lambda machine: rng.uniform(1, 9) * 1e6)
    machine.measure(rounds=5, warmup=None, max_seconds=1)
    # at most 0.1 s at first and 0.01 s each later time, one round more, and five rounds
    assert machine.now < (0.1 + 4 * 0.01) * 1e9 + 5 * 2 * 18e6 + 5 * 6 * 9e6


def test_it_stops_when_the_interval_is_narrow_enough():
    rng = np.random.default_rng(0)

    def by_opening(machine):
        return 1e6 * (1 + 0.1 * machine.luck) * rng.normal(1, 0.02)

    widths, counts = [], []
    for precision in (0.05, 0.02, 0.01):
        openings = Machine(constant(1), by_opening).measure(precision=precision, max_seconds=60)
        result = speedup(openings, 1, seed=0)
        widths.append((result.high - result.low) / 2 / result.ratio / precision)
        counts.append(len(openings))
    assert max(widths) <= 1
    assert counts[0] == 10 < counts[1] < counts[2]


def test_it_stops_when_the_time_is_up():
    rng = np.random.default_rng(0)

    def noisy(machine):
        return rng.uniform(1, 3) * 1e6

    machine = Machine(noisy, noisy, load_s=0.05)
    openings = machine.measure(max_seconds=3, precision=1e-4, warmup=None)
    assert 2.5e9 < machine.now < 3.5e9
    assert len(openings) >= 10
    measured = sum(times.sum() for times in openings) / 1e3
    assert measured > 0.75  # a quarter of the time goes into timed calls


def test_a_long_warm_up_does_not_use_up_the_first_opening():
    def warming(machine):
        return 1e6 * (1 + 5 * math.exp(-machine.now / 100e6))

    openings = Machine(warming, warming).measure(warmup=None, max_seconds=20)
    assert len(openings[0]) >= 30


def test_a_slow_model_is_opened_five_times_nevertheless():
    machine = Machine(constant(3000), constant(3000), load_s=2)
    openings = machine.measure(max_seconds=1, warmup=None)
    assert [times.shape for times in openings] == [(1, 2, 1)] * 5


def test_one_model_stops_by_its_own_interval():
    rng = np.random.default_rng(0)
    calm = Machine(lambda machine: 1e6 * rng.normal(1, 0.01)).measure(max_seconds=5)
    wild = Machine(lambda machine: 1e6 * (1 + machine.luck)).measure(max_seconds=5)
    assert len(calm) == 10 < len(wild)


def test_progress_is_told():
    seen = []
    Machine(constant(1)).measure(rounds=7, on_progress=lambda *args: seen.append(args))
    assert seen == [(done, 7) for done in range(1, 8)]
    seen.clear()
    rng = np.random.default_rng(0)
    Machine(constant(5), lambda machine: rng.uniform(4, 6) * 1e6).measure(
        max_seconds=4, precision=1e-9, on_progress=lambda *args: seen.append(args)
    )
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)
    assert seen[len(seen) // 2][1] == pytest.approx(len(seen), rel=0.2)


def test_the_collector_is_off_meanwhile_and_on_again_after_an_error():
    states = []

    def failing(machine):
        states.append(gc.isenabled())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Machine(failing).measure(rounds=5)
    assert states == [False]
    assert gc.isenabled()
