"""torchvision's architectures: which export, which import, and how far results are from the file's.

python benchmarks/architectures.py --journal architectures.jsonl

Each architecture runs in a process of its own. What the journal holds already is not run again;
each result says when and with which PyTorch it was obtained.
"""

import argparse
import datetime
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from architecture_zoo import Architecture, architectures
from record import write_results
from torch import Tensor, nn

import onnxprune

DYNAMIC_FORMS = {"batch, height, width": (0, -2, -1), "batch": (0,), "none": ()}
"""Axes that are exported as dynamic, the best form first."""

TOLERANCE = 1e-4
AMPLIFICATION = 10
"""Where PyTorch itself is off ONNX Runtime by more than the tolerance, as in detectors with random
weights that sort boxes of nearly equal scores, up to this multiple of it is taken for rounding."""

_VERDICTS = ["no export", "equal", "rounding", "nothing compared", "differs", "no import"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=["*"], help="names, as glob patterns")
    parser.add_argument(
        "--exporter", choices=["first", "torchscript", "dynamo", "both"], default="first"
    )
    parser.add_argument("--journal", type=Path, default=None)
    parser.add_argument("--timeout-s", type=float, default=900)
    parser.add_argument("--memory-gb", type=float, default=8)
    parser.add_argument("--one", help="run one architecture here and print its result")
    arguments = parser.parse_args()
    if arguments.one:
        _limit_memory(arguments.memory_gb)
        print(json.dumps(_examine(arguments.one, arguments.exporter)))
        return
    done = _journal_entries(arguments.journal)
    for architecture in architectures():
        if architecture.name in done or not any(
            fnmatch(architecture.name, p) for p in arguments.only
        ):
            continue
        entry = _in_process(architecture, arguments)
        done[architecture.name] = entry
        print(_line(entry), flush=True)
        if arguments.journal:
            with arguments.journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps(entry) + "\n")
    settings = {
        "tolerance": TOLERANCE,
        "timeout_s": arguments.timeout_s,
        "memory_gb": arguments.memory_gb,
    }
    entries = [
        done.get(a.name, {"name": a.name, "group": a.group, "verdict": "not run", "exports": []})
        for a in architectures()
    ]
    write_results("architectures", settings, entries)


def _journal_entries(journal: Path | None) -> dict[str, dict[str, Any]]:
    if journal is None or not journal.exists():
        return {}
    lines = journal.read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def _limit_memory(gigabytes: float) -> None:
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _in_process(architecture: Architecture, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one architecture in a process that may fail, hang or grow without harm."""
    command = [sys.executable, __file__, "--one", architecture.name]
    command += ["--exporter", arguments.exporter, "--memory-gb", str(arguments.memory_gb)]
    entry: dict[str, Any] = {"name": architecture.name, "group": architecture.group}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=arguments.timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {**entry, "verdict": "timeout", "exports": []}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {**entry, "verdict": "crash", "exports": [], "reason": last[0][-300:]}
    return json.loads(done.stdout.splitlines()[-1])


def _line(entry: dict[str, Any]) -> str:
    keys = ("exporter", "dynamic", "verdict", "difference", "reason")
    exports = [" ".join(str(e[key]) for key in keys if key in e) for e in entry["exports"]]
    return f"{entry['name']}: {entry['verdict']} {entry.get('reason', '')} {'; '.join(exports)}"


def _examine(name: str, exporter: str) -> dict[str, Any]:
    """Export, import and compare one architecture."""
    (architecture,) = [a for a in architectures() if a.name == name]
    started = time.perf_counter()
    net = architecture.build()
    exports = []
    for candidate in ("torchscript", "dynamo") if exporter in ("first", "both") else (exporter,):
        exports.append(_export_and_compare(architecture, net, candidate))
        if exporter == "first" and exports[-1]["verdict"] != "no export":
            break
    return {
        "name": name,
        "group": architecture.group,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in net.parameters()),
        "verdict": max((e["verdict"] for e in exports), key=_VERDICTS.index),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "exports": exports,
    }


def _export_and_compare(
    architecture: Architecture, net: nn.Module, exporter: str
) -> dict[str, Any]:
    """The result with the most dynamic form that the exporter and ONNX Runtime support."""
    reasons = {}
    for form in DYNAMIC_FORMS:
        if form.endswith("width") and len(architecture.sizes) < 2:
            continue
        if form == "batch" and architecture.batch_in_list:
            continue
        try:
            comparisons = _compare_form(architecture, net, exporter, form)
        except NoExport as error:
            reasons[form] = str(error)
            continue
        except onnxprune.OnnxpruneError as error:
            return {
                "exporter": exporter,
                "dynamic": form,
                "verdict": "no import",
                "reason": str(error)[:2000],
            }
        found = [c for c in comparisons if c["difference"] is not None]
        worst = max((c["difference"] for c in found), default=None)
        native = max((c["native_difference"] for c in found), default=None)
        return {
            "exporter": exporter,
            "dynamic": form,
            "verdict": _verdict(worst, native),
            "difference": worst,
            "native_difference": native,
            "comparisons": comparisons,
            "other_forms": reasons,
        }
    return {
        "exporter": exporter,
        "verdict": "no export",
        "reason": list(reasons.values())[-1],
        "other_forms": reasons,
    }


def _verdict(worst: float | None, native: float | None) -> str:
    if worst is None or native is None:
        return "nothing compared"
    if worst <= TOLERANCE:
        return "equal"
    rounds = TOLERANCE < native < float("inf") and worst <= AMPLIFICATION * native
    return "rounding" if rounds else "differs"


class NoExport(Exception):
    """The exporter, or ONNX Runtime on what it exported, failed."""


def _compare_form(
    architecture: Architecture, net: nn.Module, exporter: str, form: str
) -> list[dict[str, Any]]:
    other = 1 if "height" in form else 0
    comparisons = []
    if architecture.batch_in_list or form == "none":
        for batch in (1, 2):
            feeds = [architecture.inputs(batch, size) for size in {0, other}]
            comparisons += _export_once(net, feeds, exporter, form)
        return comparisons
    feeds = [architecture.inputs(2, 0), architecture.inputs(1, other)]
    return _export_once(net, feeds, exporter, form)


def _export_once(
    net: nn.Module, feeds: list[tuple[Tensor, ...]], exporter: str, form: str
) -> list[dict[str, Any]]:
    """Export for the first feed, import, and compare on all of them."""
    names = [f"x{index}" for index in range(len(feeds[0]))]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        try:
            _export(net, feeds[0], path, exporter, names, DYNAMIC_FORMS[form])
            expected = _runtime_outputs(path, [dict(zip(names, f, strict=True)) for f in feeds])
        except Exception as error:
            raise NoExport(_one_line(error)) from error
        started = time.perf_counter()
        imported = onnxprune.load(path).eval()
        seconds = time.perf_counter() - started
        comparisons = []
        for feed, outputs in zip(feeds, expected, strict=True):
            with torch.no_grad():
                actual, native = imported(*feed), net.eval()(*feed)
            actual = actual if isinstance(actual, tuple) else (actual,)
            difference, mismatch = _difference([a.numpy() for a in actual], outputs)
            native_difference, _ = _difference([n.numpy() for n in native], outputs)
            comparisons.append(
                {
                    "inputs": [list(tensor.shape) for tensor in feed],
                    "difference": _rounded(difference),
                    "native_difference": _rounded(native_difference),
                    "outputs": [list(o.shape) for o in outputs],
                    **mismatch,
                }
            )
        comparisons[0]["import_seconds"] = round(seconds, 2)
    return comparisons


def _export(
    net: nn.Module,
    feed: tuple[Tensor, ...],
    path: str,
    exporter: str,
    names: list[str],
    axes: tuple[int, ...],
) -> None:
    ranks = [tensor.ndim for tensor in feed]
    dynamic: list[dict[int, str]] = [
        {
            axis % rank: f"{'i' + str(i) if axis and len(feed) > 1 else ''}d{axis % rank}"
            for axis in axes
            if (rank == 3 and axis) or rank > 3
        }
        for i, rank in enumerate(ranks)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(
                net,
                feed,
                path,
                dynamo=False,
                opset_version=17,
                input_names=names,
                dynamic_axes=dict(zip(names, dynamic, strict=True)) if axes else None,
            )
            return
        shapes = tuple(dict.fromkeys(d, torch.export.Dim.DYNAMIC) for d in dynamic)
        torch.onnx.export(
            net,
            feed,
            path,
            dynamo=True,
            input_names=names,
            verbose=False,
            dynamic_shapes=(shapes,) if axes else None,
        )


def _runtime_outputs(path: str, feeds: list[dict[str, Tensor]]) -> list[list[np.ndarray]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    return [
        session.run(None, {k: v.numpy() for k, v in feed.items() if k in known}) for feed in feeds
    ]


def _difference(
    actual: list[np.ndarray], expected: list[np.ndarray]
) -> tuple[float | None, dict[str, Any]]:
    """Largest difference relative to an output's largest magnitude.

    It is infinite if shapes differ, and None if they agree and every output is empty.
    """
    worst = None if not any(e.size for e in expected) else 0.0
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape or a.dtype != e.dtype or not np.isfinite(e).all():
            return float("inf"), {"mismatch": f"{a.dtype} {a.shape} for {e.dtype} {e.shape}"}
        if e.size:
            scale = float(np.abs(e).max()) or 1.0
            worst = max(worst or 0.0, float(np.abs(a.astype(np.float64) - e).max()) / scale)
    return worst, {}


def _rounded(difference: float | None) -> float | None:
    return None if difference is None else float(f"{difference:.2e}")


def _one_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[\d+m", "", f"{type(error).__name__}: {error}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = re.sub(r"\S*/(?=[\w.-]+)", "", " ".join(lines[:3]))
    return text[:300]


if __name__ == "__main__":
    main()
