"""Every error that onnxprune raises on purpose.

::

    OnnxpruneError
    ├── UsageError                 exit code 2
    │   ├── RecipeError            a recipe or option does not validate
    │   ├── PolicyError            a policy of `check` does not validate
    │   ├── TargetError            the asked sparsity cannot be reached
    │   ├── OutputError            an output cannot be written
    │   ├── CheckpointError        a run directory cannot be resumed
    │   ├── MissingDependencyError an optional package is not installed
    │   └── MissingKernelsError    the library of sparse kernels is not there
    ├── ModelError                 exit code 3
    │   ├── ModelFileError         missing, damaged, too large, or not ONNX
    │   └── UnsupportedModelError  valid ONNX that cannot be handled
    ├── DataError                  exit code 4
    ├── TrainingError              exit code 2, training diverged with this recipe
    └── Interrupted                exit code 5, the run can be resumed

Each says what happened, where, what was found, what was expected and what to do about it.
"""

from typing import Any


class OnnxpruneError(Exception):
    """Base of all errors of onnxprune.

    Args:
        what: One sentence that names the problem.
        where: The file, node, tensor or recipe key that it concerns.
        got: What was found there.
        expected: What would have been right.
        remedy: What the user can do.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.what]
        for label in ("where", "got", "expected", "remedy"):
            value = getattr(self, label)
            if value is not None:
                lines.append(f"  {label}: {value}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all fields, so that an error reaches another process whole."""
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(
    kind: type[OnnxpruneError], args: tuple[Any, ...], fields: dict[str, Any]
) -> OnnxpruneError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class UsageError(OnnxpruneError):
    """An option, or a combination of options, makes no sense."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe does not validate; `problems` holds one line for each finding."""

    def __init__(self, what: str, problems: list[str], *, where: object = None) -> None:
        self.problems = problems
        super().__init__(
            what + "".join(f"\n  - {problem}" for problem in problems),
            where=where,
            remedy="correct these keys; `onnxprune init MODEL` writes a commented recipe",
        )


class PolicyError(UsageError):
    """A policy of `check` does not validate; `problems` holds one line for each finding."""

    def __init__(self, what: str, problems: list[str], *, where: object = None) -> None:
        self.problems = problems
        super().__init__(
            what + "".join(f"\n  - {problem}" for problem in problems),
            where=where,
            remedy="correct these keys; the policy reference lists them all",
        )


class TargetError(UsageError):
    """The sparsity asked for cannot be reached with these tensors, patterns and limits."""


class OutputError(UsageError):
    """An output file or folder cannot be written."""


class CheckpointError(UsageError):
    """A run directory belongs to another run, or none of its checkpoints can be read."""


class MissingDependencyError(UsageError):
    """A package that this command needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package `{package}`, which is not installed",
            remedy=f"pip install 'onnxprune[{extra}]'",
        )


class MissingKernelsError(UsageError):
    """The library of sparse CPU kernels was not built, or ONNX Runtime does not load it."""


class ModelError(OnnxpruneError):
    """Something is wrong with a model."""

    exit_code = 3


class ModelFileError(ModelError):
    """A model file is missing, damaged, too large, or not ONNX."""


class UnsupportedModelError(ModelError):
    """A valid ONNX model that onnxprune cannot handle."""


class DataError(OnnxpruneError):
    """Data are missing, damaged, or do not fit the model."""

    exit_code = 4


class TrainingError(OnnxpruneError):
    """Training diverged with this recipe: the loss is no longer finite."""

    exit_code = 2


class Interrupted(OnnxpruneError):
    """The run was interrupted and can be resumed."""

    exit_code = 5


class DenseSpeedWarning(UserWarning):
    """A pruned model runs in plain ONNX Runtime, which gains nothing from its zeros."""
