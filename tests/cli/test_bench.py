from pathlib import Path

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
    speedup = copy["speedup"]
    assert 0 < speedup["low"] <= speedup["ratio"] <= speedup["high"]


def test_text(command: Command, classifier: Path) -> None:
    text = command("bench", classifier, *QUICK).expect(0).out
    assert "median" in text
    assert " ms" in text


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
