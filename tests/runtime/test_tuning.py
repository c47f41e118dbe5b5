"""Choosing by measurement: bounded, remembered, and for the whole model."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.errors import UsageError
from onnxprune.runtime import tune, tuning
from onnxprune.runtime.plan import CompileOptions

from .helpers import check_equal, net, normal, sparse

pytestmark = pytest.mark.usefixtures("need_kernels")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def network(first: float, second: float) -> onnx.ModelProto:
    """Two large layers of some densities.

    The first has no multiple of four outputs, so that blocks of four do not make it as fast as a
    dense one.
    """
    return net(
        "g (float[N, 256, 20, 20] x) => (float[N, 256, 20, 20] y)"
        " { a = Conv(x, w) r = Relu(a) y = Conv<pads = [1, 1, 1, 1]>(r, v) }",
        w=sparse(250, 256, 1, 1, density=first),
        v=sparse(256, 250, 3, 3, density=second),
    )


def test_the_faster_of_dense_and_sparse_is_chosen_for_each_layer(cache: Path, kernels: bool):
    source = network(0.95, 0.03)
    result = tune(source, threads=1, seconds=120)
    dense, fast = result.record.layers
    assert not dense.sparse
    assert fast.sparse
    assert fast.dense_ms is not None
    assert fast.sparse_ms is not None
    assert fast.sparse_ms < fast.dense_ms
    feeds = {"x": normal(1, 256, 20, 20)}
    check_equal(source, result, feeds, kernels, replaced=1)


def test_layers_are_timed_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    source = network(0.95, 0.03)
    first = tune(source, threads=1, seconds=120).record
    (file,) = cache.iterdir()
    assert len(json.loads(file.read_text())) == 2

    def fail(*args: object) -> None:
        raise AssertionError("a layer is timed again")

    monkeypatch.setattr(tuning, "layer_models", fail)
    again = tune(source, threads=1, seconds=120).record
    assert [layer.sparse_ms for layer in again.layers] == [
        layer.sparse_ms for layer in first.layers
    ]
    file.write_text("[damaged")
    with pytest.raises(AssertionError, match="timed again"):
        tune(source, threads=1, seconds=120)


def test_a_model_that_gains_nothing_stays_as_it_is(monkeypatch: pytest.MonkeyPatch):
    source = network(0.1, 0.1)
    monkeypatch.setattr(tuning, "_times", lambda calls, *rest: np.ones((3, len(calls))))
    result = tune(source, threads=1)
    assert result.record.replaced == 0
    assert result.proto == source
    assert result.record.layers[0].reason == "the whole model is not faster with sparse kernels"


def test_no_more_time_is_taken_than_was_given(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    shares: list[float] = []
    source = network(0.1, 0.1)
    timed: list[int] = []
    original = tuning.layer_models

    def count(*args):
        timed.append(1)
        return original(*args)

    monkeypatch.setattr(tuning, "layer_models", count)
    tune(source, threads=1, seconds=2, clock=clock, on_progress=shares.append)
    assert len(timed) == 1, "the first layer takes the layers' share of two seconds"
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_open_axes_need_sizes():
    source = net(
        "g (float[N, T, 64] x) => (float[N, T, 64] y) { y = MatMul(x, w) }",
        w=sparse(64, 64, density=0.1).T,
    )
    with pytest.raises(UsageError, match="leaves an axis open"):
        tune(source, seconds=1)
    record = tune(source, CompileOptions(), seconds=5, shapes={"x": [1, 50, 64]}).record
    assert record.layers[0].dense_ms is not None
    assert np.isfinite(record.layers[0].dense_ms)


@pytest.mark.parametrize(("noise", "wins"), [([0.7, 1.0, 0.7, 1.0], False), ([0.7] * 4, True)])
def test_the_rules_choice_stays_unless_another_is_faster_in_most_rounds(
    monkeypatch: pytest.MonkeyPatch, noise: list[float], wins: bool
):
    """A few noisy rounds must not choose a model that may be slower."""
    source = network(0.05, 0.05)
    sparse_ms = iter([0.9, 0.1])  # only the second layer gains enough for most least speedups

    def timed(calls, deadline, share):
        if len(calls) == 2:
            return np.array([[1.0, next(sparse_ms)]])
        times = np.ones((4, len(calls)))
        times[:, 0] = 3
        times[:, -1] = noise
        return times

    monkeypatch.setattr(tuning, "_times", timed)
    result = tune(source, threads=1, seconds=60)
    assert [layer.sparse for layer in result.record.layers] == (
        [False, True] if wins else [True] * 2
    )
