import contextlib
import io
import os
import pickle
import zipfile
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.calibration import arrays, npz, open_data, shuffled_order, split_holdout
from onnxprune.errors import DataError
from onnxprune.finetune import BatchSource
from onnxprune.model import ValueSpec

FLOAT = np.dtype(np.float32)
INPUTS = [ValueSpec("a", FLOAT, ("N", 3)), ValueSpec("b", np.dtype(np.int32), ("N", 2, None))]


def values(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal((count, 3)).astype(np.float32),
        "b": rng.integers(0, 9, (count, 2, 4)),
        "label": rng.integers(0, 5, count),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_become_samples(tmp_path, save):
    data = values()
    save(tmp_path / "d.npz", **data)
    samples = open_data(str(tmp_path / "d.npz"), inputs=INPUTS, num_classes=5)
    assert len(samples) == 6
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.inputs["a"], data["a"][index])
        np.testing.assert_array_equal(sample.inputs["b"], data["b"][index])
        assert sample.inputs["b"].dtype == np.int32
        assert sample.label == data["label"][index]
        sample.inputs["a"][:] = 0  # a sample is the caller's own


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_shards_join_in_order_and_keep_the_digest(tmp_path, save):
    data = values(10)
    np.savez(tmp_path / "whole.npz", **data)
    (tmp_path / "shards").mkdir()
    for index, (start, stop) in enumerate([(0, 4), (4, 4), (4, 10)]):
        part = {name: array[start:stop] for name, array in data.items()}
        save(tmp_path / "shards" / f"{index}.npz", **part)
    whole = open_data(str(tmp_path / "whole.npz"), inputs=INPUTS)
    shards = open_data(str(tmp_path / "shards"), inputs=INPUTS)
    assert [s.label for s in shards] == data["label"].tolist()
    np.testing.assert_array_equal(shards[4].inputs["a"], data["a"][4])
    assert shards.digest() == whole.digest()


def test_compressed_shards_stay_within_the_cache(tmp_path, monkeypatch):
    for index in range(4):
        np.savez_compressed(tmp_path / f"{index}.npz", **values(5, index))
    monkeypatch.setattr(arrays, "CACHE_BYTES", 800)
    opened = []
    monkeypatch.setattr(
        arrays, "open_array", lambda p, m: opened.append(p.name) or npz.open_array(p, m)
    )
    samples = open_data(str(tmp_path), inputs=INPUTS)
    opened.clear()
    assert samples.locality.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    for index in shuffled_order(samples, np.random.default_rng(0)):
        sample = samples[int(index)]
        expected = values(5, int(index) // 5)["a"][int(index) % 5]
        np.testing.assert_array_equal(sample.inputs["a"], expected)
        held = sum(array.nbytes for array in samples._cache.values())
        assert held <= 800
    assert len(opened) == 8


def test_uncompressed_shards_are_mapped(tmp_path):
    np.savez(tmp_path / "d.npz", **values())
    samples = open_data(str(tmp_path / "d.npz"), inputs=INPUTS)
    samples[0]
    assert all(isinstance(array, np.memmap) for array in samples._cache.values())
    assert samples.locality is None
    copy = pickle.loads(pickle.dumps(samples))
    assert not copy._cache
    np.testing.assert_array_equal(copy[3].inputs["a"], samples[3].inputs["a"])


def test_fortran_order_and_casts(tmp_path):
    array = np.asfortranarray(values()["a"].astype(np.float64))
    np.savez(tmp_path / "d.npz", a=array)
    samples = open_data(str(tmp_path / "d.npz"), inputs=INPUTS[:1])
    assert samples[2].inputs["a"].dtype == np.float32
    np.testing.assert_allclose(samples[2].inputs["a"], array[2], rtol=1e-6)
    assert not samples.labelled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, "nothing for 'b'"),
        ({"c": np.zeros(6)}, "'c'"),
        ({"a": np.zeros((6, 4), np.float32)}, r"float32\[4\] a sample(.|\n)*float32\[3\] a sample"),
        ({"a": np.zeros((6, 3, 1), np.float32)}, r"float32\[3, 1\]"),
        ({"a": np.float32(1)}, "a scalar"),
        ({"b": np.zeros((6, 2, 4))}, "element type(.|\n)*float64(.|\n)*int32"),
        ({"a": np.zeros((5, 3), np.float32)}, "'a': 5, 'b': 6"),
        ({"label": np.zeros(6)}, "not integers"),
        ({"label": np.eye(6, dtype=int)}, "one label a sample"),
        ({"label": np.array([0, 1, 2, 5, 0, 9])}, "sample 3(.|\n)*got: 5(.|\n)*0 to 4"),
        ({"label": np.array([0, -1, 2, 5, 0, 9])}, "sample 1(.|\n)*got: -1"),
        ({"a": np.array([["x"] * 3] * 6)}, "no plain numbers"),
    ],
)
def test_data_that_do_not_fit(tmp_path, change, message):
    data = {name: array for name, array in (values() | change).items() if array is not None}
    np.savez(tmp_path / "d.npz", **data)
    with pytest.raises(DataError, match=message) as caught:
        open_data(str(tmp_path / "d.npz"), inputs=INPUTS, num_classes=5)
    assert "d.npz" in str(caught.value)


def test_values_out_of_range_of_the_input(tmp_path):
    data = values()
    data["b"][4, 1, 1] = 2**40
    np.savez(tmp_path / "d.npz", **data)
    samples = open_data(str(tmp_path / "d.npz"), inputs=INPUTS)
    samples[3]
    with pytest.raises(DataError, match=f"sample 4(.|\n)*{2**40}"):
        samples[4]


def test_half_precision_overflow(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.full((1, 3), 1e6, np.float32))
    half = [ValueSpec("a", np.dtype(np.float16), ("N", 3))]
    with pytest.raises(DataError, match="out of the range of float16"):
        open_data(str(tmp_path / "d.npz"), inputs=half)[0]


def test_no_rows(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.zeros((0, 3), np.float32))
    with pytest.raises(DataError, match="no samples"):
        open_data(str(tmp_path / "d.npz"), inputs=INPUTS[:1])


def test_labels_in_some_shards_only(tmp_path):
    data = values()
    np.savez(tmp_path / "0.npz", **data)
    del data["label"]
    np.savez(tmp_path / "1.npz", **data)
    with pytest.raises(DataError, match=r"1\.npz"):
        open_data(str(tmp_path), inputs=INPUTS)


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.array([{}, []], dtype=object))
    with pytest.raises(DataError, match="pickled"):
        open_data(str(tmp_path / "d.npz"), inputs=INPUTS[:1])


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "content",
    [
        header((10**12, 3)),
        header((2, 3)) + bytes(23),
        header((2, 3)) + bytes(25),
        header((2, 3))[:20],
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'}\n",
        b"garbage",
        header((-2, -3)) + bytes(24),
    ],
)
def test_lying_headers_do_not_allocate(tmp_path, content, compression):
    with zipfile.ZipFile(tmp_path / "d.npz", "w", compression) as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(DataError, match="damaged"):
        open_data(str(tmp_path / "d.npz"), inputs=INPUTS[:1])


def test_compressed_arrays_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_COMPRESSED_ARRAY_BYTES", 100)
    np.savez_compressed(tmp_path / "c.npz", a=np.zeros((9, 3), np.float32))
    with pytest.raises(DataError, match="too large"):
        open_data(str(tmp_path / "c.npz"), inputs=INPUTS[:1])
    np.savez(tmp_path / "s.npz", a=np.zeros((9, 3), np.float32))
    assert len(open_data(str(tmp_path / "s.npz"), inputs=INPUTS[:1])) == 9


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_and_damaged_files(tmp_path, save):
    rng = np.random.default_rng(0)
    save(tmp_path / "d.npz", a=rng.standard_normal((200, 3)).astype(np.float32))
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        open_data(str(tmp_path / "t.npz"), inputs=INPUTS[:1])
    if save is np.savez_compressed:
        broken = bytearray(whole)
        broken[1000:1100] = bytes(100)
        (tmp_path / "b.npz").write_bytes(broken)
        with pytest.raises(DataError, match="damaged"):
            open_data(str(tmp_path / "b.npz"), inputs=INPUTS[:1])[0]


@settings(max_examples=200, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_byte_never_ends_in_another_error(tmp_path_factory, save, position, byte):
    stream = io.BytesIO()
    save(stream, a=values(2)["a"], label=np.array([0, 1]))
    content = bytearray(stream.getvalue())
    content[int(position * len(content))] = byte
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        for sample in open_data(str(path), inputs=INPUTS[:1]):
            assert sample.inputs["a"].shape == (3,)


def test_other_files(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        open_data(str(tmp_path / "d.npz"), inputs=INPUTS)
    (tmp_path / "d.csv").write_text("1,2")
    with pytest.raises(DataError, match="not known"):
        open_data(str(tmp_path / "d.csv"), inputs=INPUTS)


def test_an_input_called_label(tmp_path):
    np.savez(tmp_path / "d.npz", label=np.zeros((2, 3), np.float32))
    samples = open_data(str(tmp_path / "d.npz"), inputs=[ValueSpec("label", FLOAT, ("N", 3))])
    assert not samples.labelled
    assert samples[0].inputs["label"].shape == (3,)


def test_rows_are_cut_to_their_lengths(tmp_path):
    ids = np.arange(12).reshape(3, 4)
    np.savez(tmp_path / "a.npz", **{"ids": ids, "ids.lengths": [2, 4, 1]})
    specs = [ValueSpec("ids", np.dtype(np.int64), ("N", "L"))]
    samples = open_data(str(tmp_path / "a.npz"), inputs=specs)
    assert [sample.inputs["ids"].tolist() for sample in samples] == [[0, 1], [4, 5, 6, 7], [8]]
    np.savez(tmp_path / "b.npz", **{"ids": ids + (ids > 8) * 5, "ids.lengths": [2, 4, 1]})
    filled = open_data(str(tmp_path / "b.npz"), inputs=specs)
    assert filled.digest() == samples.digest(), "what only fills rows up is no content"


@pytest.mark.parametrize("lengths", [[2, 5, 1], [0, 1, 1], [1, 1], [1.0, 1.0, 1.0]])
def test_lengths_that_are_none(tmp_path, lengths):
    np.savez(tmp_path / "a.npz", **{"ids": np.zeros((3, 4), np.int64), "ids.lengths": lengths})
    with pytest.raises(DataError, match="no lengths"):
        open_data(
            str(tmp_path / "a.npz"), inputs=[ValueSpec("ids", np.dtype(np.int64), ("N", "L"))]
        )


def test_targets_of_any_shape(tmp_path):
    x = np.zeros((4, 2), np.float32)
    targets = np.arange(12.0).reshape(4, 3)
    np.savez(tmp_path / "a.npz", x=x, label=targets)
    specs = [ValueSpec("x", np.dtype(np.float32), ("N", 2))]
    with pytest.raises(DataError, match="not integers"):
        open_data(str(tmp_path / "a.npz"), inputs=specs)
    samples = open_data(str(tmp_path / "a.npz"), inputs=specs, targets="array")
    assert samples.labelled
    np.testing.assert_array_equal(samples[2].label, [6, 7, 8])
    np.savez(tmp_path / "b.npz", x=x, label=targets + 1)
    other = open_data(str(tmp_path / "b.npz"), inputs=specs, targets="array")
    assert other.digest() != samples.digest()
    train, held_out = split_holdout(samples, 0.5, 0)
    assert sorted([*train.indices, *held_out.indices]) == [0, 1, 2, 3]


def test_either_takes_classes_and_positions(tmp_path):
    specs = [ValueSpec("x", np.dtype(np.float32), ("N", 2))]
    for name, label, expected in (("c", [1, 0], 1), ("p", [[1, 0, 2], [2, 2, -1]], [1, 0, 2])):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((2, 2), np.float32), label=label)
        samples = open_data(str(tmp_path / f"{name}.npz"), inputs=specs, targets="either")
        np.testing.assert_array_equal(samples[0].label, expected)
        assert isinstance(samples[0].label, int) == (name == "c")


class Weighed:
    """Samples that note, in a file, the memory of the process that reads them."""

    def __init__(self, samples, notes):
        self.samples = samples
        self.notes = notes
        self.has_begun = False

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if not self.has_begun:
            self.note()
        self.has_begun = True
        sample = self.samples[index]
        self.note()
        return sample

    def note(self):
        """Memory of its own, without pages of mapped files and shared batches."""
        lines = Path("/proc/self/status").read_text().splitlines()
        (anonymous,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
        with self.notes.open("a") as stream:
            stream.write(f"{os.getpid()} {anonymous}\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_shards_larger_than_the_cache_in_several_processes(tmp_path, monkeypatch, save, workers):
    """64 MiB of data and a cache of 10 MiB: no process holds much more, and all is read once."""
    (tmp_path / "data").mkdir()
    for shard in range(8):
        rows = np.random.default_rng(shard).integers(0, 9, (32, 2**8)).astype(np.float32)
        rows = np.tile(rows, 2**8)  # which is soon compressed
        rows[:, 0] = shard * 32 + np.arange(32)
        save(tmp_path / "data" / f"{shard}.npz", a=rows)
    monkeypatch.setattr(arrays, "CACHE_BYTES", 10 * 2**20)
    samples = open_data(str(tmp_path / "data"), inputs=[ValueSpec("a", FLOAT, ("N", 2**16))])
    weighed = Weighed(samples, tmp_path / "notes")
    order = partial(shuffled_order, samples)
    source = BatchSource(weighed, 16, seed=1, workers=workers, order=order)
    batches = list(islice(source.shuffled(0), source.steps_per_epoch))
    indices = [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(256))
    assert [int(row) for batch in batches for row in batch.inputs["a"][:, 0]] == indices
    held: dict[str, list[int]] = {}
    for line in (tmp_path / "notes").read_text().splitlines():
        process, kib = line.split()
        held.setdefault(process, []).append(int(kib))
    assert len(held) == max(workers, 1)
    if workers:
        growth = max((max(notes) - notes[0]) / 1024 for notes in held.values())
        assert growth < 24, "a cache of 10 MiB, a batch of 4 MiB, and one shard being unpacked"
