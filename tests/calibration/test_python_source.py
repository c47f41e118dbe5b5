import sys
import textwrap

import numpy as np
import pytest

from onnxprune.calibration import open_data, python_source, subset
from onnxprune.errors import DataError, UsageError
from onnxprune.model import ValueSpec

ONE = [ValueSpec("x", np.dtype(np.float32), ("N", 2))]
TWO = [*ONE, ValueSpec("n", np.dtype(np.int64), ("N",))]

MODULE = """
import numpy as np

def pairs(): return [(np.full(2, i, "f"), i % 3) for i in range(5)]
def bare(): return [np.full(2, i, "f") for i in range(5)]
def generator(): return ((np.full(2, i, "f"), i % 3) for i in range(5))
def endless():
    while True:
        yield np.zeros(2, "f")
def whole(): return np.arange(10).reshape(5, 2).astype("f"), [0, 1, 2, 0, 1]
def array(): return np.arange(10).reshape(5, 2).astype("f")
def both(): return {"x": np.zeros((4, 2)), "n": np.arange(4)}, np.array([0, 1, 2, 0])
def dicts(): return [({"x": [0.5, i], "n": np.int64(i)}, i) for i in range(3)]
class Lazy:
    def __len__(self): return 10**9
    def __getitem__(self, i):
        if i == 7: raise RuntimeError("disk on fire")
        return np.full(2, i, "f"), np.int64(1)
def lazy(): return Lazy()
class Noisy:
    def __len__(self): return 20
    def __getitem__(self, i): return np.random.normal(size=2).astype("f") * (i % 2), 0
def noisy(): return Noisy()
def fails(): raise RuntimeError("no database")
def nothing(): return 3
def empty(): return []
def late(): return [(np.zeros(2, "f"), 0), np.zeros(2, "f")]
def high(): return [(np.zeros(2, "f"), 0), (np.zeros(2, "f"), 3)]
def fuzzy(): return [(np.zeros(2, "f"), 0.5)]
def wide(): return [(np.zeros(3, "f"), 0)]
def words(): return [("ab", 0)]
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    name = f"source_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)

    def read(function, inputs=ONE, **options):
        samples = open_data(
            f"python:{name}:{function}", inputs=inputs, allow_python=True, num_classes=3, **options
        )
        assert sys.path == path
        return samples

    yield read
    sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["pairs", "generator"])
def test_sequences_and_iterables(read, function):
    samples = read(function)
    assert [sample.label for sample in samples] == [0, 1, 2, 0, 1]
    assert [sample.inputs["x"].tolist() for sample in samples] == [[i, i] for i in range(5)]


def test_unlabelled(read):
    assert not read("bare").labelled
    assert read("bare")[2].inputs["x"].tolist() == [2, 2]
    assert not read("array").labelled


def test_whole_arrays(read):
    samples = read("whole")
    assert samples[4].inputs["x"].tolist() == [8, 9]
    assert samples[4].label == 1


def test_several_inputs(read):
    samples = read("both", TWO)
    assert samples[3].inputs["n"] == 3
    assert samples[3].inputs["x"].dtype == np.float32
    assert read("dicts", TWO)[2].inputs["x"].tolist() == [0.5, 2]
    with pytest.raises(DataError, match="several inputs"):
        read("pairs", TWO)


def test_lazy_objects_are_read_when_needed(read):
    samples = read("lazy")
    assert len(samples) == 10**9
    assert samples[123456].label == 1
    with pytest.raises(DataError, match=r"sample 7(.|\n)*disk on fire"):
        samples[7]


def test_digests_agree_across_forms(read):
    assert read("pairs").digest() == read("generator").digest()


def test_samples_that_vary_are_noticed_and_have_a_digest_all_the_same(read):
    """Odd samples draw; what has been drawn before does not change what identifies the data."""
    samples = read("noisy")
    assert samples.varies
    assert subset(samples, [1, 2]).varies
    assert not read("lazy").varies
    first, again = samples[1], samples[1]
    assert not np.array_equal(first.inputs["x"], again.inputs["x"])
    assert samples.digest() == samples.digest() == read("noisy").digest()


def test_iterators_stop_at_the_limit_or_at_the_memory(read, monkeypatch):
    assert len(read("endless", limit=7)) == 7
    monkeypatch.setattr(python_source, "MAX_HELD_BYTES", 100)
    with pytest.raises(DataError, match="more than is held"):
        read("endless")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "RuntimeError: no database"),
        ("absent", "absent"),
        ("nothing", "got: int"),
        ("empty", "no samples"),
        ("wide", r"float32\[3\] a sample"),
        ("fuzzy", "not an integer"),
        ("words", "no array of numbers"),
    ],
)
def test_failures_name_the_spec(read, function, message):
    with pytest.raises(DataError, match=message) as caught:
        read(function)
    assert f":{function}" in str(caught.value)


@pytest.mark.parametrize(
    ("function", "message"), [("late", "some have not"), ("high", "got: 3(.|\n)*0 to 2")]
)
def test_a_later_sample_that_does_not_fit(read, function, message):
    with pytest.raises(DataError, match=message) as caught:
        read(function)[1]
    assert "sample 1" in str(caught.value)


def test_code_runs_only_where_allowed(tmp_path):
    with pytest.raises(UsageError, match="--allow-python"):
        open_data("python:os:getcwd", inputs=ONE)


def test_a_missing_module():
    with pytest.raises(DataError, match="no_such_module_here"):
        open_data("python:no_such_module_here:f", inputs=ONE, allow_python=True)


@pytest.mark.parametrize(
    "spec", ["", "python:os", "python::f", "python:a-b:f", "torchvision:", "torchvision:X?root"]
)
def test_malformed_specs(spec):
    with pytest.raises(DataError, match="malformed"):
        open_data(spec, inputs=ONE, allow_python=True)


def test_limit_must_be_positive():
    with pytest.raises(UsageError, match="limit"):
        open_data("anything", inputs=ONE, limit=0)
