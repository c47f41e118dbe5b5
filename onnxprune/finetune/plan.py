"""When things happen in a run, in optimizer steps."""

from dataclasses import dataclass
from itertools import pairwise

from onnxprune.cascade import Course

_OBSERVATIONS = 100
"""Shed weights are counted about this often over a run."""

_BETWEEN_EVENTS = 4
"""So often they are counted between two pruning events at least, where there are as many steps."""


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


def observation_steps(plan: Plan) -> frozenset[int]:
    """Steps after which shed weights are counted: evenly, before events, between them, at the end.

    Args:
        plan: Of the run.
    """
    total = plan.total_steps
    steps = {*range(0, total + 1, max(1, total // _OBSERVATIONS)), *plan.events, total}
    for first, last in pairwise(sorted(plan.events)):
        steps |= {
            first + (last - first) * part // _BETWEEN_EVENTS for part in range(1, _BETWEEN_EVENTS)
        }
    return frozenset(steps)
