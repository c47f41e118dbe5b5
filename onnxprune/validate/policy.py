"""The policy of `check`: what an artifact has to keep to, in one TOML file.

Unknown keys are errors, all problems are reported at once, and so is a policy, or a table of it,
that demands nothing: a gate that checks nothing must not pass. A key that is left out is not
checked. Thresholds are fractions in [0, 1].
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError, model_validator

from onnxprune.errors import PolicyError
from onnxprune.recipe_tables import Table
from onnxprune.toml import allowed_here, read_settings
from onnxprune.validate.named_metrics import is_of_detectors
from onnxprune.validate.policy_tables import (
    AccuracyPolicy,
    AgreementPolicy,
    InputsPolicy,
    LatencyPolicy,
    MemoryPolicy,
    MetadataPolicy,
    OutputsPolicy,
    PolicyTable,
    SignaturePolicy,
    SizePolicy,
    SparsityPolicy,
)


class Policy(Table):
    """A whole policy. See the attributes' classes for the tables' keys."""

    inputs: InputsPolicy | None = None
    sparsity: SparsityPolicy | None = None
    metadata: MetadataPolicy | None = None
    signature: SignaturePolicy | None = None
    outputs: OutputsPolicy | None = None
    accuracy: AccuracyPolicy | None = None
    agreement: AgreementPolicy | None = None
    latency: LatencyPolicy | None = None
    size: SizePolicy | None = None
    memory: MemoryPolicy | None = None

    @property
    def detector_metric(self) -> str | None:
        """The metric by which `[agreement]` compares detectors; None if they are none."""
        if self.agreement is None:
            return None
        if self.agreement.metric is not None:
            return self.agreement.metric
        metric = self.accuracy.metric if self.accuracy is not None else ""
        return metric if is_of_detectors(metric) else None

    @model_validator(mode="after")
    def _detectors(self) -> Self:
        """Boxes are compared as boxes, in one pass with their accuracy."""
        if self.agreement is None:
            return self
        if self.detector_metric is None:
            if self.agreement.conf is not None:
                raise ValueError('agreement.conf: is about detectors; set metric = "map", too')
            return self
        for key in AgreementPolicy.DEMANDS[1:]:
            if getattr(self.agreement, key) is not None:
                raise ValueError(
                    f"agreement.{key}: cannot be measured of boxes, which differ in number and "
                    f"order; demand `min` instead, or put {key} into a policy without "
                    f"metric = {self.detector_metric!r}"
                )
        if self.accuracy is not None and not is_of_detectors(self.accuracy.metric):
            raise ValueError(
                f"agreement.metric: {self.agreement.metric!r} cannot be measured beside "
                f"[accuracy] metric = {self.accuracy.metric!r}; leave it out, or put one of them "
                "into a policy of its own"
            )
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: object = None) -> Self:
        """Validate a policy given as nested dictionaries.

        Raises:
            PolicyError: It lists every problem with its key and what would be allowed; also where
                the policy demands nothing.
        """
        try:
            policy = cls.model_validate(values)
        except ValidationError as error:
            raise PolicyError(
                "the policy does not validate", _problems(error), where=where
            ) from None
        if not list(policy.demands()):
            tables = [name for name, table in table_classes() if table.DEMANDS]
            problem = f"set a key of one of these tables: {', '.join(tables)}"
            raise PolicyError("the policy demands nothing", [problem], where=where)
        return policy

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy file.

        Raises:
            UsageError: The file is missing.
            PolicyError: It is no TOML, does not validate, or demands nothing.
        """
        path = Path(path)
        remedy = "write one, such as\n[sparsity]\nmin = 0.8\n[metadata]\ntrue_to_file = true"
        values = read_settings(path, "policy", PolicyError, remedy)
        return cls.from_dict(values, where=path)

    def demands(self) -> Iterator[tuple[str, Any]]:
        """Each demand as `table.key`, with its value, in the order of the tables."""
        for name, _ in table_classes():
            table: PolicyTable | None = getattr(self, name)
            if table is not None:
                yield from ((f"{name}.{key}", value) for key, value in table.demands())


def table_classes() -> Iterator[tuple[str, type[PolicyTable]]]:
    """Name and class of every table."""
    for name, field in Policy.model_fields.items():
        (table,) = [kind for kind in field.annotation.__args__ if kind is not type(None)]  # type: ignore[union-attr]
        yield name, table


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            problems.append(
                f"{key}: unknown key; {allowed_here(item['loc'][-1], _allowed(item['loc']))}"
            )
        elif isinstance(item["input"], BaseModel | Mapping):
            problems.append(f"{key}: {message}" if key else message)
        else:
            problems.append(f"{key}: {message} (got {item['input']!r})")
    return problems


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    tables = dict(table_classes())
    table = tables.get(str(location[0])) if len(location) > 1 else None
    return list(table.model_fields if table is not None else tables)
