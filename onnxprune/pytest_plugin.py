"""The pytest plugin: `onnxprune check` as a fixture.

It is loaded into every pytest run where onnxprune is installed, so it imports what it needs when
the fixture is used.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onnxprune.validate.gate import GateResult

Gate = Callable[..., "GateResult"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--onnxprune-policy`, and the same as a setting of the project."""
    text = "Policy file of the fixture onnxprune_artifact."
    parser.getgroup("onnxprune").addoption("--onnxprune-policy", metavar="FILE", help=text)
    parser.addini("onnxprune_policy", help=text)


@pytest.fixture
def onnxprune_artifact(pytestconfig: pytest.Config) -> Gate:
    """Check an artifact against a policy; the test fails unless all of it is kept.

    Called as `onnxprune_artifact(model, policy=None, **options)` with the options of
    `onnxprune.check` such as `baseline` and `data`. The policy is, in this order, the argument, the
    file of `--onnxprune-policy`, or that of `onnxprune_policy` in the pytest settings. Relative
    paths count from the root of the project; that of the option, from where pytest was called. It
    returns the result.
    """

    def gate(
        model: str | os.PathLike[str],
        policy: str | os.PathLike[str] | None = None,
        *,
        baseline: str | os.PathLike[str] | None = None,
        data: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> "GateResult":
        __tracebackhide__ = True
        from onnxprune.checking import check

        root = pytestconfig.rootpath
        result = check(
            root / model,
            _policy(pytestconfig, policy),
            baseline=None if baseline is None else root / baseline,
            data=None if data is None else _data(root, os.fspath(data)),
            **options,
        )
        if not result.passed:
            pytest.fail(_failure(result), pytrace=False)
        return result

    return gate


def _policy(config: pytest.Config, given: str | os.PathLike[str] | None) -> Path:
    if given is not None:
        return config.rootpath / given
    option = config.getoption("--onnxprune-policy")
    if option is not None:
        return config.invocation_params.dir / option
    setting = config.getini("onnxprune_policy")
    if setting:
        return config.rootpath / setting
    raise pytest.UsageError(
        "onnxprune_artifact needs a policy: give --onnxprune-policy FILE, set onnxprune_policy in "
        "the pytest settings, or pass it as an argument"
    )


def _data(root: Path, spec: str) -> str:
    """A data spec; one that is a path counts from the root."""
    return spec if spec.startswith(("torchvision:", "python:")) else str(root / spec)


def _failure(result: "GateResult") -> str:
    from onnxprune.validate.gate_report import summary

    lines = [f"{result.model} does not keep to {result.policy}. {summary(result)}"]
    lines += [
        f"  {check.name}: {check.status}: {check.message}"
        for check in result.checks
        if check.status != "pass"
    ]
    return "\n".join(lines)
