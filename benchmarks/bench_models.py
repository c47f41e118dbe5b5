"""Models for the benchmarks of `bench`: real ones, exported ones, and deliberately slower ones."""

import copy
import io
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx.helper
import onnxruntime

_SIDE = 64
_PREFIX = "added_"


def exported(name: str, size: int = 224) -> bytes:
    """An architecture of torchvision with random weights, as ONNX."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None).eval()
    file = io.BytesIO()
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, size, size),),
        file,
        input_names=["x"],
        opset_version=17,
        dynamo=False,
    )
    return file.getvalue()


def slowed(model: bytes, products: int) -> bytes:
    """The model with so many products of 64 × 64 matrices that feed an output of their own.

    The products depend on the first input, so that they are not computed while loading.

    Args:
        model: A model whose first input is an image `(N, C, H, W)` with sides of 64 or more.
        products: Number of products.
    """
    proto = copy.deepcopy(onnx.load_from_string(model))
    graph = proto.graph
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((_SIDE, _SIDE)))
    constants = {
        "start": np.array([0, 0, 0, 0], np.int64),
        "end": np.array([1, 1, _SIDE, _SIDE], np.int64),
        "shape": np.array([_SIDE, _SIDE], np.int64),
        "rotation": rotation.astype(np.float32),
    }
    for name, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value, _PREFIX + name))
    node = onnx.helper.make_node
    graph.node.append(
        node(
            "Slice",
            [graph.input[0].name, _PREFIX + "start", _PREFIX + "end"],
            [_PREFIX + "corner"],
        )
    )
    graph.node.append(
        node("Reshape", [_PREFIX + "corner", _PREFIX + "shape"], [_PREFIX + "product0"])
    )
    for index in range(products):
        inputs = [f"{_PREFIX}product{index}", _PREFIX + "rotation"]
        graph.node.append(node("MatMul", inputs, [f"{_PREFIX}product{index + 1}"]))
    last = f"{_PREFIX}product{products}"
    graph.output.append(
        onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, [_SIDE, _SIDE])
    )
    return proto.SerializeToString()


def products_for(model: bytes, share: float, threads: int) -> int:
    """Number of products that take this share of the model's time, by plain loops of both.

    With one thread by the processor's time, since waiting for a core would falsify the share.
    """
    many = 2000
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    chain = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> '
        f"chain (float[1, 1, {_SIDE}, {_SIDE}] x) => (float[1] unused) "
        "{ unused = ReduceMean <keepdims = 0, axes = [1, 2, 3]> (x) }"
    )
    costs = [
        plain_loop(slowed(chain.SerializeToString(), count), threads, clock=clock)
        for count in (1, many)
    ]
    product_ms = (costs[1] - costs[0]) / (many - 1)
    return max(1, round(share * plain_loop(model, threads, clock=clock) / product_ms))


def inputs_of(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Random inputs, with 1 for what is open."""
    rng = np.random.default_rng(0)
    return {
        value.name: rng.standard_normal(
            [size if isinstance(size, int) else 1 for size in value.shape]
        ).astype(np.float32)
        for value in session.get_inputs()
    }


def plain_loop(
    model: bytes,
    threads: int,
    sessions: int = 5,
    calls: int = 60,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> float:
    """Median in milliseconds of a loop over one session at a time, as anyone would write it.

    ONNX Runtime's options are the default ones. The loop is repeated with new sessions.
    """
    elapsed = []
    for _ in range(sessions):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        feeds = inputs_of(session)
        for _ in range(10):
            session.run(None, feeds)
        for _ in range(calls):
            start = clock()
            session.run(None, feeds)
            elapsed.append((clock() - start) / 1e6)
    return float(np.median(elapsed))
