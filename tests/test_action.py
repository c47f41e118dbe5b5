"""The GitHub Action and the pre-commit hook, run as their runners would."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from junitparser import JUnitXml

from onnxprune.cli import run as run_command
from onnxprune.cli.check import command as check_command
from onnxprune.validate.paired import drop_upper_bound
from onnxprune.validate.policy import Policy

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


class Runner:
    """Does what GitHub's runner does with a composite action, for steps that are scripts.

    The environment that the action makes is this one: `python -m venv` and `pip install` are only
    recorded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.summary = folder / "summary.md"
        self.outputs: dict[str, str] = {}
        self.stdout = ""
        shim = folder / "bin" / "python"
        shim.parent.mkdir()
        environment = folder / "temp" / "onnxprune" / "bin"
        environment.mkdir(parents=True)
        shim.write_text(
            f'#!/bin/sh\necho "$@" >> {self.calls}\n'
            f'case "$2" in venv|pip) exit 0;; esac\nexec {sys.executable} "$@"\n'
        )
        shim.chmod(0o755)
        shutil.copy(shim, environment)

    def run(self, **inputs: str) -> int:
        """Run all steps up to the first that fails; returns its exit code, or 0."""
        values = {
            name: inputs.get(name.replace("-", "_"), entry.get("default", ""))
            for name, entry in ACTION["inputs"].items()
        }
        missing = [n for n, e in ACTION["inputs"].items() if e.get("required") and not values[n]]
        assert not missing
        for step in ACTION["runs"]["steps"]:
            if "run" not in step:
                continue
            assert step["shell"] == "bash"
            code = self._step(step, values)
            if code:
                return code
        return 0

    def _step(self, step: dict[str, Any], values: dict[str, str]) -> int:
        script = self.folder / "step.sh"
        script.write_text(self._substituted(step["run"], values))
        written = self.folder / "outputs"
        written.write_text("")
        environment = {k: self._substituted(v, values) for k, v in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ
            | {
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTION_PATH": str(ROOT),
                "GITHUB_OUTPUT": str(written),
                "GITHUB_STEP_SUMMARY": str(self.summary),
                "RUNNER_TEMP": str(self.folder / "temp"),
            }
            | environment,
        )
        self.stdout += done.stdout
        assert "Traceback" not in done.stderr
        for line in written.read_text().splitlines():
            name, _, value = line.partition("=")
            self.outputs[f"steps.{step['id']}.outputs.{name}"] = value
        return done.returncode

    def _substituted(self, text: str, values: dict[str, str]) -> str:
        known = {f"inputs.{name}": value for name, value in values.items()} | self.outputs
        return re.sub(r"\$\{\{ (\S+) \}\}", lambda match: known[match[1]], text)


@pytest.fixture
def runner(tmp_path: Path, classifier: Path) -> Runner:
    (tmp_path / "runner").mkdir()
    shutil.copy(classifier, tmp_path / "runner" / "model.onnx")
    return Runner(tmp_path / "runner")


def test_it_passes_and_fails_with_the_gate(runner: Runner) -> None:
    (runner.folder / "policy.toml").write_text("[size]\nmax_bytes = 1_000_000\n")
    assert runner.run(model="model.onnx", policy="policy.toml") == 0
    assert "### onnxprune check: model.onnx passed" in runner.summary.read_text(encoding="utf-8")
    assert "::notice file=policy.toml" in runner.stdout
    (runner.folder / "policy.toml").write_text("[size]\nmax_bytes = 10\nmax_ratio = 1.0\n")
    code = runner.run(
        model="model.onnx", policy="policy.toml", baseline="model.onnx", junit="here.xml"
    )
    assert code == 1
    (suite,) = list(JUnitXml.fromfile(str(runner.folder / "here.xml")))
    assert (suite.tests, suite.failures) == (2, 1)
    assert "model.onnx did not pass" in runner.summary.read_text(encoding="utf-8")
    assert "::error file=policy.toml,title=onnxprune check%3A size.max_bytes::" in runner.stdout
    assert "-m pip install" in runner.calls.read_text()
    assert f"{ROOT}[cpu]" in runner.calls.read_text()


def test_extras_can_be_added(runner: Runner) -> None:
    """A policy with average precision needs a package that others do not."""
    runner.run(model="pruned.onnx", policy="policy.toml", extras="cpu,detection")
    assert f"{ROOT}[cpu,detection]" in runner.calls.read_text()


def test_a_damaged_model_still_has_a_summary_and_a_report(runner: Runner) -> None:
    (runner.folder / "model.onnx").write_bytes(b"damaged")
    (runner.folder / "policy.toml").write_text("[size]\nmax_bytes = 10\n")
    assert runner.run(model="model.onnx", policy="policy.toml") == 3
    assert "this is not an ONNX file" in runner.summary.read_text(encoding="utf-8")
    (suite,) = list(JUnitXml.fromfile(str(runner.folder / "onnxprune-check.xml")))
    assert suite.errors == 2


def test_inputs_are_no_commands(runner: Runner) -> None:
    (runner.folder / "policy.toml").write_text("[size]\nmax_bytes = 10\n")
    name = "a\" $(touch pwned) `touch pwned` ; touch pwned # '.onnx"
    assert runner.run(model=name, policy="policy.toml") == 3
    assert not (runner.folder / "pwned").exists()
    assert all("${{" not in step.get("run", "") for step in ACTION["runs"]["steps"])


def test_every_input_is_used_and_explained() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name, entry in ACTION["inputs"].items():
        assert entry["description"].endswith(".") or ";" in entry["description"]
        assert f"inputs.{name} " in text


def test_the_hook_runs_the_gate(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    program, *arguments = hook["entry"].split()
    assert (program, hook["pass_filenames"]) == ("onnxprune", False)
    assert any(name.startswith("onnxruntime") for name in hook["additional_dependencies"])
    for name, matched in (("m/pruned.onnx", True), ("policy.toml", True), ("a.py", False)):
        assert bool(re.search(hook["files"], name)) == matched
    policy = tmp_path / "policy.toml"
    policy.write_text("[size]\nmax_bytes = 10\n")
    assert run_command([*arguments, str(classifier), "--policy", str(policy)]) == 1
    assert "size.max_bytes" in capsys.readouterr().out


def how_to_blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "how-to" / "gate-artifacts.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.S)


def test_the_how_to_calls_what_is_there() -> None:
    """Inputs of the action, ids of hooks, options of the command, keys of the policy."""
    blocks = [yaml.safe_load(block) for block in how_to_blocks("yaml")]
    (step,) = next(b for b in blocks if isinstance(b, list) and "uses" in b[0])
    assert set(step["with"]) <= set(ACTION["inputs"])
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    (repository,) = next(b for b in blocks if isinstance(b, list) and "repo" in b[0])
    assert repository["hooks"][0]["id"] == hooks[0]["id"]
    page = (ROOT / "docs" / "how-to" / "gate-artifacts.md").read_text(encoding="utf-8")
    options = {option for parameter in check_command.params for option in parameter.opts}
    used = set(re.findall(r"(?<=\s)--[a-z]+", "\n".join(re.findall("onnxprune check .*", page))))
    assert {"--policy", "--junit", "--markdown"} <= used <= options
    policies = [tomllib.loads(block) for block in how_to_blocks("toml") if "[sparsity]" in block]
    assert len(list(Policy.from_dict(policies[0]).demands())) == 9


def test_the_how_to_counts_samples_right() -> None:
    page = (ROOT / "docs" / "how-to" / "gate-artifacts.md").read_text(encoding="utf-8")
    assert "takes at least 268 samples" in page
    assert drop_upper_bound(0, 0, 268, 0.95) <= 0.01 < drop_upper_bound(0, 0, 267, 0.95)
