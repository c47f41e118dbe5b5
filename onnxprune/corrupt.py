"""Samples that cannot be read: counted, named and left out, up to a limit."""

import math
from collections.abc import Callable, Iterable

from onnxprune.errors import DataError

_LISTED = 5


class CorruptSamples:
    """A tally of one data set's unreadable samples; each sample counts and is told of once.

    Args:
        total: Number of samples in the set.
        max_share: Share of them that may be unreadable, in [0, 1].
        where: How messages name the set.
        on_new: Is told of each sample that is left out.

    Attributes:
        limit: Number of samples that may be unreadable.
        names: Place and reason of each, in the order of being found.
    """

    def __init__(
        self,
        total: int,
        max_share: float,
        where: str,
        on_new: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.limit = math.floor(round(max_share * total, 6))  # 0.29 of 100 are 29, not 28
        self.total = total
        self.where = where
        self.names: list[str] = []
        self._on_new = on_new
        self._known: set[str] = set()

    @property
    def count(self) -> int:
        """Samples found unreadable so far."""
        return len(self.names)

    def add(self, skipped: Iterable[tuple[int, str]]) -> None:
        """Count samples, given as (index, place and reason).

        A sample is known again by its text, since a subset of the data numbers it differently.

        Raises:
            DataError: More than `limit` are unreadable.
        """
        for _, name in skipped:
            if name in self._known:
                continue
            self._known.add(name)
            self.names.append(name)
            if self.count > self.limit:
                raise self._too_many()
            self._on_new(f"sample left out ({self.count} of at most {self.limit}): {name}")

    def _too_many(self) -> DataError:
        listed = "; ".join(self.names[:_LISTED])
        rest = f"; and {self.count - _LISTED} more" if self.count > _LISTED else ""
        return DataError(
            "too many samples cannot be read",
            where=self.where,
            got=f"{self.count} of {self.total}: {listed}{rest}",
            expected=f"at most {self.limit}",
            remedy="repair or remove them, or raise [data] max_corrupt; then continue with "
            "--resume",
        )


def corrupt_name(error: DataError) -> str:
    """Place and reason of an unreadable sample, in one line."""
    reason = error.what if error.got is None else f"{error.what} ({error.got})"
    return " ".join(f"{error.where}: {reason}".split())
