"""The rules of the code base: import directions, packages, and what a wheel holds."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("architecture")

ROOT = Path(__file__).parents[1]
LINKS = {"onnxprune/calibration": "../calibration", "onnxprune/cli": "../cli"}


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel that is built from a copy of the sources, without a compiler."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    _copy_sources(source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run(
        [*command, "-w", str(folder), str(source)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CC": "false", "CXX": "false"},
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def _copy_sources(target: Path) -> None:
    target.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info", "_kernels*")
    for name in ("onnxprune", "calibration", "cli"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=junk)


def modules_on_disk() -> set[str]:
    """Files of the package as they lie in a wheel that was built without a compiler."""
    found = set()
    for top, prefix in (("onnxprune", ""), ("calibration", "onnxprune/"), ("cli", "onnxprune/")):
        for path in (ROOT / top).rglob("*"):
            built = path.parent.name == "csrc" or path.name.startswith("_kernels")
            if path.is_file() and "__pycache__" not in path.parts and not built:
                name = prefix + path.relative_to(ROOT).as_posix()
                if not (prefix == "" and name.startswith(tuple(f"{link}/" for link in LINKS))):
                    found.add(name)
    return found


def test_imports_keep_to_the_contracts() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "0 broken" in done.stdout


def test_every_module_has_its_place_in_the_layers(settings: dict[str, Any]) -> None:
    (layers,) = [c for c in settings["importlinter"]["contracts"] if c["type"] == "layers"]
    placed = {name.strip() for layer in layers["layers"] for name in layer.split("|")}
    present = {
        f"onnxprune.{path.stem}"
        for path in (ROOT / "onnxprune").iterdir()
        if not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py")
    }
    assert placed == present


def test_the_list_of_packages_is_that_of_the_disk(settings: dict[str, Any]) -> None:
    on_disk = {
        Path(name).parent.as_posix().replace("/", ".")
        for name in modules_on_disk()
        if name.endswith("__init__.py")
    }
    assert set(settings["setuptools"]["packages"]) == on_disk
    assert settings["setuptools"]["packages"] == sorted(settings["setuptools"]["packages"])


def test_a_wheel_holds_every_file_and_nothing_else(wheel: set[str]) -> None:
    files = {name for name in wheel if ".dist-info/" not in name}
    assert files == modules_on_disk()
    assert "onnxprune/py.typed" in files
    assert "onnxprune/validate/templates/report.html.j2" in files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


@pytest.mark.parametrize(("link", "target"), LINKS.items())
def test_links_lead_to_the_top_level_folders(link: str, target: str) -> None:
    path = ROOT / link
    if not path.is_symlink():
        assert path.is_file(), "neither a link nor what git makes of one on Windows"
        assert path.read_text(encoding="utf-8") == target
        return
    assert str(path.readlink()) == target
    assert (path / "__init__.py").is_file()


def test_top_level_folders_are_imported_inside_the_namespace() -> None:
    import onnxprune.calibration
    import onnxprune.cli

    for module in (onnxprune.calibration, onnxprune.cli):
        assert module.__file__ is not None
        assert Path(module.__file__).resolve().is_relative_to(ROOT)
    code = "import importlib.util as u; print(u.find_spec('cli'), u.find_spec('calibration'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "None"]


def test_no_module_is_a_wall_of_text() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for top in ("onnxprune", "calibration", "cli")
        for path in (ROOT / top).rglob("*.py")
    }
    assert not {name: count for name, count in lengths.items() if count > 600}
