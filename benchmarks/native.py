"""Small C++ programs that measure what a machine can do."""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


@contextmanager
def built(source: str, *flags: str) -> Iterator[Path]:
    """A program of this folder, compiled for this machine."""
    compiler = next(filter(shutil.which, ("g++", "clang++")), None)
    if compiler is None:
        raise SystemExit("this benchmark needs g++ or clang++")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / Path(source).stem
        command = [compiler, "-std=c++17", "-O3", *flags, str(HERE / source), "-o", str(program)]
        subprocess.run(command, check=True)
        yield program


def output_of(program: Path, *arguments: str) -> str:
    """What a program prints."""
    command = [str(program), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def _round_trip() -> bytes:
    with built("round_trip.cpp", "-pthread") as program:
        return program.read_bytes()


def round_trip_ns(processors: Sequence[int] | None = None) -> float:
    """How long a cache line takes between two processors, there and back.

    Args:
        processors: The two; by default the first two that this process may use.
    """
    one, other = processors or sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "round_trip"
        program.write_bytes(_round_trip())
        program.chmod(0o700)
        return float(output_of(program, str(one), str(other)))
