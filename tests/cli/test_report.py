from pathlib import Path

from .conftest import Command


def test_of_a_run(
    command: Command, classifier: Path, training_data: Path, quick: list[str], tmp_path: Path
) -> None:
    output, page = tmp_path / "pruned.onnx", tmp_path / "page.html"
    command("prune", classifier, "-o", output, "--data", training_data, *quick).expect(0)
    facts = command("report", tmp_path / "pruned.run", "-o", page, "--json").expect(0).json
    assert facts["output"] == str(page)
    assert facts["size_bytes"] == page.stat().st_size
    assert "conv.weight" in page.read_text(encoding="utf-8")
    outcome = command("report", tmp_path / "pruned.run", "-o", page).expect(0)
    assert str(page) in outcome.err


def test_bad_input(command: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = command("report", tmp_path / "none", "-o", page)
    assert outcome.expect(2).out == ""
    (tmp_path / "empty").mkdir()
    command("report", tmp_path / "empty", "-o", page).expect(2)
    command("report", tmp_path / "empty", "-o", tmp_path / "missing" / "page.html").expect(2)
    assert not page.exists()
    assert not list(tmp_path.glob(".*.tmp"))
