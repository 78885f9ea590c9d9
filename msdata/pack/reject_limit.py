"""`--max-rejected`: stops a pack in which too many objects are unusable, and says why they are."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from msdata.dataset.manifest import REJECTED_NAME
from msdata.errors import DataError
from msdata.pack.shard_task import Rejection, ShardResult


class RejectLimit:
    """Counts unusable objects, those of finished shards and those of shards under way.

    Args:
        num_noted: those that are known already.
        maximum: raise beyond this many; None never raises.
        out: the data set's folder, for the message.
    """

    def __init__(self, num_noted: int, maximum: int | None, out: Path) -> None:
        self._num_noted = num_noted
        self._maximum = maximum
        self._out = out
        self._unfinished: dict[int, list[Rejection]] = defaultdict(list)
        self._num_unfinished = 0
        self.num_new = 0

    @property
    def unfinished(self) -> list[Rejection]:
        """The unusable objects of shards that have no note."""
        return [r for rejections in self._unfinished.values() for r in rejections]

    def reject(self, rejection: Rejection) -> None:
        """Counts one; raises as `check`."""
        self._unfinished[rejection.number].append(rejection)
        self._num_unfinished += 1
        self.num_new += 1
        self.check()

    def note(self, result: ShardResult) -> None:
        """The shard has its note, where its unusable objects are read from now on."""
        self._num_noted += len(result.rejected)
        self._num_unfinished -= len(self._unfinished.pop(result.number, ()))

    def check(self) -> None:
        """Raises DataError when the limit is passed."""
        total = self._num_noted + self._num_unfinished
        if self._maximum is not None and total > self._maximum:
            raise DataError(
                f"{total} objects are unusable, more than --max-rejected {self._maximum}; see "
                f"{self._out / REJECTED_NAME}, then run again with --resume and a higher limit"
            )
