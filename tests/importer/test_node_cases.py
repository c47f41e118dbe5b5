"""The test cases that ship with ONNX: no operator that is imported may give a wrong answer."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
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

RANDOM = ("test_bernoulli", "test_training_dropout")
"""Cases whose expected outputs were drawn at random."""

LIKE_ONNX_RUNTIME = {
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
}
"""Cases in which ONNX Runtime, too, differs from the reference."""

LEAST_PASSING = 1205


def _in_scope(case: TestCase) -> bool:
    """Cases of tensors alone; the `_expanded` ones repeat others through their function bodies."""
    if case.name.endswith("_expanded"):
        return False
    if case.model is None or any(n.domain in OTHER_DOMAINS for n in case.model.graph.node):
        return False
    values = [*case.model.graph.input, *case.model.graph.output]
    return all(v.type.tensor_type.elem_type in TENSOR_TYPES for v in values)


def _array(value: object) -> np.ndarray:
    is_proto = isinstance(value, onnx.TensorProto)
    return np.array(numpy_helper.to_array(value) if is_proto else value)


def _problem(case: TestCase) -> str | None:
    """What is wrong with the results of a case, None if nothing is."""
    module = load(case.model).eval()
    values = [*case.model.graph.input, *case.model.graph.output]
    half = any(v.type.tensor_type.elem_type == TensorProto.FLOAT16 for v in values)
    slack = 10 if half else 1
    for inputs, expected in case.data_sets:
        with torch.no_grad():
            results = module(*[torch.from_numpy(_array(value)) for value in inputs])
        results = results if isinstance(results, tuple) else (results,)
        for result, value in zip(results, expected, strict=True):
            actual, wanted = result.numpy(), _array(value)
            if (actual.shape, actual.dtype) != (wanted.shape, wanted.dtype):
                return f"{actual.dtype}{actual.shape} instead of {wanted.dtype}{wanted.shape}"
            if not np.allclose(actual, wanted, 1e-3 * slack, 1e-5 * slack, equal_nan=True):
                return "wrong values"
    return None


@pytest.mark.timeout(300)
def test_cases_of_onnx_pass_or_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = [case for case in collect_testcases(None) if _in_scope(case)]
        problems, passed = {}, 0
        for case in cases:
            try:
                problem = _problem(case)
            except UnsupportedModelError:
                continue
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            if problem is None:
                passed += 1
            elif not case.name.startswith(RANDOM) and case.name not in LIKE_ONNX_RUNTIME:
                problems[case.name] = problem
    assert problems == {}
    assert passed >= LEAST_PASSING
