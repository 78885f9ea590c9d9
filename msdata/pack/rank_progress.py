"""What an MPI rank does beside its samples: counts, shows the run's progress, hears of failures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msdata.core.progress import ProgressLine
from msdata.errors import MsdataError
from msdata.pack.reject_limit import RejectLimit
from msdata.pack.shard_task import Rejection, ShardResult
from msdata.pack.state import PackPlan, PackState

# How often a rank looks whether another has failed, and rank 0 which shards are finished.
_LOOK_INTERVAL_S = 1.0
_STOP_TAG = 4711


class PeerError(MsdataError):
    """Another rank failed and says so itself.

    Args:
        message: which.
        exit_code: that rank's, for this one to end with too.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RankProgress:
    """Counts this rank's objects; shows them with the shards that other ranks have finished.

    Args:
        state: the state.
        plan: its plan.
        left: shards that are to be packed by all ranks; `mine` is this rank's part of them.
        world: mpi4py communicator.
        limit: of unusable objects.
        is_quiet: no progress line.
    """

    def __init__(
        self,
        state: PackState,
        plan: PackPlan,
        left: Sequence[int],
        world: Any,
        limit: RejectLimit,
        *,
        is_quiet: bool,
    ) -> None:
        self.mine = left[world.Get_rank() :: world.Get_size()]
        self.packed = 0
        self.limit = limit
        self._state = state
        self._world = world
        self._sample_nbytes = plan.schema.sample_nbytes
        self._sizes = {n: plan.slices[n].stop - plan.slices[n].start for n in left}
        self._others = set(left) - set(self.mine)
        self._done_by_others = 0
        self._looked_s = time.monotonic()
        self._shows = not is_quiet and world.Get_rank() == 0
        self._line = ProgressLine("pack", sum(self._sizes.values()), is_quiet=not self._shows)
        self._sent: list[Any] = []

    def accept(self, nbytes: int) -> None:
        """Counts one sample."""
        self.packed += 1
        self._look()

    def reject(self, rejection: Rejection) -> None:
        """Counts an unusable object."""
        self.limit.reject(rejection)
        self._look()

    def deliver(self, result: ShardResult) -> None:
        """Notes a finished shard."""
        self._state.save_note(result)
        self.limit.note(result)

    def stop_others(self) -> None:
        """Tells all other ranks that this one has failed."""
        for rank in range(self._world.Get_size()):
            if rank != self._world.Get_rank():
                self._sent.append(self._world.isend(None, dest=rank, tag=_STOP_TAG))

    def close(self) -> None:
        """Ends the line; call it when no rank is at work any more."""
        while self._world.iprobe(tag=_STOP_TAG):
            self._world.recv(tag=_STOP_TAG)
        self._find_finished()
        self._line.close(*self._totals())

    def _totals(self) -> tuple[int, int, str]:
        done, rejected = self.packed + self._done_by_others, self.limit.num_new
        remark = f"{rejected:,} rejected" if rejected else ""
        return done + rejected, done * self._sample_nbytes, remark

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_s < _LOOK_INTERVAL_S:
            return
        self._looked_s = now
        if self._world.iprobe(tag=_STOP_TAG):
            raise PeerError("another rank failed")
        self._find_finished()
        self._line.update(*self._totals())

    def _find_finished(self) -> None:
        if not self._shows:
            return
        for number in self._others & self._state.finished_among(self._others):
            self._others.discard(number)
            self._done_by_others += self._sizes[number]
