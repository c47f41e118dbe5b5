"""What keeps sessions that are open side by side from disturbing each other.

Two sessions of one model take turns in rounds, and the median of their calls is compared with that
of a plain loop over one session. Each way of interleaving runs in a process of its own, all ways
one after another, several times over.

python benchmarks/bench_interleaving.py MODEL.onnx --threads 2
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from bench_models import inputs_of, plain_loop
from record import write_results

from onnxprune.validate.bench_sessions import OwnProcesses
from onnxprune.validate.session import PreparedModel, session_settings

OFF = {"session.intra_op.allow_spinning": "0"}
STOP = {"session.force_spinning_stop": "1"}
WAYS: dict[str, dict[str, Any]] = {
    "plain loop": {},
    "plain loop, spinning off": {"config": OFF},
    "threads that keep spinning": {"sessions": 2, "config": {}},
    "keep spinning, one untimed call before": {"sessions": 2, "config": {}, "untimed": 1},
    "keep spinning, pause of 5 ms and one untimed call before": {
        "sessions": 2,
        "config": {},
        "untimed": 1,
        "pause_s": 0.005,
    },
    "spinning off": {"sessions": 2, "config": OFF},
    "spinning off, one untimed call before": {"sessions": 2, "config": OFF, "untimed": 1},
    "spinning that stops with the call": {"sessions": 2, "config": STOP},
    "spinning that stops with the call, one untimed call before": {
        "sessions": 2,
        "config": STOP,
        "untimed": 1,
    },
    "one thread pool": {"sessions": 2, "shared_pool": True},
    "one thread pool, one untimed call before": {"sessions": 2, "shared_pool": True, "untimed": 1},
    "alternating processes, one untimed call before": {"processes": True},
}


def main() -> None:
    """Every way, each in a process of its own; or the one of `--way`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--shared", action="store_true", help="other programs used the machine")
    parser.add_argument("--name", default="bench_interleaving")
    arguments = parser.parse_args()
    if arguments.way is not None:
        print(json.dumps(_median_ms(arguments)))
        return
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way in WAYS:
            command = [sys.executable, *sys.argv, "--way", way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout))
            print(way, found[way][-1], file=sys.stderr, flush=True)
    base = np.array(found["plain loop"])
    results = {
        way: {
            "median_ms": float(np.median(times)),
            "against_a_plain_loop": float(np.median(np.array(times) / base)),
            "repetitions_ms": times,
        }
        for way, times in found.items()
    }
    settings = {k: v for k, v in vars(arguments).items() if k not in ("model", "way")}
    write_results(arguments.name, settings, {arguments.model.name: results})


def _median_ms(arguments: argparse.Namespace) -> float:
    way = dict(WAYS[arguments.way])
    model = arguments.model.read_bytes()
    if way.get("processes"):
        return _in_processes(arguments)
    if "sessions" not in way and not way:
        return plain_loop(model, arguments.threads)
    if way.get("shared_pool"):
        onnxruntime.set_global_thread_pool_sizes(arguments.threads, 1)
    sessions = []
    for _ in range(way.get("sessions", 1)):
        options = onnxruntime.SessionOptions()
        if way.get("shared_pool"):
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = arguments.threads
        for key, value in way.get("config", {}).items():
            options.add_session_config_entry(key, value)
        sessions.append(onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"]))
    feeds = inputs_of(sessions[0])
    rng, elapsed = np.random.default_rng(0), []
    for round_number in range(arguments.rounds + 10):
        for index in rng.permutation(len(sessions)):
            time.sleep(way.get("pause_s", 0))
            for _ in range(way.get("untimed", 0)):
                sessions[index].run(None, feeds)
            start = time.perf_counter_ns()
            sessions[index].run(None, feeds)
            if round_number >= 10:
                elapsed.append((time.perf_counter_ns() - start) / 1e6)
    return float(np.median(elapsed))


def _in_processes(arguments: argparse.Namespace) -> float:
    settings = session_settings(threads=arguments.threads)
    with PreparedModel(arguments.model, settings) as prepared:
        feeds = inputs_of(prepared.open().raw)
        rng = np.random.default_rng(0)
        with OwnProcesses([prepared, prepared], feeds).open_all(rng) as bursts:
            elapsed = [
                bursts[index](1)[0]
                for _ in range(arguments.rounds + 10)
                for index in rng.permutation(2)
            ]
    return float(np.median(elapsed[20:])) / 1e6


if __name__ == "__main__":
    main()
