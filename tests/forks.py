"""The command line in processes that are forked from one in which PyTorch is loaded.

To import PyTorch takes a process longer than a small job does. A fork has signals, standard output,
exit code and environment of its own, as a process that is started anew.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVER = """
import json, os, sys, traceback
import torch._inductor.config
from onnxprune import pipeline, probe
from onnxprune.cli import main


def run(job):
    os.environ.update(job["environment"])
    for number, name in ((0, os.devnull), (1, job["output"]), (2, job["errors"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    try:
        main(job["arguments"])
    except SystemExit as error:
        return error.code
    except BaseException:
        traceback.print_exc()
    return 1


answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        code = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
        print(code, file=answers, flush=True)
        continue
    child = os.fork()
    if child == 0:
        code = run(job)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, file=answers, flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """What a process left behind; the code is negative where a signal ended it."""

    code: int
    output: str
    errors: str


class Fork:
    """One process of the command line."""

    def __init__(self, server: "ForkServer", process: int, output: Path, errors: Path) -> None:
        self.process = process
        self._server = server
        self._output = output
        self._errors = errors

    def send(self, number: int) -> None:
        """Send it a signal. It may be over already, which `wait` tells."""
        os.kill(self.process, number)

    def wait(self) -> Ended:
        """Wait for its end; to be called once."""
        code = self._server.ask({"wait": self.process})
        return Ended(code, self._output.read_text(), self._errors.read_text())


class ForkServer:
    """Starts the processes.

    Args:
        server: Runs `SERVER`.
        folder: For what the processes print.
    """

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._started = 0

    def start(
        self, arguments: Sequence[object], environment: Mapping[str, str] | None = None
    ) -> Fork:
        """Start `onnxprune` with arguments, and variables over those of this process."""
        self._started += 1
        output, errors = (self._folder / f"{self._started}.{kind}" for kind in ("out", "err"))
        process = self.ask(
            {
                "arguments": [str(argument) for argument in arguments],
                "environment": dict(environment or {}),
                "output": str(output),
                "errors": str(errors),
            }
        )
        return Fork(self, process, output, errors)

    def start_ranks(self, arguments: Sequence[object], world: int) -> list[Fork]:
        """Start `onnxprune` on several ranks, with the variables that `torchrun` sets."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared["LOCAL_WORLD_SIZE"] = str(world)
        return [
            self.start(arguments, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(world)
        ]

    def ask(self, job: Mapping[str, object]) -> int:
        """Send a line to the server and return the number that it answers."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@contextmanager
def fork_server(folder: Path) -> Iterator[ForkServer]:
    """A server that ends, with all that it started, with the context."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as server:
        try:
            yield ForkServer(server, folder)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
