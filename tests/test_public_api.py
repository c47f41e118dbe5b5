"""The names that users import, and what importing them costs."""

import importlib
import statistics
import subprocess
import sys
import time

import pytest

import onnxprune

NAMES = {
    "DataError",
    "ImportedModel",
    "Interrupted",
    "ModelError",
    "OnnxpruneError",
    "Recipe",
    "UsageError",
    "__version__",
    "bench",
    "check",
    "evaluate",
    "export",
    "inspect_model",
    "load",
    "open_data",
    "prune",
    "recalibrate",
    "runtime",
    "write_report",
}
PACKAGES = ["calibration", "export", "finetune", "importer", "runtime", "sparsity", "validate"]
RUNS = 3
SLACK = 3.0
"""How much slower than the documented limits a shared CI machine may be."""


def python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    assert set(onnxprune.__all__) == NAMES
    assert list(onnxprune.__all__) == sorted(onnxprune.__all__)
    assert dir(onnxprune) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(onnxprune, name)
    if name != "__version__":
        assert callable(value) or name == "runtime"
        assert value.__doc__


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prnue'"):
        onnxprune.prnue  # noqa: B018
    assert not hasattr(onnxprune, "Pipeline")


@pytest.mark.parametrize("package", PACKAGES)
def test_sub_packages_export_what_they_list(package: str) -> None:
    module = importlib.import_module(f"onnxprune.{package}")
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = python(
        "import sys, onnxprune; onnxprune.__version__; dir(onnxprune); "
        "print(*[m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'click', "
        "'plotly', 'PIL', 'rich') if m in sys.modules])"
    )
    assert loaded == ""


@pytest.mark.parametrize(
    "code",
    [
        "onnxprune.Recipe()",
        "onnxprune.inspect_model",
        "onnxprune.evaluate",
        "onnxprune.bench",
        "onnxprune.check",
        "import onnxprune.pytest_plugin",
        "onnxprune.write_report",
        "onnxprune.runtime.session",
        "onnxprune.DataError",
        "onnxprune.open_data",
        "import onnxprune.export",
    ],
)
def test_what_works_without_torch_does_not_load_it(code: str) -> None:
    assert python(f"import sys, onnxprune\n{code}\nprint('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    "code",
    [
        "import onnxprune; print(callable(onnxprune.export))",
        "import onnxprune.export; print(callable(onnxprune.export))",
        "import onnxprune; onnxprune.export; import onnxprune.export.metadata; "
        "print(callable(onnxprune.export))",
        "from onnxprune.export import metadata; from onnxprune import export; "
        "print(callable(export) and export.metadata is metadata)",
    ],
)
def test_export_can_be_called_whatever_was_imported_before(code: str) -> None:
    assert python(code) == "True"


def median_seconds(command: list[str]) -> float:
    """Median wall time of a command that has run before."""

    def seconds(arguments: list[str]) -> float:
        started = time.perf_counter()
        subprocess.run(arguments, capture_output=True, check=True)
        return time.perf_counter() - started

    seconds(command)
    return statistics.median(seconds(command) for _ in range(RUNS))


def test_import_takes_less_than_300_ms() -> None:
    assert median_seconds([sys.executable, "-c", "import onnxprune"]) < 0.3 * SLACK


@pytest.mark.parametrize("arguments", [[], ["prune"]])
def test_help_takes_less_than_400_ms(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "onnxprune", *arguments, "--help"]
    assert median_seconds(command) < 0.4 * SLACK
