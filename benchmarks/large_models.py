"""How long loading a large model takes, beside `onnx.load`, and how much memory.

Synthetic chains of square MatMuls are written to a temporary folder: one of 1 GB, with its tensors
inline and as external data, and one beyond the 2 GB that Protocol Buffers can hold, which is also
trained by a step, exported, and compared with ONNX Runtime. Each measurement is a process of its
own, in turns, with the files in the page cache.

python benchmarks/large_models.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from record import spread, write_results

WIDTH = 1024
TENSOR_BYTES = WIDTH * WIDTH * 4
FORMS = ("inline", "external")


def write_chain(folder: Path, form: str, size_bytes: int) -> Path:
    """A model of that size: `y = x @ w0 @ w1 …`, with orthogonal-like random weights."""
    count = -(-size_bytes // TENSOR_BYTES)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH**0.5 for _ in range(4)]
    data_path = folder / f"{form}.data"
    graph = onnx.GraphProto(name="chain")
    graph.input.append(helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["N", WIDTH]))
    graph.output.append(helper.make_tensor_value_info(f"h{count}", TensorProto.FLOAT, None))
    with data_path.open("wb") as stream:
        for index in range(count):
            values = np.roll(weights[index % 4], index).tobytes()
            tensor = graph.initializer.add(name=f"w{index}", data_type=TensorProto.FLOAT)
            tensor.dims.extend([WIDTH, WIDTH])
            if form == "inline":
                tensor.raw_data = values
            else:
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": data_path.name, "offset": stream.tell(), "length": len(values)}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                stream.write(values)
            inputs, outputs = [f"h{index}", f"w{index}"], [f"h{index + 1}"]
            graph.node.append(helper.make_node("MatMul", inputs, outputs, f"matmul{index}"))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / f"{form}.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def measure(what: str, path: str) -> dict[str, float]:
    """Seconds, and growth of the peak memory in bytes, of one load in this process."""
    import torch

    import onnxprune
    from onnxprune import importer

    assert torch
    assert importer
    before = _peak_bytes()
    started = time.perf_counter()
    loaded = onnx.load(path) if what == "onnx" else onnxprune.load(path)
    seconds = time.perf_counter() - started
    assert loaded is not None
    return {"seconds": seconds, "peak_bytes": _peak_bytes() - before}


def round_trip(path: str) -> dict[str, Any]:
    """Load, train a step, export, and run in ONNX Runtime."""
    import onnxruntime
    import torch

    import onnxprune

    before = _peak_bytes()
    imported = onnxprune.load(path)
    loaded_bytes = _peak_bytes() - before
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, WIDTH), dtype=np.float32))
    old = next(iter(imported.parameters())).detach().clone()
    imported(x).square().mean().backward()
    torch.optim.SGD(imported.parameters(), lr=1e-3).step()
    moved = float((next(iter(imported.parameters())).detach() - old).abs().max())
    imported.zero_grad(set_to_none=True)
    target = Path(path).with_name("out.onnx")
    onnxprune.export(imported, target)
    with torch.no_grad():
        expected = imported.eval()(x).numpy()
    del imported
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"h0": x.numpy()})
    return {
        "file_bytes": _size(Path(path)),
        "written_bytes": _size(target),
        "load_peak_bytes": loaded_bytes,
        "peak_bytes": _peak_bytes() - before,
        "largest_step": moved,
        "largest_relative_difference": float(
            np.abs(actual - expected).max() / np.abs(expected).max()
        ),
    }


def _size(path: Path) -> int:
    """Bytes of a model with the data file that lies beside it."""
    data = [path.with_suffix(".data"), path.with_name(path.name + ".data")]
    return path.stat().st_size + sum(file.stat().st_size for file in data if file.exists())


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _in_process(*arguments: str) -> Any:
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compare(path: Path, rounds: int, parameter_bytes: int) -> dict[str, Any]:
    """Both loaders in turns; the first round warms the page cache."""
    found: dict[str, list[dict[str, float]]] = {"onnx": [], "onnxprune": []}
    for round_number in range(rounds + 1):
        for what, entries in found.items():
            result = _in_process("--measure", what, str(path))
            if round_number:
                entries.append(result)
    seconds = {what: [e["seconds"] for e in entries] for what, entries in found.items()}
    ratios = [
        ours / theirs for ours, theirs in zip(seconds["onnxprune"], seconds["onnx"], strict=True)
    ]
    size = _size(path)
    peak = max(entry["peak_bytes"] for entry in found["onnxprune"])
    return {
        "file_bytes": size,
        "seconds": {what: spread(values) for what, values in seconds.items()},
        "time_ratio": spread(ratios),
        "peak_bytes": peak,
        "peak_limit_bytes": round(1.2 * size) + parameter_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    parser.add_argument("--round-trip", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size-gb", type=float, default=1.0)
    parser.add_argument("--large-gb", type=float, default=2.5)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    if arguments.round_trip:
        print(json.dumps(round_trip(arguments.round_trip)))
        return
    results: dict[str, Any] = {}
    size_bytes = int(arguments.size_gb * 2**30)
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            path = write_chain(Path(folder), form, size_bytes)
            results[form] = compare(path, arguments.rounds, size_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = write_chain(Path(folder), "external", int(arguments.large_gb * 2**30))
        results["beyond_2_gb"] = _in_process("--round-trip", str(path))
    settings = {key: getattr(arguments, key) for key in ("rounds", "size_gb", "large_gb")}
    write_results("large_models", settings, results)


if __name__ == "__main__":
    main()
