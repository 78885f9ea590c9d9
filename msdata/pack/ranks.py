"""A pack over MPI ranks: rank 0 plans and finishes, every rank writes its share of the shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msdata.errors import DataError, MsdataError
from msdata.pack.finish import finish_pack
from msdata.pack.run import (
    PackReport,
    RejectLimit,
    make_plan,
    make_tasks,
    take_folder,
    tasks_left,
)
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import ShardResult, run_tasks
from msdata.pack.state import PackPlan, PackState
from msdata.progress import ProgressLine
from msdata.sources.detect import detect_source

# How often rank 0 looks which shards the other ranks have finished.
_LOOK_INTERVAL_S = 2.0
_T = TypeVar("_T")


class PeerError(MsdataError):
    """Another rank failed and has said so."""


def pack_on_ranks(
    settings: PackSettings,
    world: Any,
    *,
    resume: bool = False,
    max_rejected: int | None = None,
    is_quiet: bool = True,
) -> PackReport | None:
    """Packs a source with all ranks of a communicator; call it on every rank.

    Args:
        settings: what to pack, and how; the same on every rank.
        world: mpi4py communicator.
        resume: as `msdata.pack.run.pack`.
        max_rejected: as there.
        is_quiet: no progress line.

    Returns:
        The report on rank 0, None on the others.

    Raises:
        MsdataError: as `pack`, on rank 0 or on the rank that failed; the others raise PeerError.
    """
    state = PackState(settings.out)
    finished = _on_root(world, lambda: take_folder(state, resume=resume))
    if finished is not None:
        return finished if world.Get_rank() == 0 else None
    if world.Get_rank() != 0:
        _on_root(world, lambda: None)
        _pack_share(state, settings, world, max_rejected, is_quiet=True)
        _on_root(world, lambda: None)
        return None
    with state.locked():
        plan = _on_root(world, lambda: make_plan(state, settings))
        limit = RejectLimit(state, plan, max_rejected)
        packed, rejected = _pack_share(state, settings, world, max_rejected, is_quiet=is_quiet)
        limit.check(rejected)
        manifest = _on_root(world, lambda: finish_pack(state, plan, settings))
    return PackReport(
        manifest=manifest,
        num_packed=packed,
        num_rejected=int(manifest.provenance["num_rejected"]),
        notes=plan.notes,
    )


def _on_root(world: Any, work: Callable[[], _T]) -> _T:
    """Does `work` on rank 0; if it fails there, every rank raises.

    On the other ranks the value is what rank 0 returned, as far as it can be sent: None otherwise.
    """
    if world.Get_rank() != 0:
        failed, value = world.bcast(None, root=0)
        if failed:
            raise PeerError("rank 0 failed")
        received: _T = value
        return received
    try:
        result = work()
    except BaseException:
        world.bcast((True, None), root=0)
        raise
    world.bcast((False, result), root=0)
    return result


def _pack_share(
    state: PackState,
    settings: PackSettings,
    world: Any,
    max_rejected: int | None,
    *,
    is_quiet: bool,
) -> tuple[int, int]:
    """Packs this rank's shards; returns samples packed and rejected by all ranks together.

    A failure is told to all ranks once they are done, so that every finished shard is kept.
    """
    plan = state.load_plan(settings)
    left = tasks_left(state, plan)
    mine = left[world.Get_rank() :: world.Get_size()]
    # All ranks must have listed what is left before any of them finishes a shard.
    world.Barrier()
    progress = _RankProgress(state, plan, (left, mine), max_rejected, is_quiet=is_quiet)
    error: MsdataError | None = None
    try:
        source = detect_source(settings.source)
        tasks = make_tasks(state, plan, settings, mine)
        run_tasks(tasks, source, progress, deliver=progress.deliver)
    except MsdataError as caught:
        error = caught
    progress.close()
    failed = world.allgather(error is not None)
    if error is not None:
        raise error
    if any(failed):
        raise PeerError(f"rank {failed.index(True)} failed")
    packed, rejected = zip(*world.allgather((progress.packed, progress.rejected)), strict=True)
    return sum(packed), sum(rejected)


class _RankProgress:
    """Counts this rank's objects; shows them with the shards that other ranks have finished."""

    def __init__(
        self,
        state: PackState,
        plan: PackPlan,
        left_and_mine: tuple[Sequence[int], Sequence[int]],
        max_rejected: int | None,
        *,
        is_quiet: bool,
    ) -> None:
        left, mine = left_and_mine
        self._state = state
        self._sample_nbytes = plan.schema.sample_nbytes
        self._max_rejected = max_rejected
        self._sizes = {n: plan.slices[n].stop - plan.slices[n].start for n in left}
        self._others = set(left) - set(mine)
        self._done_by_others = 0
        self._looked_s = time.monotonic()
        self._is_quiet = is_quiet
        self._line = ProgressLine("pack", sum(self._sizes.values()), is_quiet=is_quiet)
        self.packed = 0
        self.rejected = 0

    def __call__(self, *, nbytes: int, is_rejected: bool) -> None:
        self.packed += not is_rejected
        self.rejected += is_rejected
        if self._max_rejected is not None and self.rejected > self._max_rejected:
            raise DataError(
                f"{self.rejected} objects are unusable, more than --max-rejected "
                f"{self._max_rejected}; run again with --resume and a higher limit"
            )
        if not self._is_quiet:
            self._look()
            self._line.update(*self._totals())

    def _totals(self) -> tuple[int, int]:
        done = self.packed + self._done_by_others
        return done + self.rejected, done * self._sample_nbytes

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_s < _LOOK_INTERVAL_S:
            return
        self._looked_s = now
        for number in [n for n in self._others if self._state.note_path(n).exists()]:
            self._others.discard(number)
            self._done_by_others += self._sizes[number]

    def deliver(self, result: ShardResult) -> None:
        """Notes a finished shard."""
        self._state.save_note(result)

    def close(self) -> None:
        """Ends the line."""
        self._line.close(*self._totals())
