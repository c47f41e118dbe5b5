"""When the zeros of a pattern are chosen: before, during or after the weights shrink."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from onnxprune.sparsity.patterns import Block, Pattern
from onnxprune.sparsity.scores import Score

Moment = Literal["before", "during", "after"]


class Select(Protocol):
    """`select_masks`, or another with its result, for weights that it knows."""

    def __call__(
        self,
        zeros: int,
        score: Score,
        *,
        masks: Mapping[str, Tensor] | None = None,
        pattern: Pattern = None,
        within: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See `select_masks`."""
        ...


@dataclass(frozen=True)
class Choice:
    """What one pruning event chooses.

    Attributes:
        masks: In force from now on.
        final: Masks that later events move towards, to be handed to them; None without such.
    """

    masks: dict[str, Tensor]
    final: dict[str, Tensor] | None = None


def choose_masks(
    select: Select,
    zeros: int,
    score: Score,
    *,
    masks: Mapping[str, Tensor],
    pattern: Pattern,
    moment: Moment,
    last_zeros: int,
    final: dict[str, Tensor] | None = None,
) -> Choice:
    """The masks of a pruning event, with the pattern chosen at the moment that was asked for.

    - `during`: at each event, from the values then.
    - `before`: at the first event, all that will ever go is chosen from the values then, and later
      events only say in which order it goes.
    - `after`: events are unstructured, but for the last one. It chooses all zeros afresh, from the
      values then, in which masked weights are 0. This is the one event whose masks are not nested
      in those before: where the pattern has room for a weight that was masked, it comes back as 0
      and may be trained again.

    Args:
        select: Chooses masks for the weights as they are; masked weights are exactly 0.
        zeros: How many weights are zero from this event on.
        score: What ranks the weights.
        masks: Masks so far.
        pattern: The pattern; with None, all moments are the same.
        moment: When its zeros are chosen.
        last_zeros: How many weights the last event leaves at zero.
        final: What an earlier event gave; None at the first.

    Raises:
        TargetError: See `select_masks`.
    """
    if pattern is None or moment == "during":
        return Choice(select(zeros, score, masks=masks, pattern=pattern))
    if moment == "before":
        if final is None:
            final = select(last_zeros, score, masks=masks, pattern=pattern)
        blocks = pattern if isinstance(pattern, Block) else None
        return Choice(select(zeros, score, masks=masks, pattern=blocks, within=final), final)
    if zeros < last_zeros:
        return Choice(select(zeros, score, masks=masks))
    return Choice(select(zeros, _ZeroForZero(score), pattern=pattern))


class _ZeroForZero:
    """Another score, but 0 for weights that are 0, as masked ones are."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def of(self, name: str, weights: Tensor, start: int) -> Tensor:
        """See `Score.of`."""
        return self.score.of(name, weights, start).mul_(weights != 0)
