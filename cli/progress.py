"""Progress of long work: live bars on a terminal, a few plain lines elsewhere."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from onnxprune.cli.common import duration_text

_QUIET_SECONDS = 30.0
_SPEED_SECONDS = 600.0
"""Time left follows the speed over so long, so that an evaluation in between hardly shows in it."""


class ProgressView:
    """Shows the entries that `pipeline.prune` and `probe.probe` report.

    On a terminal it draws one bar a stage, and for a probe one over the steps of all arms;
    elsewhere it prints stages, arms, evaluations and messages, and a training line now and then.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
            disable=not self.live,
            speed_estimate_period=_SPEED_SECONDS,
        )
        self._task: TaskID | None = None
        self._all_arms: TaskID | None = None
        self._steps_before = 0
        self._stage = ""
        self._metrics = ""
        self._printed = 0.0

    def __enter__(self) -> "ProgressView":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, entry: dict[str, Any]) -> None:
        """Show one entry."""
        getattr(self, f"_on_{entry['kind']}")(entry)

    def _on_stage(self, entry: dict[str, Any]) -> None:
        self._stage = entry["name"]
        if self._task is not None:
            self._bars.update(self._task, visible=True, refresh=True)
        self._task = self._bars.add_task(self._stage, total=None, facts="")
        if not self.live:
            self.console.print(f"{self._stage} …")

    def _on_arm(self, entry: dict[str, Any]) -> None:
        """An arm of a probe begins; those that were finished before count as done."""
        steps, total = entry["steps"], entry["total"]
        self._steps_before = entry["done"] * steps
        if self._all_arms is None:
            self._all_arms = self._bars.add_task(
                "all arms", completed=self._steps_before, total=total * steps, facts=""
            )
        number = f"arm {entry['done'] + 1} of {total}"
        self._bars.update(self._all_arms, completed=self._steps_before, facts=number)
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._stage = f"{entry['name']}, seed {entry['seed']}"
        self._metrics = ""
        self._task = self._bars.add_task(f"  {self._stage}", total=steps, facts="")
        if not self.live:
            self.console.print(f"{number}: {self._stage}{self._time_left()}")

    def _time_left(self) -> str:
        """How long all arms will still take, once that can be told."""
        if self._all_arms is None:
            return ""
        (task,) = (task for task in self._bars.tasks if task.id == self._all_arms)
        seconds = task.time_remaining
        return "" if seconds is None else f"; about {duration_text(seconds)} left for all arms"

    def _on_work(self, entry: dict[str, Any]) -> None:
        self._update(entry["done"], entry["total"], "")

    def _on_train(self, entry: dict[str, Any]) -> None:
        step, progress = entry["step"], entry["progress"]
        total = round(step / progress) if progress else step
        facts = (
            f"loss {entry['loss']:.4f}  sparsity {100 * entry['sparsity']:.1f} %  "
            f"{entry['images_per_s']:.1f} samples/s{self._metrics}"
        )
        self._update(step, total, facts)
        if self._all_arms is not None:
            self._bars.update(self._all_arms, completed=self._steps_before + step)
        if not self.live and time.monotonic() - self._printed > _QUIET_SECONDS:
            self._printed = time.monotonic()
            self.console.print(f"  step {step}/{total}  {facts}{self._time_left()}")

    def _on_event(self, entry: dict[str, Any]) -> None:
        return

    def _on_wait(self, entry: dict[str, Any]) -> None:
        self.console.print(
            f"  step {entry['step']}  sparsity {100 * entry['sparsity']:.1f} % of "
            f"{100 * entry['target_sparsity']:.1f} % due: {entry['put_off']} weights wait, since "
            "more and more are shed"
        )

    def _on_shed(self, entry: dict[str, Any]) -> None:
        return

    def _on_rollback(self, entry: dict[str, Any]) -> None:
        """A message tells of it."""
        self._metrics = ""

    def _on_eval(self, entry: dict[str, Any]) -> None:
        measured = entry["metrics"]
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in measured.items())
        self._metrics = "".join(f"  {n} {v:.3f}" for n, v in measured.items() if n != "loss")
        self.console.print(
            f"  step {entry['step']}  sparsity {100 * entry['sparsity']:.1f} %  {metrics}"
        )

    def _on_message(self, entry: dict[str, Any]) -> None:
        self.console.print(f"note: {entry['text']}")

    def _update(self, done: int, total: int, facts: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total, facts=facts)
