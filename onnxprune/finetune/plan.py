"""When things happen in a run, in optimizer steps."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Course:
    """A stretch of training with a course of the learning rate of its own.

    Attributes:
        start: Its first step.
        steps: Its length, at least 1.
        skipped: Steps at the beginning of the course that are left out, as rewinding to a later
            point than its beginning does.
    """

    start: int
    steps: int
    skipped: int = 0

    def progress(self, step: float) -> float:
        """Progress through the course at a step of the run, in [0, 1]."""
        return (self.skipped + step - self.start) / (self.skipped + self.steps)


@dataclass(frozen=True)
class Plan:
    """When things happen, in optimizer steps.

    Attributes:
        total_steps: Steps of the whole run, at least 0.
        steps_per_epoch: At least 1.
        events: Step -> number of masked weights from then on, before that step's update.
        evaluations: Steps after which accuracy is measured.
        courses: Courses of the learning rate, in order and without gaps; empty for a single one.
        rewind_point: Step whose weights the courses after it begin with; None if they go on with
            those that they find.
    """

    total_steps: int
    steps_per_epoch: int
    events: dict[int, int]
    evaluations: frozenset[int] = frozenset()
    courses: tuple[Course, ...] = ()
    rewind_point: int | None = None

    def course(self, step: float) -> Course:
        """The course that a step belongs to."""
        begun = [course for course in self.courses if course.start <= step]
        return begun[-1] if begun else Course(0, max(1, self.total_steps))

    def restarts(self, step: int) -> bool:
        """Whether a course begins at a step in the middle of the run."""
        return 0 < step < self.total_steps and self.course(step).start == step

    def rewinds(self, step: int) -> bool:
        """Whether the weights go back to the rewinding point before a step."""
        return self.rewind_point is not None and step > self.rewind_point and self.restarts(step)


def courses_of(starts: list[int], total_steps: int, rewind_steps: int) -> tuple[Course, ...]:
    """A course of the learning rate for every round, and one for what comes before the first.

    Args:
        starts: First step of every round, rising.
        total_steps: Steps of the run.
        rewind_steps: Steps from the beginning of a course to the point that rounds go back to.
    """
    edges = [*([0] if starts[0] else []), *starts, total_steps]
    return tuple(
        Course(start, end - start, 0 if start == 0 else rewind_steps)
        for start, end in pairwise(edges)
        if end > start
    )
