"""The result of `bench` in words: faster or not, why not, and what would help."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from onnxprune.model import OnnxModel
from onnxprune.validate.inspection import inspect_model
from onnxprune.validate.session import TENSORRT
from onnxprune.validate.speedup import EQUAL_WITHIN, Speedup

_FEW_ZEROS = 0.05
_BUSY_CORES = 0.25

_HELPS = (
    "sparse CPU kernels (`onnxprune compile`, then `onnxprune bench` with the compiled file), "
    "removing whole channels, or 2:4 zeros under TensorRT (`onnxprune prune --pattern 2:4`, then "
    "`onnxprune bench --provider tensorrt`)"
)


def sentence(path: str, result: Speedup, reason: str | None) -> str:
    """What came out for one model, in a line."""
    texts = {
        "same": "no speedup: as fast as the baseline within "
        f"{max(result.high - 1, 1 - result.low):.1%}",
        "faster": "faster than the baseline",
        "slower": "no speedup: slower than the baseline",
        "unclear": "no speedup shown, too noisy to conclude",
    }
    interval = f"{result.ratio:.3f}x, 95 % interval {result.low:.3f} to {result.high:.3f}"
    text = f"{path}: {texts[result.verdict]} ({interval})"
    return text if reason is None else f"{text}. {reason}"


def reason(result: Speedup, model: OnnxModel, environment: Mapping[str, Any]) -> str | None:
    """Why there is no speedup, and what would help; None where there is one.

    Args:
        result: What was measured.
        model: The model that was compared with the baseline.
        environment: Of the measurement; `provider`, `openings`, `busy_cores_of_others`.
    """
    if result.verdict == "faster":
        return None
    if result.verdict == "unclear":
        return noise(environment)
    return why_no_speedup(model, str(environment.get("provider")))


def noise(environment: Mapping[str, Any]) -> str:
    """What made a measurement too noisy, as far as that is known, and the remedy."""
    busy = environment.get("busy_cores_of_others")
    neighbours = ""
    if busy is not None and busy >= _BUSY_CORES:
        neighbours = (
            f"; meanwhile other programs kept {busy:.1f} of {environment.get('cores')} cores busy"
        )
    openings = environment.get("openings")
    return (
        f"The interval includes 1 and is wider than ±{EQUAL_WITHIN:.0%} after {openings} "
        f"openings{neighbours}. An idle machine, a longer time (--seconds), fixed cores (--pin) "
        "or, for one thread, the processor's time (--clock cpu) would help."
    )


def why_no_speedup(model: OnnxModel, provider: str) -> str:
    """Why the zeros in a model's weights do not make it faster, and what would.

    Args:
        model: The model.
        provider: Full name of the execution provider that ran it.
    """
    facts = inspect_model(model)
    if facts.sparsity < _FEW_ZEROS:
        return (
            f"{facts.sparsity:.1%} of its prunable weights are zero, so there is hardly anything "
            "to skip."
        )
    zeros: Counter[str] = Counter()
    for tensor in facts.tensors:
        if tensor.prunable:
            zeros[tensor.pattern] += tensor.zeros
    pattern = zeros.most_common(1)[0][0]
    start = f"{facts.sparsity:.1%} of its prunable weights are zero"
    dense = f"{provider} has dense kernels, which multiply zeros like any other number"
    if pattern == "channel":
        return (
            f"{start}, as whole channels that are still stored and computed. Removing them from "
            "the graph would help."
        )
    if provider == TENSORRT and pattern == "2:4":
        return (
            f"{start} (2:4), and TensorRT found no sparse kernel that was faster. Larger layers, "
            "or float16 (--provider-option trt_fp16_enable=1), would help."
        )
    kind = "unstructured" if pattern == "unstructured" else f"pattern {pattern}"
    return f"{start} ({kind}), but {dense}. What would help: {_HELPS}."
