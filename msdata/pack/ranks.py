"""A pack over MPI ranks: rank 0 plans and finishes, every rank writes its share of the shards.

After every step that may fail on one rank, all ranks learn of the failure before they wait for each
other: a rank that waited for a failed one would wait forever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from msdata.core.progress import ProgressLine
from msdata.core.signals import exit_code_of
from msdata.dataset.manifest import Manifest
from msdata.errors import MsdataError
from msdata.pack.finish import RejectLimit, finish_pack, num_rejected, write_rejected_so_far
from msdata.pack.folder_lock import folder_lock, share
from msdata.pack.planning import make_plan, make_tasks, tasks_left
from msdata.pack.run import PackReport, check_paths, finished_report
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import Rejection, ShardResult, run_tasks
from msdata.pack.state import PackPlan, PackState
from msdata.sources.detect import detect_source

# How often a rank looks whether another has failed, and rank 0 which shards are finished.
_LOOK_INTERVAL_S = 1.0
_STOP_TAG = 4711


class PeerError(MsdataError):
    """Another rank failed, and prints the reason itself.

    Args:
        message: which rank failed.
        exit_code: exit code of the failed rank, which this one repeats.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RankProgress:
    """Counts this rank's objects, and shows them with the shards that other ranks have finished.

    Args:
        state: state of the pack.
        plan: plan of the pack.
        left: shards that all ranks pack; `mine` is this rank's part of them.
        world: mpi4py communicator.
        limit: limit of unusable objects.
        is_quiet: show no progress line.
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
        """Ends the line; call it when all ranks have stopped working."""
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


_T = TypeVar("_T")


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
        settings: the settings of the pack, equal on every rank.
        world: mpi4py communicator.
        resume: see `msdata.pack.run.pack`.
        max_rejected: see `msdata.pack.run.pack`.
        is_quiet: show no progress line.

    Returns:
        The report on rank 0, None on the others.

    Raises:
        MsdataError: as `pack`, on the first rank that failed; the others raise PeerError.
    """
    state = PackState(settings.out)
    with ExitStack() as stack:
        started = _on_root(world, lambda: _begin(state, settings, stack, resume=resume))
        if started is None:
            return finished_report(state, settings) if world.Get_rank() == 0 else None
        plan, left, num_noted = started
        if world.Get_rank():
            shared = folder_lock(state.lock_path, is_shared=True)
            _on_all(world, lambda: stack.enter_context(shared))
        else:
            _on_all(world, lambda: None)
        limit = RejectLimit(num_noted, max_rejected, state.out)
        progress = RankProgress(state, plan, left, world, limit, is_quiet=is_quiet)
        _pack_share(state, plan, settings, progress, world)
        packed = sum(world.allgather(progress.packed))
        manifest, notes = _on_root(world, lambda: _finish(state, plan, settings, max_rejected))
    if world.Get_rank():
        return None
    return PackReport(
        manifest=manifest,
        num_packed=packed,
        num_rejected=int(manifest.provenance["num_rejected"]),
        notes=(*plan.notes, *notes),
    )


def _begin(
    state: PackState, settings: PackSettings, stack: ExitStack, *, resume: bool
) -> tuple[PackPlan, list[int], int] | None:
    """The plan, the shards that are left, the rejects so far; None for a finished data set."""
    check_paths(state, settings, resume=resume)
    if state.is_complete:
        return None
    lock_fd = stack.enter_context(folder_lock(state.lock_path))
    if state.is_complete:
        return None
    plan = make_plan(state, settings)
    share(lock_fd)
    return plan, tasks_left(state, plan), num_rejected(state, plan)


def _finish(
    state: PackState, plan: PackPlan, settings: PackSettings, max_rejected: int | None
) -> tuple[Manifest, tuple[str, ...]]:
    RejectLimit(num_rejected(state, plan), max_rejected, state.out).check()
    return finish_pack(state, plan, settings)


def _on_root(world: Any, work: Callable[[], _T]) -> _T:
    """Does `work` on rank 0 and returns its value on all ranks; if it fails there, all raise."""
    if world.Get_rank() != 0:
        exit_code, value = world.bcast(None, root=0)
        if exit_code:
            raise PeerError("rank 0 failed", exit_code)
        received: _T = value
        return received
    try:
        result = work()
    except MsdataError as error:
        world.bcast((exit_code_of(error), None), root=0)
        raise
    world.bcast((0, result), root=0)
    return result


def _on_all(world: Any, work: Callable[[], object]) -> None:
    """Does `work` on every rank; if it fails on any, every rank raises, the first its own error."""
    error: MsdataError | None = None
    try:
        work()
    except MsdataError as caught:
        error = caught
    # A rank that another one stopped has no error of its own.
    is_own = error is not None and not isinstance(error, PeerError)
    exit_codes = world.allgather(exit_code_of(error) if is_own else 0)
    first = next((rank for rank, code in enumerate(exit_codes) if code), None)
    if first is None:
        return
    if error is not None and first == world.Get_rank():
        raise error
    raise PeerError(f"rank {first} failed", exit_codes[first])


def _pack_share(
    state: PackState, plan: PackPlan, settings: PackSettings, progress: RankProgress, world: Any
) -> None:
    """Packs this rank's shards. If one rank fails, all stop; finished shards are kept."""

    def work() -> None:
        try:
            progress.limit.check()
            tasks = make_tasks(state, plan, settings, progress.mine)
            source = detect_source(settings.source, settings.fits)
            run_tasks(tasks, source, progress, deliver=progress.deliver)
        except PeerError:
            raise
        except MsdataError:
            progress.stop_others()
            raise

    try:
        _on_all(world, work)
    except MsdataError:
        unfinished = world.gather(progress.limit.unfinished, root=0)
        if world.Get_rank() == 0:
            write_rejected_so_far(state, plan, [r for part in unfinished for r in part])
        raise
    finally:
        progress.close()
