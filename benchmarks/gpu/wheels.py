"""Wheels of what onnxprune needs, for a machine without a network that has PyTorch and ONNX.

    python benchmarks/gpu/wheels.py --python 3.12 --out build/wheels

downloads with pip the dependencies of the package and of its extra `train`, and theirs, except
what such a machine brings (`PROVIDED`) and what only those need. Some are not pure Python (pillow,
pydantic-core, markupsafe, safetensors, psutil, pyyaml), so the Python version and the platform of
the machine have to be named. `check.py --wheels` installs those that are not there.
"""

import argparse
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

PROVIDED = frozenset(
    {"torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "setuptools"}
)
"""Large, or tied to the machine's CUDA; they have to be there already."""

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_GLIBC = (28, 27, 24, 17)


def main() -> int:
    """Download the wheels and name them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="3.12", help="version of the machine, as 3.12")
    parser.add_argument("--machine", default="x86_64", help="its processor, as x86_64 or aarch64")
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheels")
    arguments = parser.parse_args()
    wheels = fetch(arguments.out, arguments.python, arguments.machine)
    for wheel in wheels:
        pure = wheel.name.endswith("-none-any.whl")
        print(f"{wheel.name} ({'pure Python' if pure else 'compiled'})")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 2**20:.1f} MiB in {arguments.out}")
    return 0


def fetch(out: Path, python: str, machine: str) -> list[Path]:
    """Download what is needed, level by level of the dependencies.

    A package is downloaded once, for the first requirement that names it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for wheel in out.glob("*.whl"):
        wheel.unlink()
    done: set[str] = set(PROVIDED)
    needed = _project_requirements()
    while needed:
        fresh = {
            name: text
            for name, text in _applying(needed, python, machine).items()
            if name not in done
        }
        before = set(out.glob("*.whl"))
        if fresh:
            _download(fresh.values(), out, python, machine)
        done |= fresh.keys()
        needed = [
            line for wheel in set(out.glob("*.whl")) - before for line in _requirements(wheel)
        ]
    return sorted(out.glob("*.whl"))


def install_missing(folder: Path, target: Path) -> list[str]:
    """Install into `target` those wheels of a folder whose package is not installed here.

    Returns:
        The file names of the wheels that were installed.
    """
    wheels = sorted(folder.glob("*.whl"))
    present = {_normal(name) for found in metadata.distributions() if (name := found.name)}
    missing = [wheel for wheel in wheels if _normal(wheel.name.partition("-")[0]) not in present]
    if missing:
        options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--target", str(target)]
        command = [sys.executable, "-m", "pip", "install", *options, *map(str, missing)]
        subprocess.run(command, check=True)
    return [wheel.name for wheel in missing]


def _project_requirements() -> list[str]:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["train"]]


def _applying(requirements: Iterable[str], python: str, machine: str) -> dict[str, str]:
    """Name -> requirement without its marker, of those that hold on that machine."""
    from packaging.requirements import Requirement

    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    found = {}
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = _normal(requirement.name)
            found[name] = f"{requirement.name}{requirement.specifier}"
    return found


def _download(requirements: Iterable[str], out: Path, python: str, machine: str) -> None:
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--only-binary=:all:", "--implementation", "cp", "--python-version", python),
        *(
            part
            for name in [*platforms, f"manylinux2014_{machine}"]
            for part in ("--platform", name)
        ),
        *("--dest", str(out), *requirements),
    ]
    subprocess.run(command, check=True)


def _requirements(wheel: Path) -> list[str]:
    """The `Requires-Dist` lines of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        text = archive.read(member).decode("utf-8")
    return HeaderParser().parsestr(text).get_all("Requires-Dist") or []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
