import subprocess
from types import SimpleNamespace

import pytest

from onnxprune.validate import environment
from onnxprune.validate.environment import Neighbours, describe_gpus


@pytest.fixture
def kernel(monkeypatch):
    """Counters of a machine that a test sets: wall clock, busy time of all cores, our own."""
    state = SimpleNamespace(now=(100.0, 1000.0, 5.0))
    monkeypatch.setattr(Neighbours, "_now", staticmethod(lambda: state.now))
    return state


def test_our_own_time_is_not_that_of_others(kernel):
    neighbours = Neighbours()
    kernel.now = (110.0, 1025.0, 13.0)
    assert neighbours.busy_cores() == 1.7  # 25 s of all cores less 8 s of ours, in 10 s
    assert neighbours.busy_cores(elsewhere_s=7.0) == 1.0
    assert neighbours.busy_cores(elsewhere_s=20.0) == 0.0


def test_a_system_that_does_not_tell(kernel):
    kernel.now = None
    assert Neighbours().busy_cores() is None


def test_the_counters_of_this_machine_go_on():
    if environment.Neighbours._now() is None:
        pytest.skip("only Linux has these counters")
    neighbours = Neighbours()
    total = 0
    while environment.time.process_time() < neighbours._start[2] + 0.2:
        total += 1
    wall, busy, own = (b - a for a, b in zip(neighbours._start, Neighbours._now(), strict=True))
    assert own >= 0.2
    assert 0.1 < busy <= (wall + 0.1) * (environment.os.cpu_count() or 1)


def test_gpus(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert describe_gpus() is None
    monkeypatch.setattr(environment.shutil, "which", lambda name: f"/bin/{name}")
    answer = SimpleNamespace(stdout="NVIDIA H100, 570.1\nNVIDIA H100, 570.1\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: answer)
    assert describe_gpus() == ["NVIDIA H100, 570.1"] * 2

    def fail(*args, **options):
        raise subprocess.CalledProcessError(9, args[0])

    monkeypatch.setattr(subprocess, "run", fail)
    assert describe_gpus() is None
