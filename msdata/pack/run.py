"""Runs a pack on one node: makes or loads its plan, has the shards written, finishes it.

Worker processes write the shards; `ranks.py` does the same under MPI. The plan alone decides which
shards there are, and every byte of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from msdata.core.progress import ProgressLine
from msdata.dataset.manifest import Manifest, read_manifest
from msdata.errors import MsdataError
from msdata.pack.finish import RejectLimit, finish_pack, num_rejected, write_rejected_so_far
from msdata.pack.folder_lock import folder_lock
from msdata.pack.planning import make_plan, make_tasks, tasks_left
from msdata.pack.pool import WorkerPool
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import Rejection, ShardResult
from msdata.pack.state import PackPlan, PackState
from msdata.sources.detect import detect_source


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a pack did.

    Attributes:
        manifest: the complete data set.
        num_packed: samples that this run wrote; fewer than the manifest's after a resume.
        num_rejected: objects in `rejected.csv`.
        notes: remarks on the catalog.
    """

    manifest: Manifest
    num_packed: int
    num_rejected: int
    notes: tuple[str, ...] = ()


def pack(
    settings: PackSettings,
    *,
    jobs: int = 1,
    resume: bool = False,
    max_rejected: int | None = None,
    is_quiet: bool = True,
) -> PackReport:
    """Packs a source into shards and an index, on one node.

    Args:
        settings: the settings of the pack.
        jobs: worker processes.
        resume: resume an unfinished pack; a finished one stays unchanged.
        max_rejected: stop if more objects than this are unusable; None never stops.
        is_quiet: show no progress line.

    Returns:
        The report of this run.

    Raises:
        UsageError: the settings do not fit the source, the catalog or the folder.
        DataError: too many objects were rejected.
        StorageError: the file system refused.
    """
    state = PackState(settings.out)
    check_paths(state, settings, resume=resume)
    if state.is_complete:
        return finished_report(state, settings)
    with folder_lock(state.lock_path) as lock_fd:
        # Another pack may have held the lock and finished the data set meanwhile.
        if state.is_complete:
            return finished_report(state, settings)
        with WorkerPool(jobs, settings, lock_fd) as pool:
            plan = make_plan(state, settings)
            limit = RejectLimit(num_rejected(state, plan), max_rejected, state.out)
            left = tasks_left(state, plan)
            progress = _PoolProgress(pool, plan, left, limit, is_quiet=is_quiet)
            try:
                limit.check()
                results = pool.run(make_tasks(state, plan, settings, left), progress)
                _save_notes(state, results, limit)
            except MsdataError:
                write_rejected_so_far(state, plan, limit.unfinished)
                raise
            finally:
                progress.close()
        manifest, notes = finish_pack(state, plan, settings)
    return PackReport(
        manifest=manifest,
        num_packed=int(pool.counters[:, 0].sum()),
        num_rejected=int(manifest.provenance["num_rejected"]),
        notes=(*plan.notes, *notes),
    )


def _save_notes(state: PackState, results: Iterator[ShardResult], limit: RejectLimit) -> None:
    """Notes each finished shard, in a thread, so that no worker waits for its next task.

    Raises:
        MsdataError: a worker failed, a note could not be written, or too many were rejected.
    """
    saving: deque[tuple[Future[None], ShardResult]] = deque()

    def take_first() -> None:
        future, result = saving.popleft()
        future.result()
        limit.note(result)

    with ThreadPoolExecutor(1, thread_name_prefix="note") as executor:
        for result in results:
            saving.append((executor.submit(state.save_note, result), result))
            while saving and saving[0][0].done():
                take_first()
        while saving:
            take_first()


def check_paths(state: PackState, settings: PackSettings, *, resume: bool) -> None:
    """Checks SRC and OUT before anything is written.

    Raises:
        UsageError: the source is missing, or OUT holds something else.
    """
    detect_source(settings.source, settings.fits)
    state.check_folder(resume=resume)


def finished_report(state: PackState, settings: PackSettings) -> PackReport:
    """The report of a data set that is complete already.

    Raises:
        UsageError: the data set was packed with other settings.
    """
    manifest = read_manifest(state.out)
    settings.check_same(manifest.provenance.get("settings", {}), state.out)
    state.remove()
    num_rejected = int(manifest.provenance.get("num_rejected", 0))
    return PackReport(manifest=manifest, num_packed=0, num_rejected=num_rejected)


class _PoolProgress:
    """The progress line of a worker pool, and its limit; implements `Watcher`."""

    def __init__(
        self,
        pool: WorkerPool,
        plan: PackPlan,
        left: Sequence[int],
        limit: RejectLimit,
        *,
        is_quiet: bool,
    ) -> None:
        self._pool = pool
        self._limit = limit
        total = sum(plan.slices[n].stop - plan.slices[n].start for n in left)
        self._line = ProgressLine("pack", total, is_quiet=is_quiet)

    def _state(self) -> tuple[int, int, str]:
        packed, nbytes, rejected = (int(v) for v in self._pool.counters.sum(axis=0))
        return packed + rejected, nbytes, f"{rejected:,} rejected" if rejected else ""

    def tick(self) -> None:
        """Shows the counters."""
        self._line.update(*self._state())

    def reject(self, rejection: Rejection) -> None:
        """Counts an unusable object."""
        self._limit.reject(rejection)

    def close(self) -> None:
        """Ends the line."""
        self._line.close(*self._state())
