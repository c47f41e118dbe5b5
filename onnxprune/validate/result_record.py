"""What `bench --json` and `check --json` printed, read from a file and checked."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onnxprune.errors import UsageError
from onnxprune.validate.record_files import read_json, validated
from onnxprune.validate.run_record import ModelCostRecord, ModelLatency

_REMEDY = "write it with `onnxprune bench ... --json > FILE`, or check instead of bench"


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class OperatorRow(_Lenient):
    """Time of one operator in a call."""

    op_type: str
    nodes: int
    ms: float
    share: float


class BenchedModel(ModelLatency):
    """One model of a bench, with what older results leave out."""

    size_bytes: int | None = None
    throughput_per_s: float | None = None
    peak_memory_bytes: int | None = None
    reason: str | None = None
    operators: list[OperatorRow] | None = None
    cost: ModelCostRecord | None = None
    quantiles_ms: list[float] = Field([])
    ratio_quantiles: list[float] = Field([])


class BenchedBatch(_Lenient):
    """A bench at one batch size; the first model is the baseline."""

    batch: int | None = None

    conclusive: bool | None = None
    verdict: str | None = None
    environment: dict[str, Any] = {}
    models: list[BenchedModel] = Field(min_length=1)


class BenchRecord(BenchedBatch):
    """What `bench --json` printed: the first batch size, and every one where there are several."""

    batches: list[BenchedBatch] = []


class CheckedDemand(_Lenient):
    """One check of a gate."""

    name: str
    status: Literal["pass", "fail", "error", "skipped"]
    message: str
    measured: Any = None
    required: Any = None
    seconds: float | None = None


class GateRecord(_Lenient):
    """What `check --json` printed."""

    passed: bool
    checks: list[CheckedDemand]
    model: str | None = None
    policy: str | None = None
    model_sha256: str | None = None

    @property
    def ships(self) -> bool:
        """Whether nothing but passes stands there, whatever the file claims."""
        return self.passed and bool(self.checks) and all(c.status == "pass" for c in self.checks)


def read_result(path: Path) -> BenchRecord | GateRecord:
    """Read the result of a bench or of a gate.

    Args:
        path: A JSON file of at most 256 MiB.

    Raises:
        UsageError: It is neither, or it is missing or damaged.
    """
    try:
        return _read(path)
    except UsageError as error:
        raise UsageError(
            error.what, where=path, got=error.got, expected=error.expected, remedy=_REMEDY
        ) from None


def read_gate(path: Path) -> GateRecord:
    """Read the result of a gate.

    Args:
        path: A JSON file of at most 256 MiB.

    Raises:
        UsageError: It is something else, or it is missing or damaged.
    """
    record = read_result(path)
    if isinstance(record, GateRecord):
        return record
    raise UsageError(
        "this is not the result of a check",
        where=path,
        got="the result of a bench",
        expected="what check prints with --json",
        remedy="write it with `onnxprune check ... --json > FILE`",
    )


def _read(path: Path) -> BenchRecord | GateRecord:
    value = read_json(path)
    if "checks" in value:
        return validated(GateRecord, value, path)
    if "models" in value and "conclusive" in value:
        return validated(BenchRecord, value, path)
    raise UsageError(
        "this file is not a result that a page can be made of",
        got=f"keys {', '.join(sorted(map(str, value))[:8]) or 'none'}",
        expected="what bench or check prints with --json",
    )
