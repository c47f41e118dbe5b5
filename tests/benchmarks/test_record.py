import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from record import command_line  # noqa: E402


def test_files_of_this_machine_are_named_without_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a results file says is run elsewhere, and tells nobody where its author keeps things."""
    (tmp_path / "model.onnx").touch()
    monkeypatch.chdir(tmp_path)
    arguments = ["/somewhere/benchmarks/speed.py", "model.onnx", str(tmp_path / "other.onnx")]
    arguments += [f"--out={tmp_path / 'rows.json'}", str(ROOT / "examples"), "--steps", "10"]
    assert command_line(arguments) == (
        "python benchmarks/speed.py model.onnx other.onnx --out=rows.json examples --steps 10"
    )
