"""The tables of a policy, see `policy`: their keys, and which of them demand something."""

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from onnxprune.errors import UsageError
from onnxprune.pattern_text import block_of, nm_of
from onnxprune.recipe_tables import Table
from onnxprune.validate.named_metrics import (
    LESS_IS_BETTER,
    NAMES,
    average_precision_of,
    is_built_in,
    make_metrics,
)

_FUNCTION = re.compile(r"python:[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PolicyTable(Table):
    """A table of the policy.

    Attributes:
        DEMANDS: The keys that demand something, in the order in which they are checked; the others
            say how.
    """

    DEMANDS: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _demands_something(self) -> Self:
        if self.DEMANDS and self.model_fields_set.isdisjoint(self.DEMANDS):
            raise ValueError(f"demands nothing; set one of: {', '.join(self.DEMANDS)}")
        return self

    def demands(self) -> Iterator[tuple[str, Any]]:
        """Each key that demands something, with what it demands."""
        for key in self.DEMANDS:
            value = getattr(self, key)
            if value is not None and value is not False and value != {}:
                yield key, value


class InputsPolicy(PolicyTable):
    """`[inputs]`: inputs that are made up, for `[outputs]`, `[latency]` and `[memory]`."""

    shapes: dict[str, list[int]] = Field(
        {}, description="Input name = whole shape, for axes that the model leaves open."
    )

    @field_validator("shapes")
    @classmethod
    def _sizes(cls, value: dict[str, list[int]]) -> dict[str, list[int]]:
        for name, shape in value.items():
            if any(size < 1 for size in shape):
                raise ValueError(f"{name!r}: sizes are at least 1, got {shape}")
        return value


class SparsityPolicy(PolicyTable):
    """`[sparsity]`: zeros and their pattern, counted in the file."""

    DEMANDS: ClassVar[tuple[str, ...]] = ("min", "per_tensor_min", "pattern")

    min: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Zeros / weights over all tensors in scope, as operators multiply with them, "
        "at least.",
    )
    per_tensor_min: dict[str, float] = Field(
        {},
        description="Glob over tensor names, or `op:TYPE` = zeros / weights of each tensor in "
        "scope, at least; of several globs that match, the last holds. A glob that matches nothing "
        "fails.",
    )
    pattern: str | None = Field(
        None,
        description="N:M or block:RxC, which every tensor in scope has to keep whose size allows "
        "it.",
    )
    include: list[str] = Field(
        ["*"],
        description="Scope of this table: globs over the names of tensors that are prunable by "
        "default, or `op:TYPE`; an exact name adds any other trained tensor.",
    )
    exclude: list[str] = Field([], description="Globs of tensors that are not in scope.")

    @field_validator("per_tensor_min")
    @classmethod
    def _fractions(cls, value: dict[str, float]) -> dict[str, float]:
        for glob, least in value.items():
            if not 0 <= least <= 1:
                raise ValueError(f"{glob!r}: a sparsity lies in [0, 1], got {least}")
        return value

    @field_validator("pattern")
    @classmethod
    def _pattern_exists(cls, value: str | None) -> str | None:
        if value == "unstructured":
            raise ValueError("every file keeps to it; leave the key out")
        if value is not None and nm_of(value) is None and block_of(value) is None:
            raise ValueError(
                "needs N:M with 1 <= N < M, or block:RxC with sides of at most 64 and more than "
                "one weight"
            )
        return value


class MetadataPolicy(PolicyTable):
    """`[metadata]`: what the file says of itself."""

    DEMANDS: ClassVar[tuple[str, ...]] = ("required", "true_to_file", "source_sha256")

    required: bool = Field(False, description="The file has sparsity metadata.")
    true_to_file: bool = Field(
        False,
        description="It has, and every statement holds that the file can answer: computed again "
        "from it and, with `--baseline`, compared with the dense model.",
    )
    source_sha256: str | None = Field(
        None,
        description="Digest of the dense model's file that the metadata have to name; "
        '"baseline": that of the file given as `--baseline`.',
    )

    @field_validator("source_sha256")
    @classmethod
    def _digest(cls, value: str | None) -> str | None:
        if value is not None and value != "baseline" and not _SHA256.fullmatch(value):
            raise ValueError('needs 64 hexadecimal digits in lower case, or "baseline"')
        return value


class SignaturePolicy(PolicyTable):
    """`[signature]`: what callers of the model rely on."""

    DEMANDS: ClassVar[tuple[str, ...]] = ("same_as_baseline", "same_graph")

    same_as_baseline: bool = Field(
        False,
        description="Inputs and outputs have the names, order, types and shapes of the dense "
        "model's, open axes and their names included; the operator sets are the same, and the IR "
        "version is no newer.",
    )
    same_graph: bool = Field(
        False,
        description="Nodes, their attributes and order, inputs, outputs and operator sets are the "
        "dense model's, and so are types and shapes of all tensors and values of those that are "
        "not trained. For files that were pruned, not for shrunk or compiled ones.",
    )


class OutputsPolicy(PolicyTable):
    """`[outputs]`: that the model loads and runs."""

    DEMANDS: ClassVar[tuple[str, ...]] = ("providers", "finite")

    providers: list[str] | None = Field(
        None,
        min_length=1,
        description="Execution providers on which it loads and runs, each doing at least one node "
        "itself. Where the key is left out, `finite` uses that of `--provider`.",
    )
    finite: bool = Field(
        False,
        description="No trained value is NaN or infinite, and no output on random, zero and "
        "extreme inputs. With `--baseline`, an output on zero or extreme inputs may be where the "
        "dense model's is, too.",
    )


class AccuracyPolicy(PolicyTable):
    """`[accuracy]`: accuracy on labelled data, as far as it is certain."""

    DEMANDS: ClassVar[tuple[str, ...]] = ("min", "max", "max_drop")

    metric: str = Field(
        "top1",
        description="top1, top5, cer (character error rate, CTC), miou (mean intersection over "
        "union), map or map50 (mean average precision of a detector, with parameters as in "
        "`map?format=cxcywh`), or python:package.module:function, whose mean is better the higher "
        "it is.",
    )
    min: float | None = Field(
        None, ge=0, le=1, description="Accuracy at least: the lower bound has to reach it."
    )
    max: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Of cer, which is better the lower it is: the upper bound has to stay within "
        "it.",
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Accuracy of the dense model minus that of this one, on the same samples, at "
        "most: the upper bound has to stay within it. 0.01 is one point. Of cer, what is added.",
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="One-sided confidence of these bounds, in (0.5, 1)."
    )

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, value: str) -> str:
        if is_built_in(value):
            _make(lambda: make_metrics([value]))
        elif value not in ("top1", "top5") and not _FUNCTION.fullmatch(value):
            raise ValueError(
                f"needs top1, top5, {', '.join(NAMES)}, or python:package.module:function"
            )
        return value

    @model_validator(mode="after")
    def _direction(self) -> Self:
        wrong = "min" if self.metric in LESS_IS_BETTER else "max"
        if getattr(self, wrong) is not None:
            better = "lower" if wrong == "min" else "higher"
            raise ValueError(f"{self.metric} is better the {better} it is; `{wrong}` has no sense")
        return self


class AgreementPolicy(PolicyTable):
    """`[agreement]`: how close the outputs stay to the dense model's on data without labels."""

    DEMANDS: ClassVar[tuple[str, ...]] = (
        *("min", "min_cosine", "min_sqnr_db"),
        *("max_mean_abs_error", "max_abs_error"),
    )

    min: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of samples with the same class, at least; of a detector, average "
        "precision with the dense model's boxes as targets.",
    )
    metric: str | None = Field(
        None,
        description="map or map50, with parameters as in `[accuracy] metric`, where the model is a "
        "detector; else that of `[accuracy]`.",
    )
    conf: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Score from which on a box of the dense model is a target, 0.25 if left out; "
        "of detectors only.",
    )
    min_cosine: float | None = Field(
        None, ge=-1, le=1, description="Mean cosine of the outputs, at least."
    )
    min_sqnr_db: float | None = Field(
        None, description="Signal to difference of the outputs in decibels, at least."
    )
    max_mean_abs_error: float | None = Field(
        None, ge=0, description="Mean difference of a value of the output, at most."
    )
    max_abs_error: float | None = Field(
        None, ge=0, description="Largest difference of a value of the output, at most."
    )

    @field_validator("metric")
    @classmethod
    def _metric_of_detectors(cls, value: str | None) -> str | None:
        if value is not None:
            _make(lambda: average_precision_of(value))
        return value


class LatencyPolicy(PolicyTable):
    """`[latency]`: speed against the dense model, measured in turns."""

    DEMANDS: ClassVar[tuple[str, ...]] = ("min_speedup",)

    min_speedup: float | None = Field(
        None,
        gt=0,
        description="Latency of the dense model / that of this one: the lower end of the 95 % "
        "interval has to reach it.",
    )
    threads: int | None = Field(None, ge=1, description="Threads; else those of `--threads`.")
    batch: int = Field(1, ge=1, description="Samples a call.")
    provider: str | None = Field(None, description="Execution provider; else that of `--provider`.")
    seconds: float = Field(20.0, gt=0, description="Longest time to measure, in seconds.")


class SizePolicy(PolicyTable):
    """`[size]`: size of the file with its external data."""

    DEMANDS: ClassVar[tuple[str, ...]] = ("max_bytes", "max_ratio")

    max_bytes: int | None = Field(None, ge=1, description="Bytes at most.")
    max_ratio: float | None = Field(
        None, gt=0, description="Size / that of the dense model, at most."
    )


class MemoryPolicy(PolicyTable):
    """`[memory]`: memory that the model takes at most to load and to run, batch size 1.

    Measured in a process of its own, beyond what ONNX Runtime takes without a model; on Linux.
    """

    DEMANDS: ClassVar[tuple[str, ...]] = ("max_bytes", "max_ratio")

    max_bytes: int | None = Field(None, ge=1, description="Bytes at most.")
    max_ratio: float | None = Field(
        None, gt=0, description="Memory / that of the dense model, at most."
    )


def _make(make: Callable[[], object]) -> None:
    """Try to make a metric; what is wrong becomes a problem of the policy."""
    try:
        make()
    except UsageError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(", ".join(lines)) from None
