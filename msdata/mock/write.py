"""Writes mock objects as files, in several processes; the catalog comes last."""

from __future__ import annotations

import contextlib
import csv
import io
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from msdata.core.files import open_temporary, whole_file
from msdata.core.options import num_jobs
from msdata.errors import StorageError, UsageError
from msdata.mock.objects import NUM_IDS, MockModel, build_model, catalog_columns, make_object
from msdata.mock.planted import Planting
from msdata.sources.pickles import object_bytes, object_path

# Objects per task: enough to hide the megabyte of model that travels with it, few enough for
# progress to move and for both ends of the work to finish together.
_CHUNK = 25
# Below this a second process costs more to start (about 0.3 s) than it saves.
_MIN_OBJECTS_PER_JOB = 50

Rows = list[dict[str, str]]


def write_mock(
    out: Path,
    *,
    num_objects: int,
    seed: int,
    jobs: int | None = None,
    planting: Planting | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Writes mock objects and their catalog.

    Object i depends on `seed` and i alone: fewer objects are a prefix of more, and any number of
    jobs writes the same bytes. Worker processes are spawned, so a script that calls this needs the
    usual `if __name__ == "__main__":`.

    Args:
        out: folder to fill; made if absent, refused if not empty.
        num_objects: number of objects, 1 to 10,000,000; each takes 0.6 MB.
        seed: seed of the data set, not negative.
        jobs: processes; None takes one per processor that this process may use.
        planting: faults to plant, see `msdata.mock.planted`; None plants none.
        progress: called in this process with the number of objects written so far.

    Returns:
        Path of `catalog.csv`: one row per object, in the order of their numbers. The objects are
        `photometry/d0/d1/d2/d3/ddddddd.npy`, dicts with `galex`, `panstarrs` and `unwise`.

    Raises:
        UsageError: `out` is not an empty folder, or a number is out of range.
        MissingPackageError: kcorrect, speclite or SciPy is not installed.
        StorageError: the file system refused, or a worker process died; `out` then has no
            `catalog.csv`.
    """
    out = Path(out)
    jobs = num_jobs(jobs)
    _check(out, num_objects, seed)
    planting = planting or Planting()
    write_chunk = partial(_write_chunk, build_model(), out, seed, planting)
    chunks = _chunks(write_chunk, num_objects, jobs)
    return _write_dataset(chunks, out, catalog_columns(planting), progress)


def _write_dataset(
    chunks: Iterator[Rows],
    out: Path,
    columns: tuple[str, ...],
    progress: Callable[[int], None] | None,
) -> Path:
    catalog = out / "catalog.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(catalog) as whole:
            file = io.TextIOWrapper(whole, encoding="utf-8", newline="")
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            num_written = 0
            for rows in chunks:
                writer.writerows(rows)
                num_written += len(rows)
                if progress is not None:
                    progress(num_written)
            file.detach()
    except BrokenProcessPool as error:
        raise StorageError(
            f"a process that wrote mock objects to {out} died, often for want of memory; the data "
            f"set has no catalog; remove {out} and write it again with fewer jobs"
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot write mock objects to {out}: {error.__cause__ or error}; the data set has no "
            "catalog; make room or choose another folder, and write it again"
        ) from error
    return catalog


def _check(out: Path, num_objects: int, seed: int) -> None:
    if not 1 <= num_objects <= NUM_IDS:
        raise UsageError(
            f"the number of mock objects must be 1 to {NUM_IDS:,}, got {num_objects}: "
            "their ids have seven digits"
        )
    if seed < 0:
        raise UsageError(f"seed must be at least 0, got {seed}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, so nothing was written; name a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(
            f"{out} is not empty, so nothing was written; name a new folder or empty this one"
        )


def _chunks(write_chunk: partial[Rows], num_objects: int, jobs: int) -> Iterator[Rows]:
    """Writes all objects, chunk by chunk, and yields their catalog rows in order."""
    starts = range(0, num_objects, _CHUNK)
    chunks = (range(start, min(start + _CHUNK, num_objects)) for start in starts)
    jobs = min(jobs, max(num_objects // _MIN_OBJECTS_PER_JOB, 1))
    if jobs == 1:
        yield from map(write_chunk, chunks)
        return
    # Spawned, not forked: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent) as executor:
        waiting: deque[Future[Rows]] = deque()
        try:
            for chunk in chunks:
                waiting.append(executor.submit(write_chunk, chunk))
                # A few chunks a process ahead; millions of objects would fill the memory.
                if len(waiting) > 4 * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone: a killed parent would leave it waiting for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="mock-parent-watch", daemon=True).start()


def _write_chunk(
    model: MockModel, out: Path, seed: int, planting: Planting, numbers: range
) -> Rows:
    rows = []
    for number in numbers:
        made = make_object(model, seed, number, planting)
        path = object_path(made.row["mantis_id"], ".npy")
        _save(out / "photometry" / path, made.sample)
        rows.append(made.row)
    return rows


def _save(path: Path, sample: Mapping[str, Any]) -> None:
    # Whole or not there: a reader, or a second run, never sees half a file.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = open_temporary(path)
    try:
        with os.fdopen(temporary.fd, "wb") as file:
            file.write(object_bytes(sample))
        temporary.path.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.path.unlink(missing_ok=True)
        raise
