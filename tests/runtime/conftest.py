"""Whether the library of kernels is there; only a variable can say that it need not be."""

import os

import pytest

from onnxprune import runtime

WITHOUT = "ONNXPRUNE_TEST_WITHOUT_KERNELS"
"""Set on machines without a compiler, where tests of the kernels themselves are skipped."""


@pytest.fixture(scope="session")
def kernels() -> bool:
    """Whether results are also compared with those of the kernels."""
    if os.environ.get(WITHOUT):
        return False
    reason = runtime.missing_reason()
    assert reason is None, f"{reason}; build it (`pip install -e .`), or set {WITHOUT}=1"
    return True


@pytest.fixture
def need_kernels(kernels: bool) -> None:
    """Skip a test that is about the kernels where they are said not to be there."""
    if not kernels:
        pytest.skip(f"{WITHOUT} is set")
