import math

import numpy as np
import onnx.parser
import pytest

from onnxprune.errors import UsageError
from onnxprune.model import ValueSpec
from onnxprune.validate import Speedup, bench
from onnxprune.validate.inputs import random_inputs
from onnxprune.validate.latency import speedup, summarise
from onnxprune.validate.timing import measure


class Machine:
    """A clock that only calls move: call i takes `costs[i](now)` nanoseconds."""

    def __init__(self, *costs):
        self.now = 0
        self.log = []
        self.calls = [self._call(index, cost) for index, cost in enumerate(costs)]

    def _call(self, index, cost):
        def call():
            self.log.append(index)
            self.now += round(cost(self.now))

        return call

    def clock(self):
        return self.now

    def measure(self, rounds=None, warmup=0, max_seconds=20.0, seed=0, **options):
        return measure(
            self.calls,
            rounds=rounds,
            warmup=warmup,
            max_seconds=max_seconds,
            seed=seed,
            clock=self.clock,
            **options,
        )


def constant(ms):
    return lambda now: ms * 1e6


def test_each_round_runs_each_model_once_after_a_settling_call():
    machine = Machine(constant(1), constant(2), constant(3))
    times = machine.measure(rounds=50)
    np.testing.assert_allclose(times, np.tile([1.0, 2.0, 3.0], (50, 1)))
    rounds = np.array(machine.log).reshape(50, 3, 2)
    np.testing.assert_array_equal(rounds[:, :, 0], rounds[:, :, 1])
    np.testing.assert_array_equal(np.sort(rounds[:, :, 0], axis=1), np.tile([0, 1, 2], (50, 1)))
    orders = {tuple(order) for order in rounds[:, :, 0]}
    assert len(orders) == 6


def test_the_order_is_seeded():
    logs = []
    for seed in (0, 0, 1):
        machine = Machine(constant(1), constant(1))
        machine.measure(rounds=30, seed=seed)
        logs.append(machine.log)
    assert logs[0] == logs[1] != logs[2]


def test_drift_cancels_in_the_pairs():
    def slowing(ms):
        return lambda now: ms * 1e6 * (1 + now / 1e9)

    times = Machine(slowing(2), slowing(1)).measure(rounds=200)
    assert times[-1, 0] > 2 * times[0, 0]
    result = speedup(times[:, 0], times[:, 1], seed=0)
    assert result.low < 2.0 < result.high
    assert result.high - result.low < 0.03


def test_warm_up_goes_on_until_times_are_steady():
    def warming(now):
        return 1e6 * (1 + 5 * math.exp(-now / 50e6))

    times = Machine(warming).measure(rounds=20, warmup=None)
    assert times.max() < 1.1
    cold = Machine(warming).measure(rounds=20, warmup=0)
    assert cold.max() > 3


def test_warm_up_has_an_end():
    rng = np.random.default_rng(0)
    machine = Machine(lambda now: rng.uniform(1, 9) * 1e6)
    machine.measure(rounds=1, warmup=None, max_seconds=1)
    assert machine.now < 0.2e9 + 5 * 18e6


def test_rounds_stop_when_the_interval_is_narrow_or_the_time_is_up():
    assert len(Machine(constant(1), constant(2)).measure()) == 100
    rng = np.random.default_rng(0)

    def noisy(now):
        return rng.uniform(1, 3) * 1e6

    machine = Machine(noisy, noisy)
    times = machine.measure(max_seconds=2)
    assert 2e9 <= machine.now < 2.1e9
    assert len(times) > 200
    slow = Machine(constant(3000), constant(3000))
    assert len(slow.measure(max_seconds=1, warmup=None)) == 5


def test_progress_is_told():
    seen = []
    Machine(constant(1)).measure(rounds=3, on_progress=lambda *args: seen.append(args))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("ratio", [1.0, 1.25])
def test_the_interval_covers_the_truth(ratio):
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shared = rng.gamma(2.0, 0.2, 120) + 1
        noise = rng.lognormal(0, 0.05, (2, 120))
        result = speedup(shared * ratio * noise[0], shared * noise[1], seed)
        assert result.low <= result.ratio <= result.high
        covered += result.low <= ratio <= result.high
    assert 88 <= covered <= 100


def summary(times):
    count = times.shape[1]
    return summarise(
        [f"m{i}" for i in range(count)],
        times,
        size_bytes=[1] * count,
        load_ms=[1.0] * count,
        environment={},
        seed=0,
    )


def test_verdicts():
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.02, (300, 4))
    result = summary(noise * [10, 5, 10, 20])
    assert [m.speedup.verdict for m in result.models[1:]] == ["faster", "same", "slower"]
    assert result.conclusive
    assert "m1: faster than the baseline (2.0" in result.verdict
    assert "m2: no speedup: as fast as the baseline within" in result.verdict
    assert result.models[0].speedup == Speedup(1, 1, 1)
    wild = summary(rng.lognormal(0, 1, (20, 2)))
    assert not wild.conclusive
    assert "too noisy" in wild.verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict", "conclusive"),
    [
        (0.98, 1.02, "same", True),
        (1.01, 1.02, "same", True),
        (1.01, 1.2, "faster", True),
        (0.8, 0.99, "slower", True),
        (0.99, 1.04, "same", True),
        (0.9, 1.1, "unclear", False),
    ],
)
def test_what_an_interval_means(low, high, verdict, conclusive):
    result = Speedup((low + high) / 2, low, high)
    assert (result.verdict, result.conclusive) == (verdict, conclusive)


def test_percentiles():
    latency = summary(np.arange(1, 102, dtype=float)[:, None]).models[0].latency_ms
    assert latency == {"median": 51, "p50": 51, "p90": 91, "p99": 100, "mean": 51}


@pytest.fixture
def network():
    pytest.importorskip("onnxruntime")

    def build(layers):
        nodes = "".join(f"h{i + 1} = MatMul(h{i}, w) " for i in range(layers))
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 256] h0) => '
            f"(float[N, 256] h{layers}) {{ {nodes} }}"
        )
        weights = np.eye(256, dtype=np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
        return proto.SerializeToString()

    return build


def test_identical_models_have_no_speedup(network):
    data = network(8)
    for attempt in range(3):  # a busy machine may disturb one measurement
        result = bench([("a", data), ("b", data)], batch=16, threads=1, max_seconds=3, seed=attempt)
        if result.models[1].speedup.verdict == "same":
            break
    assert result.models[1].speedup.verdict == "same"
    assert "no speedup" in result.verdict


def test_a_model_of_a_quarter_of_the_work_is_faster(network):
    models = [("long", network(16)), ("short", network(4))]
    result = bench(models, batch=16, threads=1, rounds=60)
    assert result.models[1].speedup.low > 1.5
    assert result.conclusive
    printed = result.to_json()
    assert [entry["path"] for entry in printed["models"]] == ["long", "short"]
    assert set(printed["models"][0]["latency_ms"]) >= {"median", "p90", "p99"}
    assert printed["models"][0]["speedup"] == {"ratio": 1, "low": 1, "high": 1}
    assert "samples" not in printed["models"][0]
    assert len(result.to_json(with_samples=True)["models"][1]["samples"]) == 60
    assert printed["environment"]["inputs"] == {"h0": [16, 256]}
    assert printed["environment"]["threads"] == 1
    assert printed["models"][1]["size_bytes"] < printed["models"][0]["size_bytes"]


def test_bench_refuses(network):
    other = network(1).replace(b"h0", b"g0")
    with pytest.raises(UsageError, match="differ in their inputs"):
        bench([network(1), other])
    with pytest.raises(UsageError, match="unknown: y"):
        bench([network(1)], shapes={"y": [1]})
    with pytest.raises(UsageError, match="missing: h0"):
        bench([network(1)], inputs={})
    with pytest.raises(UsageError, match="no model"):
        bench([])
    with pytest.raises(UsageError, match="batch 0"):
        bench([network(1)], batch=0)


def spec(name, dtype, *shape):
    return ValueSpec(name, np.dtype(dtype), shape)


def test_random_inputs_follow_the_graph():
    inputs = [
        spec("x", np.float16, "N", 3, "T"),
        spec("ids", np.int64, None, "T"),
        spec("state", np.float32, 2, "N", 4),
        spec("mask", np.bool_, "N"),
        spec("rate", np.int64),
    ]
    made = random_inputs(inputs, batch=5, shapes={"x": [7, 3, 9]})
    assert {name: array.shape for name, array in made.items()} == {
        "x": (7, 3, 9),
        "ids": (5, 9),
        "state": (2, 7, 4),
        "mask": (7,),
        "rate": (),
    }
    assert all(made[item.name].dtype == item.dtype for item in inputs)
    assert set(np.unique(made["ids"])) == {0, 1}
    again = random_inputs(inputs, batch=5, shapes={"x": [7, 3, 9]})
    np.testing.assert_array_equal(made["x"], again["x"])


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([spec("x", np.float32, "N", 3, "H", None)], {}, "--shape x=1,3,1,1"),
        ([ValueSpec("x", np.dtype(np.float32), None)], {}, "--shape x=1,3,224,224"),
        ([spec("x", np.float32, "N", 3)], {"shapes": {"x": [1, 4]}}, r"float32\[N, 3\]"),
        ([spec("x", np.float32, "N", 3)], {"shapes": {"x": [1]}}, "does not fit"),
        ([spec("x", np.float32, "N", 3)], {"shapes": {"x": [0, 3]}}, "does not fit"),
        ([spec("x", np.float32, 4, 3)], {"batch": 2}, "fixed batch size"),
        ([ValueSpec("x", None, ("N",))], {}, "this type"),
    ],
)
def test_inputs_that_cannot_be_made(inputs, options, message):
    with pytest.raises(UsageError, match=message):
        random_inputs(inputs, **options)


def test_a_fixed_batch_is_kept():
    assert random_inputs([spec("x", np.float32, 4, 3)])["x"].shape == (4, 3)
