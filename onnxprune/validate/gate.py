"""The gate: every demand of a policy checked, none of them passed over.

A demand that could not be checked, because something it needs was not given or cannot be read, is
`skipped`; one whose check ended in an error is `error`. Only `pass` lets an artifact through.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from onnxprune.errors import OnnxpruneError
from onnxprune.validate.file_checks import FILE_CHECKS
from onnxprune.validate.measured_checks import MEASURED_CHECKS
from onnxprune.validate.output_checks import OUTPUT_CHECKS
from onnxprune.validate.policy import Policy
from onnxprune.validate.subject import NotChecked, Subject, Verdict

Status: TypeAlias = Literal["pass", "fail", "error", "skipped"]

CHECKS: dict[str, Callable[[Subject, Any], Verdict]] = FILE_CHECKS | OUTPUT_CHECKS | MEASURED_CHECKS
"""Each demand of a policy as `table.key`, and what checks it."""

EXIT_FAILED, EXIT_INTERNAL = 1, 70


@dataclass(frozen=True)
class CheckResult:
    """What became of one demand.

    Attributes:
        name: `table.key` of the policy; or `policy`, `recipe`, `model`, `baseline` or `data` where
            that cannot be used.
        status: Only `pass` is a pass.
        message: What was found.
        measured: What was compared, as JSON has it; None for none.
        required: What the policy demands.
        seconds: How long it took.
        exit_code: Of an error; 0 for everything else.
    """

    name: str
    status: Status
    message: str
    measured: Any = None
    required: Any = None
    seconds: float = 0.0
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """An entry of `checks` in what `check --json` prints."""
        values = asdict(self)
        del values["exit_code"]
        return values | {"measured": _finite(self.measured), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class GateResult:
    """What became of an artifact.

    Attributes:
        model: The artifact.
        policy: The policy file, or what it was called.
        checks: One entry a demand, and one for each file that cannot be used.
        model_sha256: Digest of the artifact with its external data; None if it cannot be read.
    """

    model: str
    policy: str
    checks: list[CheckResult]
    model_sha256: str | None = None

    @property
    def passed(self) -> bool:
        """Whether there are checks, and all passed."""
        return bool(self.checks) and all(check.status == "pass" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed; if nothing failed, the exit code of the first error."""
        statuses = {check.status for check in self.checks}
        errors = [check.exit_code for check in self.checks if check.status == "error"]
        if self.passed:
            return 0
        return errors[0] if errors and "fail" not in statuses else EXIT_FAILED

    def counts(self) -> dict[Status, int]:
        """Number of checks of each status."""
        statuses: tuple[Status, ...] = ("pass", "fail", "error", "skipped")
        found = [check.status for check in self.checks]
        return {status: found.count(status) for status in statuses}

    def to_json(self) -> dict[str, Any]:
        """The object that `check --json` prints."""
        return {
            "model": self.model,
            "model_sha256": self.model_sha256,
            "policy": self.policy,
            "passed": self.passed,
            "checks": [check.to_json() for check in self.checks],
        }


def run_checks(
    subject: Subject, on_check: Callable[[str], None] = lambda name: None
) -> list[CheckResult]:
    """Check every demand of a subject's policy.

    Args:
        subject: The model, its policy, and what it is compared with.
        on_check: Called with the name of each check before it begins.
    """
    results = []
    for name, required in subject.policy.demands():
        on_check(name)
        started = time.perf_counter()
        result = _checked(name, subject, required)
        results.append(replace(result, seconds=time.perf_counter() - started))
    return results


def _checked(name: str, subject: Subject, required: Any) -> CheckResult:
    try:
        verdict = CHECKS[name](subject, required)
    except NotChecked as reason:
        return CheckResult(name, "skipped", f"not checked: {reason}", required=required)
    except OnnxpruneError as error:
        return failed_with(name, error, required)
    except Exception as error:  # a defect in one check must not cost the report of the others
        if os.environ.get("ONNXPRUNE_DEBUG"):
            raise
        text = f"internal error: {type(error).__name__}: {error}; please report this"
        return CheckResult(name, "error", text, required=required, exit_code=EXIT_INTERNAL)
    status: Status = "pass" if verdict.passed else "fail"
    return CheckResult(name, status, verdict.message, verdict.measured, required)


def failed_with(name: str, error: OnnxpruneError, required: Any = None) -> CheckResult:
    """A check, or a file, that ended in an error."""
    return CheckResult(
        name, "error", str(error), required=required, exit_code=error.exit_code or EXIT_FAILED
    )


def skip_all(policy: Policy, reason: str) -> list[CheckResult]:
    """Every demand of a policy, none of which can be checked."""
    return [
        CheckResult(name, "skipped", f"not checked: {reason}", required=required)
        for name, required in policy.demands()
    ]


def _finite(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
