"""Runs a pack: makes or loads its plan, has worker processes and MPI ranks write the shards.

The plan alone decides which shards there are, and every byte of them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msdata.core.options import num_jobs
from msdata.core.progress import ProgressLine
from msdata.dataset.manifest import Manifest, read_manifest
from msdata.errors import MsdataError
from msdata.pack.finish import RejectLimit, finish_pack, num_rejected, write_rejected_so_far
from msdata.pack.folder_lock import folder_lock
from msdata.pack.planning import make_plan, make_tasks, num_workers, tasks_left
from msdata.pack.pool import Pipes, Transport
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import Rejection, ShardResult, ShardTask
from msdata.pack.state import PackPlan, PackState
from msdata.pack.worker import Packed
from msdata.sources.detect import default_arrays, detect_source

if TYPE_CHECKING:
    from msdata.pack.ranks import Ranks

# How long to wait for messages of processes; ranks are polled.
_WAIT_S = 0.2
_POLL_S = 0.01


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


def pack_folder(
    source: str | Path,
    out: str | Path,
    *,
    catalog: str | Path | None = None,
    jobs: int | None = None,
    resume: bool = False,
    max_rejected: int | None = None,
    is_quiet: bool = True,
    **settings: Any,
) -> PackReport:
    """Packs a folder of objects into a data set on this node, as `msdata pack` does.

        msdata.pack("OBJECTS", "DATA", catalog="catalog.csv", container="hdf5")
        data = msdata.open("DATA")

    Args:
        source: folder with the objects.
        out: folder of the data set; new, empty, or to resume.
        catalog: table of labels: CSV, TSV, Parquet, FITS, VOTable or ECSV; None packs without.
        jobs: worker processes, at most; None means one per core.
        resume: resume an unfinished pack; a finished one stays unchanged.
        max_rejected: stop if more objects than this are unusable; None never stops.
        is_quiet: show no progress line.
        **settings: further fields of `msdata.pack.settings.PackSettings`, such as container,
            shard_nbytes, split_fractions, split_by, split_column, seed, id_column, redshift_column,
            unlabelled, redshift_range, inpaint, max_nan_fraction.

    Returns:
        What was done: `manifest`, `num_packed`, `num_rejected`, `notes`.

    Raises:
        UsageError: the settings do not fit the source, the catalog or the folder.
        DataError: nothing is usable, or too many objects were rejected.
        StorageError: the file system refused.
        TypeError: a setting is unknown.
    """
    path = None if catalog is None else Path(catalog)
    if settings.get("fits") is None and settings.get("arrays") is None:
        settings["arrays"] = default_arrays(Path(source))
    chosen = PackSettings(source=Path(source), out=Path(out), catalog=path, **settings)
    return pack(
        chosen,
        jobs=num_jobs(jobs),
        resume=resume,
        max_rejected=max_rejected,
        is_quiet=is_quiet,
    )


def pack(
    settings: PackSettings,
    *,
    jobs: int = 1,
    resume: bool = False,
    max_rejected: int | None = None,
    is_quiet: bool = True,
    ranks: Ranks | None = None,
) -> PackReport:
    """Packs a source into shards and an index.

    Args:
        settings: the settings of the pack.
        jobs: worker processes, at most; a small data set is packed by fewer.
        resume: resume an unfinished pack; a finished one stays unchanged.
        max_rejected: stop if more objects than this are unusable; None never stops.
        is_quiet: show no progress line.
        ranks: other MPI ranks that pack too, `serve_rank` on each; the caller stops them.

    Returns:
        The report of this run.

    Raises:
        UsageError: the settings do not fit the source, the catalog or the folder.
        DataError: too many objects were rejected.
        StorageError: the file system refused.
    """
    state = PackState(settings.out)
    detect_source(settings.source, settings.fits, settings.arrays)
    state.check_folder(resume=resume)
    if state.is_complete:
        return _finished_report(state, settings)
    with folder_lock(state.lock_path) as lock_fd:
        # Another pack may have held the lock and finished the data set meanwhile.
        if state.is_complete:
            return _finished_report(state, settings)
        with Pipes(settings, lock_fd) as pipes:
            plan = make_plan(state, settings)
            limit = RejectLimit(num_rejected(state, plan), max_rejected, state.out)
            left = tasks_left(state, plan)
            pipes.start(num_workers(plan, left, jobs))
            if ranks is not None:
                ranks.start(lock_fd)
            driver = _Driver([pipes, *([] if ranks is None else [ranks])], plan, left, limit)
            line = ProgressLine("pack", driver.num_left, is_quiet=is_quiet)
            try:
                limit.check()
                _save_notes(state, driver.run(make_tasks(state, plan, settings, left), line), limit)
            except MsdataError:
                write_rejected_so_far(state, plan, limit.unfinished)
                raise
            finally:
                line.close(*driver.progress())
        manifest, notes = finish_pack(state, plan, settings)
    return PackReport(
        manifest=manifest,
        num_packed=driver.num_packed,
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


def _finished_report(state: PackState, settings: PackSettings) -> PackReport:
    """The report of a data set that is complete already.

    Raises:
        UsageError: the data set was packed with other settings.
    """
    manifest = read_manifest(state.out)
    settings.check_same(manifest.provenance.get("settings", {}), state.out)
    state.remove()
    num_rejected = int(manifest.provenance.get("num_rejected", 0))
    return PackReport(manifest=manifest, num_packed=0, num_rejected=num_rejected)


class _Driver:
    """Hands out the tasks of a pack to its workers."""

    def __init__(
        self,
        transports: Sequence[Transport],
        plan: PackPlan,
        left: Sequence[int],
        limit: RejectLimit,
    ) -> None:
        self._transports = transports
        self._workers = [worker for transport in transports for worker in transport.workers]
        self._wait_s = _WAIT_S if len(transports) == 1 else _POLL_S
        self._limit = limit
        self.num_left = sum(plan.slices[n].stop - plan.slices[n].start for n in left)
        self.num_packed = 0

    def run(self, tasks: Iterator[ShardTask], line: ProgressLine) -> Iterator[ShardResult]:
        """Hands out tasks in order, as workers ask, and yields results as they come.

        Raises:
            MsdataError: a worker failed, or died, or too many objects were rejected.
        """
        while not all(worker.is_finished for worker in self._workers):
            for worker in self._workers:
                if worker.is_idle and not worker.has_all:
                    task = next(tasks, None)
                    if task is not None:
                        worker.unfinished[task.number] = task.path
                    worker.is_idle, worker.has_all = False, task is None
                    worker.send(task)
            line.update(*self.progress())
            yield from self._collect()

    def _collect(self) -> Iterator[ShardResult]:
        for worker, message in itertools.chain.from_iterable(
            transport.messages(self._wait_s) for transport in self._transports
        ):
            if isinstance(message, Exception):
                raise message
            if isinstance(message, Rejection):
                self._limit.reject(message)
            elif isinstance(message, Packed):
                worker.packed = (message.num_samples, message.nbytes)
                worker.is_idle = message.is_idle
                worker.is_finished = message.is_idle and worker.has_all
            elif isinstance(message, ShardResult):
                del worker.unfinished[message.number]
                self.num_packed += len(message.accepted)
                yield message

    def progress(self) -> tuple[int, int, str]:
        """Objects and bytes done, and a remark on rejected ones."""
        num_samples, nbytes = (sum(n) for n in zip(*(w.packed for w in self._workers), strict=True))
        rejected = self._limit.num_new
        return num_samples + rejected, nbytes, f"{rejected:,} rejected" if rejected else ""
