"""Many jobs, none of them twice: a journal of what is done, and processes that do the rest."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

from journal import Entry, Journal, digest
from runs import Run, Workplace, dense_run, execute
from scales import Options

from onnxprune.errors import Interrupted


class Unfinished(SystemExit):
    """The time is up before all jobs are done."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(
            f"the time is up: {done} of {total} jobs are done; the same command goes on, and "
            "--partial writes results of what is there"
        )


@dataclass(frozen=True)
class Job:
    """Something to be done once.

    Attributes:
        key: Its settings, as JSON values.
        work: Does it, in another process perhaps; is given a function that says when to stop.
        label: For people.
    """

    key: dict[str, Any]
    work: Callable[[Callable[[], bool]], Entry]
    label: str


class Lab:
    """Does jobs of an experiment, as many at a time as its scale says."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.scale = options.scale
        self.place = Workplace(options.scale, options.work, options.fashion)
        self.journal = Journal(options.work / "journal.jsonl")

    def runs(self, runs: Sequence[Run]) -> list[Entry | None]:
        """Entries of runs, in their order; dense models are trained first.

        Raises:
            Unfinished: The time is up, and `--partial` is not set; with it, None stands for what is
                missing.
        """
        for data in dict.fromkeys(run.data for run in runs):
            self.place.parts(data)
        for run in runs:
            if run.start == "untrained":
                self.place.untrained(run.network, run.data, run.seed)
        pruned = [run for run in runs if run.start == "dense"]
        self.train_dense((run.network, run.data, run.seed) for run in pruned)
        return self.jobs([self._job(run) for run in runs])

    def train_dense(self, wanted: Iterator[tuple[str, str, int]]) -> list[Entry | None]:
        """Train the dense models of networks, data sets and seeds that are not there."""
        chosen = [dense_run(*item, self.scale) for item in dict.fromkeys(wanted)]
        for run in chosen:
            self.place.parts(run.data)
            self.place.untrained(run.network, run.data, run.seed)
        return self.jobs(
            [self._job(run) for run in chosen],
            there=[self.place.output(run).is_file() for run in chosen],
        )

    def jobs(self, jobs: Sequence[Job], there: Sequence[bool] | None = None) -> list[Entry | None]:
        """Entries of jobs, in their order; only those that the journal lacks are done.

        Args:
            jobs: What is wanted.
            there: Whether the files that a job leaves are still there; an entry without them does
                not count.

        Raises:
            Unfinished: See `runs`.
        """
        present = [True] * len(jobs) if there is None else there
        missing = {
            digest(job.key): job
            for job, is_there in zip(jobs, present, strict=True)
            if self.journal.find(job.key) is None or not is_there
        }
        left = list(missing.values())
        if left:
            print(f"{len(left)} of {len(jobs)} jobs to do", flush=True)
            finished = self._do(left)
            if finished < len(left) and not self.options.partial:
                raise Unfinished(len(jobs) - len(left) + finished, len(jobs))
        return [self.journal.find(job.key) for job in jobs]

    def _job(self, run: Run) -> Job:
        label = f"{run.network} {run.data} {run.method} {run.sparsity:g} seed {run.seed}"
        work = partial(_execute, run, self.place)
        return Job(run.key(self.scale), work, label)

    def _do(self, jobs: list[Job]) -> int:
        """How many were finished before the time was up."""
        deadline = self.options.deadline
        finished = 0
        waiting, running = list(reversed(jobs)), dict[Future[Any], Job]()
        workers = max(1, min(self.scale.workers, len(jobs)))
        with _pool(self.scale.workers, workers) as submit:
            while waiting or running:
                while waiting and len(running) < workers and not _is_over(deadline):
                    job = waiting.pop()
                    running[submit(_attempt, job, deadline)] = job
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    entry = future.result()
                    if entry is None:
                        continue
                    self.journal.add(job.key, entry)
                    finished += 1
                    _tell(job, entry, len(waiting) + len(running))
        return finished


def _execute(run: Run, place: Workplace, stop: Callable[[], bool]) -> Entry:
    return execute(run, place, stop)


def _attempt(job: Job, deadline: float | None) -> Entry | None:
    """Do a job; None if the time was up before."""
    try:
        return job.work(partial(_is_over, deadline))
    except Interrupted:
        return None
    except Exception as error:
        # The process that asked cannot see where it happened.
        raise RuntimeError(f"{job.label}: {traceback.format_exc()}") from error


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.time() > deadline


@contextmanager
def _pool(asked: int, workers: int) -> Iterator[Callable[..., Future[Any]]]:
    """Something to submit calls to: processes, or this one if none are asked for."""
    if asked == 0:
        yield _at_once
        return
    # Processes that are forked would share the thread pools of the libraries.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin) as pool:
        yield pool.submit


def _at_once(call: Callable[..., Any], *arguments: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(call(*arguments))
    return future


def _begin() -> None:
    """One thread a process: as many processes as cores use them better."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    import torch

    torch.set_num_threads(1)


def _tell(job: Job, entry: Entry, left: int) -> None:
    shown = {
        key: entry[key] for key in ("accuracy", "verdict", "failed", "seconds") if key in entry
    }
    print(f"{job.label}: {json.dumps(shown)}; {left} left", flush=True)
