"""ONNX's own backend node cases: how many of them the importer passes, and why the others fail.

    python benchmarks/node_cases.py

In scope are the cases whose inputs and outputs are tensors of float16/32/64, integer, bool or
complex type, outside the ml and training domains. Values agree within 1e-3 relative and 1e-5
absolute, ten times that for float16.
"""

import sys
import time
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import torch
from onnx import TensorProto
from onnx.backend.test.case.test_case import TestCase

from onnxprune.errors import UnsupportedModelError
from onnxprune.importer import load

TENSOR_TYPES = {
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    *(TensorProto.COMPLEX64, TensorProto.COMPLEX128),
}
OTHER_DOMAINS = {"ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training"}
RELATIVE, ABSOLUTE, HALF_SLACK = 1e-3, 1e-5, 10


def cases_in_scope() -> list[TestCase]:
    """Collect the cases; ONNX computes their expected outputs anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return [case for case in collect_testcases(None) if _in_scope(case)]


def _in_scope(case: TestCase) -> bool:
    if case.model is None or OTHER_DOMAINS & {opset.domain for opset in case.model.opset_import}:
        return False
    tensors = all(
        value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in TENSOR_TYPES
        for value in _border(case.model)
    )
    return tensors and all(
        isinstance(value, np.ndarray | np.generic)
        for data_set in case.data_sets
        for values in data_set
        for value in values
    )


def _border(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.output]


def difference(case: TestCase) -> str | None:
    """What is wrong with the results of a case, None if nothing is.

    Raises:
        UnsupportedModelError: The importer refuses the model.
    """
    module = load(case.model).eval()
    half = any(
        value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in _border(case.model)
    )
    slack = HALF_SLACK if half else 1
    for inputs, expected in case.data_sets:
        with torch.no_grad():
            results = module(*[torch.from_numpy(np.array(value)) for value in inputs])
        results = results if isinstance(results, tuple) else (results,)
        for result, value in zip(results, expected, strict=True):
            actual, wanted = result.numpy(), np.asarray(value)
            if (actual.shape, actual.dtype) != (wanted.shape, wanted.dtype):
                return f"{actual.dtype}{actual.shape} instead of {wanted.dtype}{wanted.shape}"
            if not np.allclose(actual, wanted, RELATIVE * slack, ABSOLUTE * slack, equal_nan=True):
                return "wrong values"
    return None


def failures(cases: Iterable[TestCase]) -> Iterator[tuple[str, str]]:
    """Names of the cases that fail, and the reason of each."""
    for case in cases:
        try:
            reason = difference(case)
        except UnsupportedModelError as error:
            reason = f"refused: {error.got or error}"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            yield case.name, " ".join(reason.split())


def main() -> None:
    """Run all cases and record the failing ones."""
    from record import write_results

    warnings.simplefilter("ignore")
    started = time.perf_counter()
    cases = cases_in_scope()
    failed = dict(failures(cases))
    passed = len(cases) - len(failed)
    settings = {"rtol": RELATIVE, "atol": ABSOLUTE, "slack_for_float16": HALF_SLACK}
    results = {
        "cases": len(cases),
        "passed": passed,
        "share": round(passed / len(cases), 4),
        "seconds": round(time.perf_counter() - started, 1),
        "failed": failed,
    }
    write_results("node_cases", settings, results)


if __name__ == "__main__":
    sys.exit(main())
