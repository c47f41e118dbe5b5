"""Exit codes, errors and help of the command line as a whole."""

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from onnxprune import __version__
from onnxprune.cli import COMMANDS, root
from onnxprune.errors import DataError, Interrupted, ModelFileError, UsageError

from .conftest import Command


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(command: Command, name: str) -> None:
    text = command(name, "--help").expect(0).out
    assert "Example" in text
    assert f"onnxprune {name} " in text or name == "doctor"
    assert "--json" in text


def test_help_lists_the_commands_and_exit_codes(command: Command) -> None:
    text = command("--help").expect(0).out
    for name in COMMANDS:
        assert f"  {name} " in text
    assert "5 interrupted" in text


def test_version(command: Command) -> None:
    assert command("--version").expect(0).out.strip() == f"onnxprune, version {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["prune"],
        ["prune", "m.onnx"],
        ["inspect", "--nonsense"],
        ["bench", "m.onnx", "--batch", "0"],
        ["evaluate"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(command: Command, arguments: list[str]) -> None:
    outcome = command(*arguments).expect(2)
    assert outcome.out == ""
    assert "Usage" in outcome.err or "error" in outcome.err.lower()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a"), 2),
        (ModelFileError("b"), 3),
        (DataError("c", where="there", got="x", expected="y", remedy="do z"), 4),
        (Interrupted("d"), 5),
        (KeyboardInterrupt(), 5),
        (click.UsageError("e"), 2),
        (RuntimeError("boom"), 70),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_codes(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(type(root), "get_command", lambda self, context, name: failing)
    outcome = command("doctor").expect(code)
    assert outcome.out == ""
    if isinstance(error, DataError):
        for part in ("error: c", "where: there", "got: x", "expected: y", "remedy: do z"):
            assert part in outcome.err
    if isinstance(error, RuntimeError):
        assert "RuntimeError: boom" in outcome.err
        assert "ONNXPRUNE_DEBUG" in outcome.err


def test_a_closed_pipe_is_no_error(classifier: Path) -> None:
    line = f"{sys.executable} -m onnxprune inspect {classifier} --json | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stdout == "{"
    assert done.stderr == ""


def test_help_loads_neither_onnx_nor_torch() -> None:
    """Which would cost a second; see also the import times in benchmarks/."""
    script = (
        "import sys\n"
        "from onnxprune.cli import run\n"
        "for arguments in (['--help'], *([name, '--help'] for name in "
        f"{COMMANDS!r})):\n"
        "    assert run(arguments) == 0\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'rich', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_both_ways_to_start(process: Command) -> None:
    started = time.monotonic()
    assert __version__ in process("--version").expect(0).out
    assert time.monotonic() - started < 30
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert __version__ in done.stdout


def test_one_of_several_processes_ends_without_taking_itself_apart() -> None:
    """What fails then, as libraries that spoke to other processes may, fails no finished run."""
    code = "import atexit, os; atexit.register(os.abort); from onnxprune.cli import main; main()"
    command = [sys.executable, "-c", code, "--version"]
    several = os.environ | {"WORLD_SIZE": "2", "RANK": "1"}
    done = subprocess.run(command, env=several, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "onnxprune" in done.stdout
