"""`onnxprune doctor`: what is installed, what is missing, what would be used."""

import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

import click

from onnxprune.cli import common
from onnxprune.errors import OnnxpruneError

_PACKAGES = {
    "numpy": "base",
    "pillow": "base",
    "onnx": "base",
    "pydantic": "base",
    "plotly": "base",
    "torch": "train",
    "torchvision": "train",
    "accelerate": "train",
    "safetensors": "train",
}
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


@click.command("doctor")
@common.json_option
def command(as_json: bool) -> None:
    """Show versions, execution providers and devices, and what is missing for which command.

    \b
    Example:
      onnxprune doctor
    """
    facts = examine()
    if as_json:
        common.print_json(facts)
        return
    from rich.table import Table

    console = common.output_console()
    table = Table("package", "version")
    for name, version in facts["packages"].items():
        table.add_row(name, version or "missing")
    console.print(table)
    console.print(f"execution providers: {', '.join(facts['providers']) or 'none'}")
    console.print(f"training would use: {facts['device'] or 'nothing, torch is missing'}")
    console.print(f"sparse runtime: {facts['sparse_runtime'] or _lack(facts)}")
    console.print(f"CPU: {facts['cpu_count']} cores, Python {facts['python']}")
    for problem in facts["problems"]:
        console.print(f"problem: {problem}")
    if not facts["problems"]:
        console.print("everything that onnxprune can use is there")


def examine() -> dict[str, Any]:
    """Versions, providers, device and problems of this environment, as JSON values."""
    packages = {name: _version(name) for name in (*_PACKAGES, *_RUNTIMES)}
    problems = [
        f"{name} is missing: `pip install 'onnxprune[{extra}]'`, needed for "
        + ("everything" if extra == "base" else "`prune`")
        for name, extra in _PACKAGES.items()
        if packages[name] is None
    ]
    flavours = [name for name in _RUNTIMES if packages[name] is not None]
    if not flavours:
        problems.append(
            "ONNX Runtime is missing: `pip install 'onnxprune[cpu]'` or `'onnxprune[gpu]'`, needed "
            "for `evaluate`, `bench`, `check` and `prune`"
        )
    if len(flavours) > 1:
        problems.append(
            f"{' and '.join(flavours)} are both installed and overwrite each other's files: "
            f"uninstall both, then install one"
        )
    runtime, missing = _sparse_runtime()
    if missing is not None:
        problems.append(
            f"sparse runtime: missing, because {missing}; needed for `compile`. It is built when "
            "the package is installed, if there is a C++17 compiler: `pip install "
            "--force-reinstall --no-deps -v .` in a clone shows what the compiler says"
        )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": packages,
        "providers": _providers(problems),
        "device": _device(problems),
        "sparse_runtime": runtime,
        "sparse_runtime_missing": missing,
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _providers(problems: list[str]) -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    try:
        from onnxprune.validate import available_providers

        return available_providers()
    except (ImportError, OnnxpruneError) as error:
        problems.append(f"ONNX Runtime does not load: {error}")
        return []


def _sparse_runtime() -> tuple[str | None, str | None]:
    """The kernels that the sparse runtime would use, or else why there are none."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None, "ONNX Runtime is not installed"
    try:
        from onnxprune.runtime import instruction_set, missing_reason

        reason = missing_reason()
        return (instruction_set(), None) if reason is None else (None, reason)
    except ImportError as error:
        return None, str(error)


def _lack(facts: dict[str, Any]) -> str:
    return f"missing, because {facts['sparse_runtime_missing']}"


def _device(problems: list[str]) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch does not load: {error}")
        return None
    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()})"
    return f"cpu ({torch.get_num_threads()} threads)"
