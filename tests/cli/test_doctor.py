from importlib import metadata
from typing import Any

import onnxruntime
import pytest

from onnxprune.cli import doctor

from .conftest import Command


def test_json(command: Command) -> None:
    facts = command("doctor", "--json").expect(0).json
    assert facts["packages"]["onnx"] == metadata.version("onnx")
    assert facts["packages"]["torch"] == metadata.version("torch")
    assert facts["providers"] == onnxruntime.get_available_providers()
    assert facts["device"].startswith(("cpu", "cuda"))
    assert isinstance(facts["problems"], list)


def test_text(command: Command) -> None:
    text = command("doctor").expect(0).out
    for word in ("onnxruntime", "CPUExecutionProvider", "Python"):
        assert word in text


def examine_with(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> dict[str, Any]:
    changed = {name.replace("_", "-"): version for name, version in versions.items()}
    original = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: changed.get(name, original(name)))
    return doctor.examine()


def test_what_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: None if name == "safetensors" else original(name)
    )
    problems = doctor.examine()["problems"]
    assert any("safetensors is missing" in p and "onnxprune[train]" in p for p in problems)


def test_two_runtimes_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = examine_with(monkeypatch, onnxruntime="1.20", onnxruntime_gpu="1.20")
    assert any("uninstall both" in problem for problem in facts["problems"])


def test_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if "runtime" in name else "1")
    problems = doctor.examine()["problems"]
    assert any("ONNX Runtime is missing" in p and "onnxprune[cpu]" in p for p in problems)


def test_a_torch_that_does_not_load(process: Command, without_torch: dict[str, str]) -> None:
    facts = process("doctor", "--json", **without_torch).expect(0).json
    assert facts["device"] is None
    assert any("torch does not load" in problem for problem in facts["problems"])
