"""Experiment trackers, by way of accelerate: they are told of settings, losses and metrics."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from onnxprune.errors import UsageError
from onnxprune.run_directory import MLFLOW_FILE

_STORE = "MLFLOW_TRACKING_URI"


class Tracking:
    """The trackers of one run, on its first process. Once training, they cannot end it.

    TensorBoard writes in the run directory. MLflow tells its server where one is named, and else
    writes in the run directory, too; its own default would be the working directory.

    Args:
        accelerator: Made for the same trackers.
        trackers: `[finetune] track`.
        folder: The run directory.
        on_message: Called with what the user should know.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        trackers: Sequence[str],
        folder: Path,
        on_message: Callable[[str], None],
    ) -> None:
        self.accelerator = accelerator
        self.trackers = list(trackers)
        self.folder = folder
        self.on_message = on_message
        self._named_store = False

    def start(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Begin, with the settings of the run by table and key.

        Raises:
            UsageError: A tracker cannot be started, for example since its server is not there.
        """
        if not self.trackers:
            return
        flat = {f"{t}.{key}": str(v) for t, keys in tables.items() for key, v in keys.items()}
        options = {"mlflow": self._mlflow_options()} if "mlflow" in self.trackers else {}
        try:
            self.accelerator.init_trackers("onnxprune", config=flat, init_kwargs=options)
        except Exception as error:  # trackers raise whatever their servers and files do
            self.accelerator.trackers.clear()
            raise UsageError(
                "a tracker cannot be started",
                where=f"[finetune] track = {self.trackers}",
                got=_reason(error),
                remedy="see that its server can be reached, or leave it out",
            ) from error

    def _mlflow_options(self) -> dict[str, str]:
        """Options of MLflow's tracker; without a server named, it is led to the run directory."""
        import mlflow

        options = {"run_name": os.environ.get("MLFLOW_RUN_NAME", self.folder.name)}
        if mlflow.is_tracking_uri_set():
            return options
        folder = self.folder.absolute()
        os.environ[_STORE] = f"sqlite:///{(folder / MLFLOW_FILE).as_posix()}"
        self._named_store = True
        return {**options, "logging_dir": (folder / "mlruns").as_uri()}

    def record(self, entry: Mapping[str, Any]) -> None:
        """Tell the numbers of a log entry."""
        if self.trackers:
            self._attempt(lambda: self.accelerator.log(_numbers(entry), step=entry["step"]))

    def close(self) -> None:
        """End the trackers, which are complete then."""
        for tracker in list(self.accelerator.trackers):
            self._attempt(tracker.finish)
        self.accelerator.trackers.clear()
        if self._named_store:
            os.environ.pop(_STORE, None)

    def _attempt(self, call: Callable[[], object]) -> None:
        """Tell something; where that fails, nothing more is told, and the run goes on."""
        try:
            call()
        except Exception as error:
            names = ", ".join(self.trackers)
            self.trackers.clear()
            self.accelerator.trackers.clear()
            self.on_message(
                f"{names} cannot be told any more ({_reason(error)}); the run goes on, and its log "
                "holds everything"
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log entry under names that trackers show by group."""
    kind = entry["kind"]
    values = {**entry, **entry.get("metrics", {})}
    return {
        f"{kind}/{key}": value
        for key, value in values.items()
        if isinstance(value, int | float) and key != "step"
    }
