"""The recipe: everything that decides what a run does, in one TOML file.

Unknown keys are errors, and all problems are reported at once. Units stand in each field's text.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import (
    Field,
    ValidationError,
)

from onnxprune.errors import RecipeError
from onnxprune.pattern_text import PATTERN_FORMS, PATTERN_TEXT, pattern_sparsity
from onnxprune.recipe_tables import (
    LOSS_FORMS,
    LOSS_TEXT,
    AugmentTable,
    CascadeTable,
    DataTable,
    DistillTable,
    ExportTable,
    FinetuneTable,
    ModelTable,
    Preprocess,
    ScheduleTable,
    SparsityTable,
    Table,
    ValidateTable,
)
from onnxprune.toml import allowed_here, merged, read_settings, toml_text

__all__ = [
    "AugmentTable",
    "CascadeTable",
    "DataTable",
    "DistillTable",
    "ExportTable",
    "FinetuneTable",
    "ModelTable",
    "Preprocess",
    "Recipe",
    "ScheduleTable",
    "SparsityTable",
    "ValidateTable",
    "pattern_sparsity",
]


class Recipe(Table):
    """A whole recipe. See the attributes' classes for the tables' keys."""

    model: ModelTable = ModelTable()
    data: DataTable = DataTable()
    preprocess: Preprocess = Preprocess()
    augment: AugmentTable = AugmentTable()
    sparsity: SparsityTable = SparsityTable()
    schedule: ScheduleTable = ScheduleTable()
    cascade: CascadeTable = CascadeTable()
    finetune: FinetuneTable = FinetuneTable()
    distill: DistillTable = DistillTable()
    export: ExportTable = ExportTable()
    validation: ValidateTable = Field(ValidateTable(), alias="validate")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: object = None) -> Self:
        """Validate a recipe given as nested dictionaries.

        Raises:
            RecipeError: It lists every problem with its key and what would be allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(
                "the recipe does not validate", _problems(error), where=where
            ) from None

    @classmethod
    def from_toml(
        cls,
        path: str | os.PathLike[str],
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """Read a recipe file and replace the keys in `overrides` (table name -> key -> value).

        Raises:
            UsageError: The file is missing.
            RecipeError: It is no TOML, or does not validate.
        """
        path = Path(path)
        remedy = "`onnxprune init MODEL -o recipe.toml` writes one"
        values = read_settings(path, "recipe", RecipeError, remedy)
        return cls.from_dict(merged(values, overrides or {}), where=path)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of JSON values, without the keys that are None.

        Of `[preprocess]`, whose missing keys follow the model, only keys that were set appear.
        """
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        values["preprocess"] = self.preprocess.model_dump(
            mode="json", exclude_none=True, exclude_unset=True
        )
        return values

    def to_toml(self) -> str:
        """The whole recipe as TOML; `from_toml` reads it back equal."""
        return toml_text(self.to_dict())

    def portable(self) -> dict[str, Any]:
        """What shapes the result: the recipe without paths, machine choices and measurements.

        Data specs are left out (data are named by their content digest), and so is everything
        that says where and how fast to compute, not what.
        """
        values = self.to_dict()
        for key in ("train", "eval", "max_corrupt"):
            values["data"].pop(key, None)
        for key in _WHERE_AND_HOW_FAST:
            values["finetune"].pop(key, None)
        values.pop("validate", None)
        return values

    def sha256(self) -> str:
        """Digest of `portable()`."""
        text = json.dumps(self.portable(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


_WHERE_AND_HOW_FAST = (
    *("device", "threads", "workers", "checkpoint_seconds", "track"),
    *("compile", "channels_last", "sharding"),
)


_FORMS = {LOSS_TEXT: LOSS_FORMS, PATTERN_TEXT: PATTERN_FORMS}


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            problems.append(
                f"{key}: unknown key; {allowed_here(item['loc'][-1], _allowed(item['loc']))}"
            )
        elif item["type"] == "string_pattern_mismatch":
            forms = _FORMS[item["ctx"]["pattern"]]
            problems.append(f"{key}: must be {forms} (got {item['input']!r})")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{key}: {message} (got {item['input']!r})")
    return problems


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    fields = Recipe.model_fields
    if len(location) > 1:
        table = next((f for name, f in fields.items() if location[0] in (name, f.alias)), None)
        if table is not None and isinstance(table.annotation, type):
            return list(table.annotation.model_fields)
    return [field.alias or name for name, field in fields.items()]
