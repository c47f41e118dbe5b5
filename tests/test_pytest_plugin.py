"""The pytest plugin, used from the project in `examples/gate` as anyone would."""

import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("plugin")

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "gate"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its models."""
    folder = tmp_path_factory.mktemp("example") / "gate"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("models", "__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_models.py", "--out", str(folder / "models")])
        runpy.run_path(str(folder / "make_models.py"), run_name="__main__")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "project"))


def run(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in the project, with the plugin whether or not it is installed."""
    command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "onnxprune.pytest_plugin"]
    return subprocess.run(
        [*command, *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )


def test_the_example_passes(project: Path) -> None:
    done = run(project)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_an_artifact_that_breaks_its_policy_fails_the_test(project: Path) -> None:
    stricter = project / "stricter.toml"
    stricter.write_text("[sparsity]\nmin = 0.6\n[size]\nmax_bytes = 1_000_000\n")
    done = run(project, "--onnxprune-policy=stricter.toml")
    assert done.returncode == 1
    assert "sparsity.min: fail: 384 of 768 weights in 1 tensor are zero" in done.stdout
    assert "2 checks: 1 passed, 1 failed." in done.stdout
    assert "size.max_bytes" not in done.stdout
    assert "Traceback" not in done.stdout


def test_the_policy_may_be_an_argument(project: Path) -> None:
    (project / "other.toml").write_text("[sparsity]\nmin = 0.1\n")
    (project / "test_artifact.py").write_text(
        "def test_it(onnxprune_artifact):\n"
        "    result = onnxprune_artifact('models/pruned.onnx', 'other.toml')\n"
        "    assert [check.name for check in result.checks] == ['sparsity.min']\n"
    )
    done = run(project, "--onnxprune-policy=policy.toml")
    assert done.returncode == 0, done.stdout


def test_without_a_policy_nothing_passes(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    done = run(project)
    assert done.returncode == 1
    assert "give --onnxprune-policy FILE" in done.stdout


def test_the_plugin_loads_nothing_heavy_until_it_is_used(project: Path) -> None:
    (project / "test_artifact.py").write_text(
        "import sys\n"
        "def test_it(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.hasplugin('onnxprune.pytest_plugin')\n"
        "    heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'rich', 'click'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    done = run(project)
    assert done.returncode == 0, done.stdout


def test_the_entry_point_is_declared() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (name, module) = next(iter(settings["project"]["entry-points"]["pytest11"].items()))
    assert name == module == "onnxprune.pytest_plugin"
