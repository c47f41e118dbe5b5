"""That sparse operators are faster than dense ones, with a wide margin: kernels that compute the
right numbers slowly are of no use, and nothing else in the tests would notice them."""

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxprune.runtime import CompileOptions, compile_model, instruction_set, register

from .helpers import net, normal, sparse

CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int]] = {
    "unstructured 1x1": ("y = Conv(x, w)", (256, 256, 1, 1), (1, 256, 28, 28), 1),
    "blocks of 1x1": ("y = Conv(x, w)", (256, 256, 1, 1), (1, 256, 28, 28), 4),
    "unstructured 3x3": (
        "y = Conv<pads = [1, 1, 1, 1]>(x, w)",
        (128, 128, 3, 3),
        (1, 128, 28, 28),
        1,
    ),
    "product": ("t = Transpose(w) y = MatMul(x, t)", (768, 768), (1, 128, 768), 1),
}
ROUNDS = 25


@pytest.mark.usefixtures("need_kernels")
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_layer_with_a_tenth_of_its_weights_takes_less_than_two_thirds(case: str):
    """They take a fifth to a third of the time on an idle machine."""
    if instruction_set() not in ("avx512", "avx2"):
        pytest.skip("expectations are for AVX2 and AVX-512")
    body, weight, image, block = CASES[case]
    shape = ", ".join(map(str, image))
    rank = ", ".join("OABCDEFG"[: len(image)])
    model = net(f"g (float[{shape}] x) => (float[{rank}] y) {{ {body} }}",
                w=sparse(*weight, density=0.1, block=block))  # fmt: skip
    compiled = compile_model(model, CompileOptions())
    assert compiled.record.replaced == 1, compiled.record.layers
    feeds = {"x": normal(*image)}
    dense, fast = runner(model, feeds), runner(compiled.proto, feeds)
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for place, call in enumerate((dense, fast)):
            start = time.perf_counter()
            call()
            best[place] = min(best[place], time.perf_counter() - start)
    assert best[1] < best[0] / 1.5, best


def runner(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Callable[[], object]:
    """A call of a model on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    register(options)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return lambda: session.run(None, feeds)
