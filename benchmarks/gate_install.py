"""How long does the GitHub Action's install step take, kernels compiled?

The step's own script runs in a clone of this repository's last commit, into a new environment each
time, and without pip's cache unless `--cache` asks for it.

python benchmarks/gate_install.py
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import yaml
from record import ROOT, spread, write_results


def main() -> None:
    """Install several times and write down the seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", action="store_true", help="let pip use its cache")
    parser.add_argument("--name", default="gate_install")
    arguments = parser.parse_args()
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    install = next(s for s in action["runs"]["steps"] if s.get("id") == "install")
    extras = action["inputs"]["extras"]["default"]
    with_kernels, without = [], []
    for _ in range(arguments.repeats):
        with_kernels.append(_seconds(install["run"], extras, {}, arguments.cache))
        no_compiler = {"CC": "false", "CXX": "false"}
        without.append(_seconds(install["run"], extras, no_compiler, arguments.cache))
    write_results(
        arguments.name,
        vars(arguments) | {"extras": extras, "cores": os.cpu_count()},
        {"seconds": spread(with_kernels), "seconds without a compiler": spread(without)},
    )


def _seconds(script: str, extras: str, compilers: dict[str, str], cache: bool) -> float:
    """Wall-clock seconds of one run of the step, from a clone that nothing was built in."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "onnxprune"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        environment = os.environ | compilers
        environment |= {
            "GITHUB_ACTION_PATH": str(clone),
            "GITHUB_OUTPUT": str(Path(folder) / "output"),
            "RUNNER_TEMP": folder,
            "EXTRAS": extras,
        }
        if not cache:
            environment["PIP_NO_CACHE_DIR"] = "1"
        started = time.perf_counter()
        subprocess.run(
            [shutil.which("bash") or "bash", "-eo", "pipefail", "-c", script],
            env=environment,
            check=True,
        )
        seconds = time.perf_counter() - started
        built = any(Path(folder).glob("onnxprune/**/site-packages/onnxprune/runtime/_kernels*"))
        if built == bool(compilers):
            raise SystemExit(f"kernels built: {built}, expected {not compilers}")
        return seconds


if __name__ == "__main__":
    main()
