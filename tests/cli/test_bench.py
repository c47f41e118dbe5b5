import os
from pathlib import Path

import onnx
import onnx.parser
import pytest

from .conftest import Command

QUICK = ("--rounds", 5, "--seconds", 1, "--threads", 1)


def test_json(command: Command, classifier: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy.onnx"
    other.write_bytes(classifier.read_bytes())
    outcome = command("bench", classifier, other, *QUICK, "--json").expect(0)
    result = outcome.json
    assert outcome.err == ""
    assert isinstance(result["conclusive"], bool)
    assert result["environment"]["cores"] >= 1
    baseline, copy = result["models"]
    assert (baseline["path"], copy["path"]) == (str(classifier), str(other))
    assert baseline["speedup"]["ratio"] == 1
    for model in result["models"]:
        assert 0 < model["latency_ms"]["median"] <= model["latency_ms"]["p90"]
        assert model["latency_ms"]["p90"] <= model["latency_ms"]["p99"]
        assert model["load_ms"] > 0
        assert model["throughput_per_s"] > 0
        assert model["size_bytes"] == classifier.stat().st_size
        assert model["operators"] is None
        assert model["cost"] is None
        for quantiles in (model["quantiles_ms"], model["ratio_quantiles"]):
            assert len(quantiles) == 101
            assert quantiles == sorted(quantiles)
        assert model["quantiles_ms"][50] == pytest.approx(model["latency_ms"]["median"], rel=1e-4)
    speedup = copy["speedup"]
    assert 0 < speedup["low"] <= speedup["ratio"] <= speedup["high"]
    assert copy["verdict"] in ("same", "faster", "slower", "unclear")


def test_text(command: Command, classifier: Path) -> None:
    text = command("bench", classifier, *QUICK).expect(0).out
    assert "median" in text
    assert " ms" in text
    assert "5 rounds in 5 openings" in text
    assert "one model, nothing to compare" in text


def test_several_batch_sizes(command: Command, classifier: Path, tmp_path: Path) -> None:
    """Each has its own result, and what is at the top is the first."""
    arguments = ("bench", classifier, classifier, *QUICK, "--batch", "3,1", "--batch", 4)
    result = command(*arguments, "--json").expect(0).json
    assert [one["batch"] for one in result["batches"]] == [3, 1, 4]
    sizes = [next(iter(one["environment"]["inputs"].values())) for one in result["batches"]]
    assert [shape[0] for shape in sizes] == [3, 1, 4]
    first = dict(result["batches"][0])
    del first["batch"], result["batches"]
    assert result == first
    with_shape = command(*arguments, "--shape", "x=9,3,8,8", "--json").expect(0).json
    shapes = [one["environment"]["inputs"]["x"] for one in with_shape["batches"]]
    assert shapes == [[3, 3, 8, 8], [1, 3, 8, 8], [4, 3, 8, 8]]
    text = command(*arguments).expect(0).out
    assert [f"batch size {size}" in text for size in (3, 1, 4)] == [True] * 3
    alone = command("bench", classifier, *QUICK, "--batch", 2, "--json").expect(0).json
    assert "batches" not in alone
    assert alone["environment"]["inputs"]["x"][0] == 2


def test_the_page_is_that_of_the_json(command: Command, classifier: Path, tmp_path: Path) -> None:
    page, other, result = (tmp_path / name for name in ("a.html", "b.html", "bench.json"))
    arguments = ("bench", classifier, classifier, *QUICK, "--batch", "1,2", "--json", "--html")
    result.write_text(command(*arguments, page).expect(0).out, encoding="utf-8")
    command("report", result, "-o", other).expect(0)
    assert page.read_bytes() == other.read_bytes()
    nowhere = command(*arguments, other / "a.html").expect(2)
    assert not nowhere.out


def test_several_batch_sizes_need_an_open_axis(command: Command, tmp_path: Path) -> None:
    """A model of batch size 8 would be measured twice at 8, and called 1 once."""
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[8, 4] x) => (float[8, 4] y)'
    model = tmp_path / "fixed.onnx"
    onnx.save(onnx.parser.parse_model(text + " { y = Relu(x) }"), model)
    outcome = command("bench", model, *QUICK, "--batch", "1,8").expect(2)
    assert "fixed batch size" in outcome.err


@pytest.mark.parametrize("text", ["0", "1,", "a", "-1", "1-4", "1.5"])
def test_bad_batch_sizes(command: Command, classifier: Path, text: str) -> None:
    outcome = command("bench", classifier, f"--batch={text}").expect(2)
    assert "such as 8 or 1,8" in outcome.err


def test_precision_and_time_end_it(command: Command, classifier: Path) -> None:
    arguments = ("bench", classifier, "--threads", 1, "--json")
    wide = command(*arguments, "--precision", "90%", "--seconds", 15).expect(0).json
    assert wide["environment"]["openings"] == 10
    assert wide["environment"]["precision"] == 0.9
    # A precision that no machine reaches: the time ends it
    fine = command(*arguments, "--precision", "0.000001", "--seconds", 0.5).expect(0).json
    assert fine["environment"]["openings"] >= 5


@pytest.mark.parametrize("text", ["2", "0", "-1%", "100%", "two", "%", "nan", "2%%"])
def test_bad_precision(command: Command, classifier: Path, text: str) -> None:
    outcome = command("bench", classifier, f"--precision={text}").expect(2)
    assert "such as 2% or 0.02" in outcome.err


@pytest.mark.parametrize("text", ["a", "", "1-", "3-2", "-1", "0,,1", "0-99999"])
def test_bad_cores(command: Command, classifier: Path, text: str) -> None:
    outcome = command("bench", classifier, f"--pin={text}").expect(2)
    assert "such as 0 or 0,2-3" in outcome.err


def test_settings(command: Command, classifier: Path) -> None:
    core = min(os.sched_getaffinity(0))
    options = (
        "--pin",
        f"{core}-{core}",
        "--optimization",
        "none",
        "--batch",
        3,
        "--processes",
        "--no-spinning",
    )
    outcome = command("bench", classifier, "--rounds", 5, *options, "--json").expect(0)
    environment = outcome.json["environment"]
    assert environment["pinned_cores"] == [core]
    assert environment["threads"] == 1
    assert environment["graph_optimization"] == "none"
    assert environment["processes"] is True
    assert environment["spinning"] == "off"
    assert environment["inputs"] == {"x": [3, 3, 8, 8]}
    assert "4000, 4001" in command("bench", classifier, "--pin", "4000,4001").expect(2).err


def test_operators(command: Command, classifier: Path) -> None:
    outcome = command("bench", classifier, *QUICK, "--profile", "--json").expect(0)
    operators = outcome.json["models"][0]["operators"]
    assert sum(entry["share"] for entry in operators) == pytest.approx(1)
    assert "Gemm" in {entry["op_type"] for entry in operators}
    assert "Gemm" in command("bench", classifier, *QUICK, "--profile").expect(0).out


def test_provider_options(command: Command, classifier: Path) -> None:
    for text in ("x", "=1"):
        outcome = command("bench", classifier, "--provider-option", text).expect(2)
        assert "KEY=VALUE" in outcome.err
    assert "only CUDA" in command("bench", classifier, "--device-io").expect(2).err


def test_without_torch(process: Command, classifier: Path, without_torch: dict[str, str]) -> None:
    options = (*QUICK, "--processes", "--profile", "--json")
    outcome = process("bench", classifier, classifier, *options, **without_torch).expect(0)
    assert outcome.json["models"][1]["peak_memory_bytes"] > 0


def test_shapes(command: Command, classifier: Path) -> None:
    shape = ("--shape", "x=3,3,8,8")
    command("bench", classifier, *QUICK, *shape, "--json").expect(0)
    for text in ("x", "x=", "x=1,a", "x=0,3,8,8", "=1,2"):
        assert (
            "--shape x=1,3,224,224" in command("bench", classifier, "--shape", text).expect(2).err
        )
    assert "fit" in command("bench", classifier, "--shape", "x=1,3,9,8").expect(2).err


def test_bad_input(command: Command, classifier: Path, tmp_path: Path) -> None:
    command("bench", tmp_path / "no.onnx").expect(3)
    outcome = command("bench", classifier, "--provider", "QuantumExecutionProvider").expect(2)
    assert outcome.out == ""
