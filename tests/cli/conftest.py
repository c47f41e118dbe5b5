"""The command line, called in this process and as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onnxprune.cli import run


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON, which must be all that is there."""
        return json.loads(self.out)

    def expect(self, code: int) -> "Outcome":
        """This outcome, which must have this exit code and show no traceback."""
        assert self.code == code, f"exit code {self.code}\n{self.err}"
        assert "Traceback" not in self.err
        assert "Traceback" not in self.out
        return self


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `onnxprune` in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """Run `onnxprune` as a process, with warnings as errors."""

    def call(*arguments: object, **environment: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "160"} | environment,
            timeout=120,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """Variables of an environment in which training's packages cannot be imported."""
    folder = tmp_path / "no-torch"
    for name in ("torch", "torchvision", "accelerate", "safetensors"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('no {name} here')\n")
    beside = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    return {"PYTHONPATH": os.pathsep.join([str(folder), *beside])}


@pytest.fixture
def quick() -> list[str]:
    """Options of `prune` that make it a matter of a second."""
    settings = {
        "finetune.epochs": 1,
        "finetune.evaluations": 1,
        "finetune.device": "cpu",
        "finetune.threads": 1,
        "validate.latency": "false",
        "validate.threads": 1,
    }
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
