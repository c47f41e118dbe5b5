"""The pruning events of a run: one engine for all methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from onnxprune.cascade import Controller, ShedCount, ShedMonitor
from onnxprune.cascade.controller import nothing, union
from onnxprune.sparsity import MaskSet, Shards
from onnxprune.sparsity.shards import Whole, sum_counts, true_counts


class Select(Protocol):
    """Chooses masks, as `sparsity.select_masks` does, for the current weights."""

    def __call__(
        self,
        zeros: int,
        first: Mapping[str, Tensor] | None = None,
        dead: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Masks with exactly `zeros` zeros.

        Args:
            zeros: How many weights are zero afterwards.
            first: Weights that go before others; None for none.
            dead: What closure took. It goes before all others, and whatever the ranking, but for
                patterns; None for none.
        """
        ...


class Close(Protocol):
    """Structural closure of the current network."""

    def __call__(self, room: int) -> dict[str, Tensor]:
        """Weights on no path from an input to an output, True for those that leave.

        Unless a pattern decides what leaves, they are zero from now on, and constants that they
        carried are in biases and running means; what the model computes stays.

        Args:
            room: At most as many weights.
        """
        ...


@dataclass(frozen=True)
class Event:
    """What an event chose.

    Attributes:
        masks: The new masks; None where all that was due waits.
        closed: Weights that structural closure removed.
        harvested: Weights that had been shed.
        waited: Events before this one in which magnitude pruning was put off.
        put_off: Weights that the schedule asks for and that wait, since the shed rate rises.
    """

    masks: dict[str, Tensor] | None
    closed: int = 0
    harvested: int = 0
    waited: int = 0
    put_off: int = 0


@dataclass
class Pruner:
    """Says at every step whether weights go, and which.

    Attributes:
        masks: The masks in force; the trainer updates them.
        events: Step -> zeros that the schedule asks for from then on.
        select: Chooses masks.
        monitor: Watches the kept weights between events.
        controller: Decides for method `cascade-gmp`; None keeps to the schedule.
        close: Structural closure; None leaves dead weights to their magnitude.
        harvest: Whether shed weights go first.
        ahead: What may go ahead of the schedule: dead and shed weights (`all`), `dead` ones only
            where each tensor loses its own share, and `none` under a pattern: other weights would
            go in their place.
        floors: Weights that each tensor keeps at least, by name.
        harvest_cost: A harvest is left out where zeroing it raises the loss by more than this
            share.
        shards: The ranks that hold the other parts of sharded weights; None for whole ones.
        message: Is told what the user should know.
    """

    masks: MaskSet
    events: Mapping[int, int]
    select: Select
    monitor: ShedMonitor
    controller: Controller | None = None
    close: Close | None = None
    harvest: bool = False
    ahead: Literal["all", "dead", "none"] = "all"
    floors: Mapping[str, int] = field(default_factory=dict)
    harvest_cost: float = 0.01
    shards: Shards = field(default_factory=Whole)
    message: Callable[[str], None] = lambda text: None

    def event(
        self, step: int, loss_change: Callable[[Mapping[str, Tensor]], float]
    ) -> Event | None:
        """The pruning event before `step`; None if none is due.

        Args:
            step: Optimizer steps done.
            loss_change: By which share the loss would rise without some of the weights.
        """
        due = self.events.get(step)
        if due is None or self.masks.zeros >= max(self.events.values()):
            return None
        if self.controller is None:
            return Event(self.select(due)) if due > self.masks.zeros else None
        return self._controlled(step, self.controller, loss_change)

    def _controlled(
        self,
        step: int,
        controller: Controller,
        loss_change: Callable[[Mapping[str, Tensor]], float],
    ) -> Event | None:
        before, waited = self.masks.zeros, controller.waited
        room = controller.target - before
        dead = self.close(room) if self.close is not None else nothing(self.masks.masks)
        shed = self._harvest(dead, controller, loss_change)
        ahead = {"all": union(dead, shed), "dead": dead, "none": nothing(dead)}[self.ahead]
        taken = self._takable(ahead)
        zeros = controller.zeros(step, before, taken)
        waits = controller.waited > waited
        put_off = min(controller.target, controller.events[step]) - zeros if waits else 0
        if zeros <= before:
            return Event(None, waited=waited, put_off=put_off) if waits else None
        chosen = self.select(zeros, shed, dead)
        controller.pruned(step, zeros)
        closed, harvested = (self._count(_without(part, chosen)) for part in (dead, shed))
        return Event(chosen, closed, harvested, waited, put_off)

    def _harvest(
        self,
        dead: Mapping[str, Tensor],
        controller: Controller,
        loss_change: Callable[[Mapping[str, Tensor]], float],
    ) -> dict[str, Tensor]:
        """Shed weights that can go without a loss.

        A weight must have fallen behind its own tensor as well: where a whole tensor has shrunk
        before a normalisation, none of its weights has lost its part.
        """
        masks = {name: mask & ~dead[name] for name, mask in self.masks.masks.items()}
        if not self.harvest or self.monitor.since is None:
            return nothing(masks)
        weights = self.masks.parameters
        at_event = self.monitor.shed(weights, masks)
        now = self.monitor.shed(weights, masks, relative=True)
        shed = {name: at_event[name] & now[name] for name in at_event}
        if not self._count(shed):
            return shed
        change = loss_change(shed)
        if change > self.harvest_cost:
            controller.brake()
            self.message(
                f"{self._count(shed)} shed weights are not harvested: without them the loss would "
                f"rise by {change:.1%}"
            )
            return nothing(masks)
        return shed

    def started(self, step: int) -> None:
        """Begin to watch: masks were put in place before `step`, or training begins."""
        self.monitor.begin(step, self.masks.parameters, self.masks.masks)
        if self.controller is not None:
            self.controller.began(step)

    def observe(self, step: int) -> ShedCount:
        """Count the weights that are shed after `step` steps."""
        count = self.monitor.count(step, self.masks.parameters, self.masks.masks)
        if self.controller is not None:
            self.controller.observe(step, count.total)
        return count

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors, as JSON values."""
        return {
            "since": self.monitor.since,
            "rms": self.monitor.rms,
            "controller": None if self.controller is None else self.controller.state(),
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Put back what `facts` gave; the monitor's tensors are restored with the masks."""
        self.monitor.since = facts["since"]
        self.monitor.rms = dict(facts["rms"])
        if self.controller is not None:
            self.controller.restore(facts["controller"])

    def _takable(self, chosen: Mapping[str, Tensor]) -> int:
        """How many of some kept weights can go without a tensor falling below its floor."""
        counts = sum_counts(self.shards, true_counts(chosen))
        kept, floors = self.masks.kept, self.floors
        return sum(
            min(count, max(0, kept[name] - floors.get(name, 0))) for name, count in counts.items()
        )

    def _count(self, chosen: Mapping[str, Tensor]) -> int:
        return sum(sum_counts(self.shards, true_counts(chosen)).values())


def _without(chosen: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those weights that masks do not keep."""
    return {name: part & ~masks[name] for name, part in chosen.items()}
