import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from onnxprune.validate import BenchResult, bench, inspect_model
from onnxprune.validate.session import TENSORRT

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

from check import main  # noqa: E402
from rows import CHECKS  # noqa: E402
from wheels import install_missing  # noqa: E402

ITEMS = [item for check in CHECKS for item in check.items]


def run_check(
    out: Path, *options: str, code: int = 0, **variables: str
) -> tuple[dict[str, Any], str]:
    command = [sys.executable, str(FOLDER / "check.py"), "--out", str(out), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_without_a_gpu_everything_is_skipped_and_that_is_said(tmp_path: Path) -> None:
    record, output = run_check(tmp_path / "out.json")

    assert [row["check"] for row in record["checks"]] == ITEMS
    assert {row["status"] for row in record["checks"]} == {"skipped"}
    assert {row["message"] for row in record["checks"]} == {record["gpu"]["missing"]}
    assert "no GPU" in output
    assert f"0 pass, 0 fail, {len(ITEMS)} skipped" in output
    assert record["versions"]["torch"]
    assert record["passed"] is True


@pytest.fixture
def settings_of_torch() -> Iterator[None]:
    """Puts back what a check sets in its process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("settings_of_torch")
def test_the_code_of_the_checks_runs_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process of each check does, in this one; the next test has them started."""
    chosen = ("vit_tiny fp32", "upkeep mobilenet_v3_large", "event 1e8", "evaluate")
    out = tmp_path / "rows.jsonl"
    options = ["--device", "cpu", "--tiny", "--out", str(out), "--only", *chosen]
    modules = ("parity_check", "upkeep_check", "event_check", "runtime_check")
    for module in modules:
        monkeypatch.setattr(sys, "argv", ["check.py", "--child", module, *options])
        assert main() == 0

    rows = {row["check"]: row for row in map(json.loads, out.read_text().splitlines())}
    parity = rows["parity vit_tiny fp32"]
    assert parity["status"] == "pass"
    assert parity["measured"]["output"] <= 1e-4
    assert len(parity["details"]["losses"]) == 5
    upkeep = rows["upkeep mobilenet_v3_large"]["details"]
    assert 0 < upkeep["masks_s"] < upkeep["step_s"]
    assert 0 < upkeep["logging_s"] < upkeep["step_s"]
    event = rows["event 1e8 weights"]
    assert event["status"] == "skipped"
    assert event["details"]["weights"] == 100_000
    assert event["measured"]["median_ms"] > 0
    assert rows["evaluate on CUDA"]["measured"] == {"agreement": 1.0, "max_abs_error": 0.0}
    assert len(rows) == 4


def tensorrt_row(out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the process of the check says of TensorRT on a machine without it."""
    options = ["--device", "cpu", "--tiny", "--out", str(out), "--only", "TensorRT"]
    monkeypatch.setattr(sys, "argv", ["check.py", "--child", "runtime_check", *options])
    assert main() == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    return dict(row)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine may have TensorRT")
def test_without_tensorrt_its_check_is_skipped_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a build of ONNX Runtime that lists the provider, whose libraries are not here."""
    row = tensorrt_row(tmp_path / "rows.jsonl", monkeypatch)
    assert row["check"] == "bench on TensorRT with fp16 and 2:4"
    assert (row["status"], row["measured"]) == ("skipped", {})
    assert "TensorrtExecutionProvider" in row["message"]
    monkeypatch.setattr("runtime_check.available_providers", lambda: ["CPUExecutionProvider"])
    row = tensorrt_row(tmp_path / "others.jsonl", monkeypatch)
    assert row["status"] == "skipped"
    assert row["message"] == "this build of ONNX Runtime has no TensorrtExecutionProvider"


def test_with_tensorrt_a_dense_model_is_timed_beside_one_with_2_4_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor stands in for the provider; what is asked of `bench` is that of a GPU."""
    asked = []

    def bench_here(models: list[Path], **settings: Any) -> BenchResult:
        settings["max_seconds"], settings["rounds"] = 1.0, 5
        asked.append(settings.pop("provider_options"))
        assert settings.pop("provider") == "tensorrt"
        result = bench(models, **settings)
        zeros = [inspect_model(model).tensors for model in models]
        asked.append([max(t.sparsity for t in side if t.op_type == "Conv") for side in zeros])
        return replace(result, environment=result.environment | {"provider": TENSORRT})

    monkeypatch.setattr("runtime_check.available_providers", lambda: [TENSORRT])
    monkeypatch.setattr("runtime_check.open_session", lambda model, provider: None)
    monkeypatch.setattr("runtime_check.bench", bench_here)
    row = tensorrt_row(tmp_path / "rows.jsonl", monkeypatch)
    assert row["status"] == "pass", row["message"]
    assert asked[0] == {"trt_fp16_enable": "1", "trt_sparsity_enable": "1"}
    assert asked[1] == [0.0, 0.5]
    assert row["measured"]["low"] <= row["measured"]["ratio"] <= row["measured"]["high"]


def test_a_check_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "onnxruntime.py").write_text("raise ImportError('broken on purpose')\n")

    record, output = run_check(
        *(tmp_path / "out.json", "--device", "cpu", "--tiny", "--only", "event 1e8", "evaluate"),
        code=1,
        PYTHONPATH=str(broken),
    )

    rows = {row["check"]: row for row in record["checks"]}
    assert rows["evaluate on CUDA"]["status"] == "fail"
    assert "onnxruntime" in rows["evaluate on CUDA"]["message"]
    assert rows["event 1e8 weights"]["measured"]["median_ms"] > 0
    assert record["passed"] is False
    assert "0 pass, 1 fail, 1 skipped" in output


def test_after_the_time_is_up_the_rest_is_skipped(tmp_path: Path) -> None:
    record, _ = run_check(tmp_path / "out.json", "--device", "cpu", "--tiny", "--seconds", "1")

    assert [row["check"] for row in record["checks"]] == ITEMS
    assert {row["status"] for row in record["checks"]} == {"skipped"}
    assert {row["message"] for row in record["checks"]} == {
        "the 1 seconds for all checks are used up"
    }


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "check.py"), "--wheels", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "holds no wheels" in done.stderr


@pytest.mark.skipif(find_spec("pip") is None, reason="pip is not installed")
def test_only_packages_that_are_not_here_are_installed(tmp_path: Path) -> None:
    wheels = [write_wheel(tmp_path, name) for name in ("onnxprune_absent", "NumPy")]

    installed = install_missing(tmp_path, tmp_path / "site")

    assert installed == [wheels[0].name]
    assert (tmp_path / "site" / "onnxprune_absent.py").read_text() == "here = True\n"
    assert not (tmp_path / "site" / "NumPy.py").exists()


def write_wheel(folder: Path, name: str) -> Path:
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "here = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path
