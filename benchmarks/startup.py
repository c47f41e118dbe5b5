"""How long `import onnxprune` and `onnxprune --help` take, as whole processes.

python benchmarks/startup.py
"""

import argparse
import subprocess
import sys
import time

from record import spread, write_results

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import onnxprune": [sys.executable, "-c", "import onnxprune"],
    "onnxprune --help": [sys.executable, "-m", "onnxprune", "--help"],
    "onnxprune prune --help": [sys.executable, "-m", "onnxprune", "prune", "--help"],
    "onnxprune evaluate --help": [sys.executable, "-m", "onnxprune", "evaluate", "--help"],
}


def main() -> None:
    """Run the commands in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(arguments.repeats + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    write_results("startup", vars(arguments), {n: spread(s) for n, s in seconds.items()})


if __name__ == "__main__":
    main()
