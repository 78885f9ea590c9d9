"""Runs a pack: plans it or takes up its plan, has the shards written, finishes it.

On one node the shards go to worker processes; under MPI each rank takes its share of them and rank
0 plans and finishes. Which shards there are, and every byte of them, is decided by the plan alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.atomic_file import storage_error
from msdata.errors import DataError
from msdata.manifest import FILE_NAME as MANIFEST_NAME
from msdata.manifest import Manifest, read_manifest
from msdata.pack.candidates import plan_candidates
from msdata.pack.finish import REJECTED_NAME, finish_pack, write_rejected
from msdata.pack.infer_schema import NUM_LOOKED_AT, infer_schema, with_pixel_scales
from msdata.pack.pool import WorkerPool
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import ShardTask
from msdata.pack.state import PackPlan, PackState
from msdata.preprocess import Preparation
from msdata.progress import ProgressLine
from msdata.schema import Schema
from msdata.shards import hdf5, tar
from msdata.sources.detect import detect_source

# Bytes of a JSON member, for sizing shards; a catalogue of twenty columns stays below.
_JSON_NBYTES = 512
SUFFIXES = {"tar": tar.SUFFIX, "hdf5": hdf5.SUFFIX}


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a pack did.

    Attributes:
        manifest: the complete data set.
        num_packed: samples written by this run; fewer than the manifest's after a resume.
        num_rejected: objects in `rejected.csv`.
        notes: remarks on the catalogue.
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
        settings: what to pack, and how.
        jobs: worker processes.
        resume: take up an unfinished pack; a finished one is left as it is.
        max_rejected: stop when more objects than this are unusable; None never stops.
        is_quiet: no progress line.

    Returns:
        What was done.

    Raises:
        UsageError: the settings do not fit the source, the catalogue or the folder.
        DataError: too many objects were rejected.
        StorageError: the file system refused.
    """
    detect_source(settings.source)
    state = PackState(settings.out)
    finished = take_folder(state, resume=resume)
    if finished is not None:
        return finished
    with state.locked(), WorkerPool(jobs, settings.source) as pool:
        plan = make_plan(state, settings)
        limit = RejectLimit(state, plan, max_rejected)
        left = tasks_left(state, plan)
        progress = _PoolProgress(pool, plan, left, limit, is_quiet=is_quiet)
        for result in pool.run(make_tasks(state, plan, settings, left), progress.tick):
            state.save_note(result)
        progress.close()
        limit.check_finished()
        manifest = finish_pack(state, plan, settings)
    return PackReport(
        manifest=manifest,
        num_packed=int(pool.counters[:, 0].sum()),
        num_rejected=int(manifest.provenance["num_rejected"]),
        notes=plan.notes,
    )


def take_folder(state: PackState, *, resume: bool) -> PackReport | None:
    """Makes OUT ready; returns a report where there is nothing left to do.

    Raises:
        UsageError: OUT holds something else.
    """
    if resume and (state.out / MANIFEST_NAME).exists():
        manifest = read_manifest(state.out)
        state.remove()
        num_rejected = int(manifest.provenance.get("num_rejected", 0))
        return PackReport(manifest=manifest, num_packed=0, num_rejected=num_rejected)
    state.prepare_folder(resume=resume)
    return None


def make_plan(state: PackState, settings: PackSettings) -> PackPlan:
    """The plan of this pack: the one it was begun with, or a new one.

    Raises:
        UsageError: it was begun with other settings, or they do not fit the data.
        DataError: the source holds nothing usable.
    """
    if state.has_plan():
        return state.load_plan(settings)
    source = detect_source(settings.source)
    objects = source.scan()
    head = objects.slice(0, NUM_LOOKED_AT)
    locations = list(zip(head["path"].to_pylist(), head["row"].to_pylist(), strict=True))
    schema = infer_schema(source, locations)
    schema = with_pixel_scales(schema, settings.pixel_scales_arcsec or {})
    inpainted(schema, settings)
    candidates = plan_candidates(
        objects, settings, _record_nbytes(schema, settings), SUFFIXES[settings.container]
    )
    for split in {s.split for s in candidates.slices}:
        _make_folder(state.out / split)
    return state.save_plan(settings, schema, candidates)


def inpainted(schema: Schema, settings: PackSettings) -> tuple[str, ...]:
    """Names of the arrays to inpaint.

    Raises:
        UsageError: there is no such array, or it is no stack of images.
    """
    if settings.inpaint is None:
        return tuple(a.name for a in schema.arrays if a.may_have_nan)
    from msdata.errors import UsageError

    for name in settings.inpaint:
        if name not in schema.names:
            raise UsageError(
                f"--inpaint {name}: there is no such array; there are {', '.join(schema.names)}"
            )
        if len(schema[name].shape) != 3 or schema[name].dtype != "<f4":
            raise UsageError(f"--inpaint {name}: it is no float32 (bands, height, width) array")
    return settings.inpaint


def _record_nbytes(schema: Schema, settings: PackSettings) -> int:
    if settings.container == "hdf5":
        return schema.sample_nbytes + _JSON_NBYTES
    return tar.record_nbytes(schema, _JSON_NBYTES)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("write", folder, error) from error


def tasks_left(state: PackState, plan: PackPlan) -> list[int]:
    """Numbers of the shards still to be written, the largest first so that none drags behind."""
    left = [n for n in range(len(plan.slices)) if not state.note_path(n).exists()]
    return sorted(left, key=lambda n: (plan.slices[n].start - plan.slices[n].stop, n))


def make_tasks(
    state: PackState, plan: PackPlan, settings: PackSettings, numbers: Sequence[int]
) -> Iterator[ShardTask]:
    """The tasks of the given shards, each made when it is asked for."""
    if not numbers:
        return
    candidates = state.open_candidates()
    preparation = Preparation(
        inpaint=inpainted(plan.schema, settings), max_nan_fraction=settings.max_nan_fraction
    )
    for number in numbers:
        part = plan.slices[number]
        rows = candidates.read_row_group(number)
        yield ShardTask(
            number=number,
            path=state.out / part.split / part.name,
            container=settings.container,
            chunked=settings.chunked,
            schema=plan.schema,
            preparation=preparation,
            sample_ids=rows["sample_id"].to_pylist(),
            locations=list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True)),
            labels=[json_values(r) for r in rows.select(list(plan.label_columns)).to_pylist()]
            if plan.label_columns
            else [{}] * rows.num_rows,
        )


def json_values(row: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON holds: no NaN, no infinity."""
    return {k: None if _is_not_finite(v) else v for k, v in row.items()}


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and (value != value or value in (float("inf"), -float("inf")))


class RejectLimit:
    """Stops a run in which too many objects are unusable."""

    def __init__(self, state: PackState, plan: PackPlan, maximum: int | None) -> None:
        self._state = state
        self._plan = plan
        self._maximum = maximum
        self._before = plan.num_rejected + sum(
            len(state.read_note(n).facts["rejected"])
            for n in range(len(plan.slices))
            if state.note_path(n).exists()
        )

    def check(self, num_rejected_now: int) -> None:
        """Raises DataError when the limit is passed."""
        total = self._before + num_rejected_now
        if self._maximum is not None and total > self._maximum:
            write_rejected(self._state, self._plan)
            raise DataError(
                f"{total} objects are unusable, more than --max-rejected {self._maximum}; see "
                f"{self._state.out / REJECTED_NAME} for those of finished shards, then run again "
                "with --resume and a higher limit"
            )

    def check_finished(self) -> None:
        """The check after the last object; also right when nothing was left to pack."""
        self.check(0)


class _PoolProgress:
    """The progress line of a worker pool."""

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

    def _totals(self) -> tuple[int, int, int]:
        packed, nbytes, rejected = (int(v) for v in self._pool.counters.sum(axis=0))
        return packed + rejected, nbytes, rejected

    def tick(self) -> None:
        """Shows the counters and checks the limit."""
        done, nbytes, rejected = self._totals()
        self._limit.check(rejected)
        self._line.update(done, nbytes, f"{rejected:,} rejected" if rejected else "")

    def close(self) -> None:
        """Ends the line."""
        done, nbytes, rejected = self._totals()
        self._line.close(done, nbytes, f"{rejected:,} rejected" if rejected else "")
