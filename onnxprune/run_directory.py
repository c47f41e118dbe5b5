"""The run directory: all of its file names, its status, and its log."""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TextIO

from onnxprune.errors import CheckpointError, OutputError, UsageError
from onnxprune.model import atomic_write_text

fcntl: Any = importlib.import_module("fcntl") if sys.platform != "win32" else None
SCHEMA_VERSION = 1
RUN_FILE = "run.json"
RECIPE_FILE = "recipe.toml"
PLAN_FILE = "plan.json"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"
PROBE_FILE = "probe.json"
PROBE_PAGE_FILE = "cascade.html"
CHECK_FILE = "check.json"
"""What `check --json` printed of the run's model, where it was put there."""
MLFLOW_FILE = "mlflow.db"
TRACKER_NAMES = ["onnxprune", MLFLOW_FILE, "mlruns"]
"""What TensorBoard and MLflow write in a run directory."""
Status = Literal["running", "finished", "interrupted", "failed"]


class RunDirectory:
    """A folder that holds one run.

    Attributes:
        path: The folder.
        run: `run.json`: status, and what identifies the run.
        recipe: `recipe.toml`: the resolved recipe.
        plan: `plan.json`: what is pruned, and when.
        log: `metrics.jsonl`: one entry a training step, pruning event and evaluation.
        results: `results.json`: the outcome.
        report: `report.html`: the page.
        checkpoints: Folder of checkpoints.
        lock: Held by the process that works in the folder.
        teacher: `teacher.npz`: the dense model's outputs for the training samples.
        probe: `probe.json`: what `onnxprune cascade` found.
        probe_page: `cascade.html`: the page about that.
        arms: Folder of its finished arms.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / RUN_FILE
        self.recipe = path / RECIPE_FILE
        self.plan = path / PLAN_FILE
        self.log = path / METRICS_FILE
        self.results = path / RESULTS_FILE
        self.report = path / REPORT_FILE
        self.checkpoints = path / "checkpoints"
        self.teacher = path / "teacher.npz"
        self.lock = path / ".lock"
        self.probe = path / PROBE_FILE
        self.probe_page = path / PROBE_PAGE_FILE
        self.arms = path / "arms"

    def check(self, *, resume: bool) -> None:
        """Refuse a folder whose contents a run would destroy or cannot continue.

        Raises:
            UsageError: It holds something else, or an interrupted run and `resume` is not set.
            OutputError: It is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(
                "the run directory is a file", where=self.path, expected="a folder, or no such path"
            )
        parent = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OutputError(
                "the run directory cannot be made",
                where=self.path,
                got=f"{parent} is " + ("read-only" if parent.is_dir() else "a file"),
            )
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        foreign, facts = self._foreign(), self.facts()
        if "run_id" not in facts and (foreign or facts):
            raise UsageError(
                "the run directory holds something that is not a run",
                where=self.path,
                got=", ".join(foreign[:5]) or f"another {RUN_FILE}",
                expected="an empty folder, or the folder of an earlier run",
                remedy="name another --run-dir",
            )
        if not resume and self.checkpoints.is_dir() and self.facts().get("status") != "finished":
            raise UsageError(
                "the run directory holds an unfinished run",
                where=self.path,
                remedy="continue it with --resume, name another --run-dir, or delete the folder",
            )

    def _foreign(self) -> list[str]:
        """What lies here and is no part of a run, nor of one that was killed while it began."""
        names = [file.name for file in (*self._files, self.recipe, self.checkpoints, self.lock)]
        names += [self.arms.name, self.probe.name, self.probe_page.name]
        names += TRACKER_NAMES
        return [
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in names
            and not any(fnmatchcase(entry.name, f".{name}.*.tmp") for name in names)
        ]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder, which is made if need be.

        The lock ends with the process, however that ends.

        Raises:
            UsageError: Another process is at work in it.
            OutputError: The folder cannot be made or written.
        """
        self._make()
        if fcntl is None:
            yield
            return
        with self._opened_lock() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(
                    "another process is at work in the run directory",
                    where=self.path,
                    got=error.strerror,
                    remedy="wait for it to end, or name another --run-dir",
                ) from None
            yield

    def _opened_lock(self) -> TextIO:
        try:
            return self.lock.open("w")
        except OSError as error:
            raise OutputError(
                "the run directory cannot be written", where=self.lock, got=error.strerror
            ) from None

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                "the run directory cannot be made", where=self.path, got=error.strerror
            ) from None

    def start(self, facts: dict[str, Any], recipe_toml: str, *, resume: bool) -> None:
        """Make the folder, clear what an earlier run left unless resuming, and write the basics.

        Raises:
            CheckpointError: `resume`, and the folder belongs to a run with another identity.
            OutputError: It cannot be written.
        """
        known = self.facts().get("run_id")
        if resume and known is not None and known != facts["run_id"]:
            raise CheckpointError(
                "the run directory belongs to a run with another model, recipe or data",
                where=self.path,
                got=self._difference(facts),
                remedy="name another --run-dir, or restore what the run was started with",
            )
        self._make()
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if not resume:
            self._clear()
        self.set_status("running", facts)
        atomic_write_text(self.recipe, recipe_toml)

    def _difference(self, facts: dict[str, Any]) -> str:
        old = self.facts()
        keys = ("source_sha256", "recipe_sha256", "data_sha256", "tool_version")
        return "different " + ", ".join(key for key in keys if old.get(key) != facts.get(key))

    def _clear(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for file in self._files:
            file.unlink(missing_ok=True)

    @property
    def _files(self) -> tuple[Path, ...]:
        return (self.run, self.plan, self.log, self.results, self.report, self.teacher)

    def facts(self) -> dict[str, Any]:
        """What `run.json` holds; empty if it is missing or damaged."""
        try:
            value = json.loads(self.run.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def set_status(self, status: Status, facts: dict[str, Any] | None = None) -> None:
        """Write the status, with facts added to those that stand there already.

        Why an earlier attempt failed is forgotten.
        """
        kept = {key: value for key, value in self.facts().items() if key != "error"}
        kept.update(facts or {})
        self.write_json(self.run, {**kept, "schema_version": SCHEMA_VERSION, "status": status})

    def write_json(self, file: Path, value: object) -> None:
        """Write a JSON file atomically.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            atomic_write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        except OutputError as error:
            raise OutputError(
                "the run directory cannot be written",
                where=file,
                got=error.got,
                remedy=f"{error.remedy}, then continue with --resume",
            ) from None

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry to the log.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(
                "the log cannot be written",
                where=self.log,
                got=error.strerror,
                remedy="free some space, then continue with --resume",
            ) from None

    def entries(self) -> list[dict[str, Any]]:
        """The log's entries in order; a line that a crash cut off is left out."""
        if not self.log.is_file():
            return []
        return [entry for _, entry in self._lines()]

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "kind" in entry:
                yield line, entry

    def rewind_log(self, step: int, sparsity: float, rollbacks: int) -> None:
        """Drop log entries that a run writes again that goes on from an earlier step.

        Args:
            step: Optimizer steps done where it goes on.
            sparsity: Of the masks there; it tells whether a pruning event between two steps is
                done.
            rollbacks: How often the run was rolled back up to there.
        """
        if not self.log.is_file():
            return
        kept = []
        for line, entry in self._lines():
            try:
                if entry["kind"] == "rollback":
                    done, rollbacks = rollbacks > 0, rollbacks - 1
                elif entry["kind"] == "event":
                    done = entry["sparsity"] <= sparsity
                elif entry["kind"] == "wait":
                    # The event of a checkpoint's own step comes after it.
                    done = entry["step"] < step
                else:
                    done = entry["step"] <= step
            except (KeyError, TypeError):
                continue
            if done:
                kept.append(line)
        atomic_write_text(self.log, "".join(line + "\n" for line in kept))
