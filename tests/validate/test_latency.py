import os
import time

import numpy as np
import onnx.parser
import pytest

from onnxprune.errors import UnsupportedModelError, UsageError
from onnxprune.model import ValueSpec
from onnxprune.random_inputs import random_inputs
from onnxprune.validate import Speedup, bench
from onnxprune.validate.latency_result import summarise
from onnxprune.validate.runtime_process import host_burst
from onnxprune.validate.speedup import round_ratios


def summary(times, **options):
    """Of times `(rounds, models)`, ten openings of them."""
    count = times.shape[1]
    return summarise(
        [f"m{i}" for i in range(count)],
        np.split(times[:, :, None], 10),
        size_bytes=[1] * count,
        load_ms=[1.0] * count,
        environment={},
        seed=0,
        **options,
    )


def test_verdicts():
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.02, (300, 4))
    result = summary(noise * [10, 5, 10, 20.5])
    assert [m.speedup.verdict for m in result.models[1:]] == ["faster", "same", "slower"]
    assert result.conclusive
    lines = result.verdict.splitlines()
    assert lines[0].startswith("m1: faster than the baseline (")
    assert lines[1].startswith("m2: no speedup: as fast as the baseline within")
    assert lines[2].startswith("m3: no speedup: slower than the baseline (0.4")
    assert result.models[0].speedup == Speedup(1, 1, 1)
    wild = summary(rng.lognormal(0, 1, (20, 2)))
    assert not wild.conclusive
    assert "too noisy to conclude" in wild.verdict


def test_percentiles_and_throughput():
    model = summary(np.arange(1, 101, dtype=float)[:, None], samples_a_call=4).models[0]
    assert model.latency_ms == pytest.approx(
        {"median": 50.5, "p50": 50.5, "p90": 90.1, "p99": 99.01, "mean": 50.5}
    )
    assert model.throughput_per_s == pytest.approx(4000 / 50.5)
    assert model.samples == list(range(1, 101))


def test_distributions_of_calls_and_rounds():
    times = np.stack([np.full(100, 10.0), np.linspace(5, 10, 100)], axis=1)
    baseline, model = summary(times).models
    assert len(model.quantiles_ms) == len(model.ratio_quantiles) == 101
    assert (model.quantiles_ms[0], model.quantiles_ms[50], model.quantiles_ms[100]) == (5, 7.5, 10)
    assert (model.ratio_quantiles[0], model.ratio_quantiles[100]) == (1, 2)
    assert model.ratio_quantiles == sorted(model.ratio_quantiles)
    assert set(baseline.ratio_quantiles) == {1.0}
    assert "samples" not in model.to_json()
    assert model.to_json()["quantiles_ms"] == model.quantiles_ms


def test_the_ratio_of_a_round_is_that_of_its_bursts_medians():
    openings = [np.array([[[2.0, 4.0, 90.0], [1.0, 2.0, 50.0]]])]
    assert round_ratios(openings, 1).tolist() == [2.0]


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


@pytest.mark.parametrize("processes", [False, True])
def test_a_model_of_a_quarter_of_the_work_is_faster(network, processes):
    models = [("long", network(16)), ("short", network(4))]
    result = bench(
        models, batch=16, threads=1, rounds=6, max_seconds=2, processes=processes, profile=True
    )
    assert result.models[1].speedup.low > 1.5
    assert result.conclusive
    printed = result.to_json()
    assert [entry["path"] for entry in printed["models"]] == ["long", "short"]
    assert [entry["verdict"] for entry in printed["models"]] == ["same", "faster"]
    assert set(printed["models"][0]["latency_ms"]) >= {"median", "p90", "p99"}
    assert printed["models"][0]["speedup"] == {"ratio": 1, "low": 1, "high": 1}
    environment = printed["environment"]
    assert environment["inputs"] == {"h0": [16, 256]}
    assert (environment["threads"], environment["processes"]) == (1, processes)
    assert (environment["rounds"], environment["openings"]) == (6, 6)
    assert environment["graph_optimization"] == "all"
    assert "samples" not in printed["models"][0]
    with_samples = result.to_json(with_samples=True)["models"]
    calls = 6 * environment["calls_a_round"]
    assert [len(model["samples"]) for model in with_samples] == [calls, calls]
    for model, layers in zip(printed["models"], (16, 4), strict=True):
        assert model["load_ms"] > 0
        assert model["throughput_per_s"] == pytest.approx(16e3 / model["latency_ms"]["mean"])
        assert sum(entry["nodes"] for entry in model["operators"]) == layers
        assert sum(entry["share"] for entry in model["operators"]) == pytest.approx(1)
    assert printed["models"][1]["size_bytes"] < printed["models"][0]["size_bytes"]


def test_peak_memory_is_that_of_the_model():
    pytest.importorskip("onnxruntime")
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak memory is known on Linux")
    peaks = {}
    for rows in (1, 4096):
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> '
            f"net (float[1, {rows}] x) => (float[1, 4096] y) {{ y = MatMul(x, w) }}"
        )
        weight = np.ones((rows, 4096), np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        peaks[rows] = bench([proto], rounds=5, threads=1, max_seconds=1).models[0].peak_memory_bytes
    # 64 MiB of weights, once or a few times
    assert 60e6 < peaks[4096] - peaks[1] < 300e6


def test_settings_reach_the_measurement(network):
    result = bench(
        [network(2)],
        batch=2,
        rounds=5,
        max_seconds=2,
        optimization="basic",
        cores=[min(os.sched_getaffinity(0))],
    )
    assert result.environment["graph_optimization"] == "basic"
    assert result.environment["threads"] == 1
    assert result.environment["pinned_cores"] == [min(os.sched_getaffinity(0))]
    assert len(os.sched_getaffinity(0)) > 1 or os.cpu_count() == 1


def test_the_clock_of_the_processor_stands_still_while_a_call_waits():
    class Sleeping:
        def run(self, names, feeds):
            time.sleep(0.02)

    wall = host_burst(Sleeping(), [], {}, "wall")(3)
    cpu = host_burst(Sleeping(), [], {}, "cpu")(3)
    assert min(wall) >= 20e6
    assert max(cpu) < 10e6


def test_why_zeros_do_not_help(network):
    models = [("dense", network(4)), ("pruned", network(12))]
    dense, pruned = bench(models, batch=16, threads=1, rounds=10, max_seconds=2).models
    assert dense.reason is None
    assert pruned.speedup.verdict == "slower"
    assert pruned.reason.startswith("99.6% of its prunable weights are zero")
    assert "dense kernels" in pruned.reason


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
    with pytest.raises(UsageError, match="rounds 4"):
        bench([network(1)], rounds=4)
    for precision in (0, 1, -0.1, 2):
        with pytest.raises(UsageError, match=f"precision(.|\n)*got: {precision}"):
            bench([network(1)], precision=precision)
    with pytest.raises(UsageError, match="9999"):
        bench([network(1)], cores=[9999])
    with pytest.raises(UsageError, match="none, basic, extended, all"):
        bench([network(1)], optimization="most")
    with pytest.raises(UsageError, match=r"only CUDA(.|\n)*--device-io"):
        bench([network(1)], device_io=True)
    with pytest.raises(UsageError, match="wall, cpu"):
        bench([network(1)], clock="sun")
    for threads in (2, None):
        with pytest.raises(UsageError, match="only for one thread on the CPU"):
            bench([network(1)], clock="cpu", threads=threads)
    with pytest.raises(UsageError, match="separate processes"):
        bench([network(1)], device_io=True, processes=True)


def test_a_model_that_fails_in_a_process_is_named(network, tmp_path):
    class Vanishing(os.PathLike):
        """A model that is gone when a process comes to load it."""

        def __init__(self):
            self.path = tmp_path / "net.onnx"
            self.path.write_bytes(network(1))

        def __fspath__(self):
            return str(self.path)

    model = Vanishing()
    seen = []

    def remove(done, total):
        seen.append(done)
        model.path.unlink(missing_ok=True)

    with pytest.raises(UnsupportedModelError, match=r"net\.onnx"):
        bench([model], batch=1, rounds=10, processes=True, on_progress=remove)
    assert seen == [1]


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
