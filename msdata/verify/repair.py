"""Mends bad shards from the objects they were packed from, or leaves them as they are.

A shard with a few bad samples is copied and those alone are read again; one with damaged headers or
of the wrong size is packed again, by the code that packed it. Either way the new file replaces the
old one only when each of its bytes agrees with manifest and index, so a source that has changed
since can do no harm.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from msdata.core.checksum import crc32c_of_parts
from msdata.core.file_lock import take_lock
from msdata.core.files import storage_error, sync_folder, write_whole
from msdata.core.trusted_names import check_below
from msdata.dataset.shard import pwrite_all
from msdata.dataset.shard_files import ShardFile
from msdata.dataset.tar import dali_index_path
from msdata.errors import DataError, MsdataError
from msdata.pack.columns import scalar_names
from msdata.pack.planning import label_rows
from msdata.pack.prepare import prepare
from msdata.pack.shard_task import Rejection, ShardResult, ShardTask, pack_shard
from msdata.schema import Array
from msdata.verify.expected_shard import ExpectedShard
from msdata.verify.frame_check import dali_index_of
from msdata.verify.packed_objects import PackedObjects
from msdata.verify.shard_check import PIECE_NBYTES, Fault, check_shard
from msdata.verify.verify import Expectations, VerifyReport

# Faults that leave everything but single samples' pixels in place.
_PATCHABLE = frozenset(("sample", "longer"))
_PREFIX = ".repair-"
# As `tempfile` names them.
_LEFTOVER = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")


@dataclass(frozen=True, kw_only=True)
class Mending:
    """What became of one bad file.

    Attributes:
        path: the file, below the data set's folder.
        is_mended: it is whole again; else it is as it was.
        message: what was done, or why nothing was.
    """

    path: str
    is_mended: bool
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def repair(report: VerifyReport, *, source: Path | None = None) -> list[Mending]:
    """Mends what can be mended.

    Args:
        report: what `verify_dataset` found.
        source: the folder with the objects; None takes the one that was packed.

    Returns:
        One entry a bad file.

    Raises:
        StorageError: the data set's folder cannot be written.
    """
    manifest = report.manifest
    if manifest is None or any(f.kind == "index" for f in report.faults):
        return [_refused(f) for f in report.faults if f.kind in ("index", "manifest")]
    faults: dict[str, list[Fault]] = defaultdict(list)
    for fault in report.faults:
        faults[fault.path].append(fault)
    mendings: list[Mending] = []
    objects = PackedObjects(report.path, manifest, source)
    with _temporary_folder(report.path) as folder:
        for expected in Expectations(report.path, manifest).shards():
            found = faults.get(expected.info.relative_path, [])
            if found:
                mendings.append(_mend_shard(expected, found, objects, folder))
            index_path = dali_index_path(expected.path).relative_to(report.path).as_posix()
            if index_path in faults and all(m.is_mended for m in mendings[-1:] if found):
                mendings.append(_mend_dali_index(expected, index_path))
    return mendings


def _refused(fault: Fault) -> Mending:
    message = (
        "cannot be mended: the shards are checked against it; restore it from a copy, or pack "
        "again with the same source, catalogue and settings, which gives the same bytes"
    )
    return Mending(path=fault.path, is_mended=False, message=message)


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder on the data set's own file system, so that a rename can take files out of it."""
    remove_leftovers(folder)
    try:
        made, fd = _make_locked(folder)
    except OSError as error:
        raise storage_error("write", folder, error) from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(fd)


def _make_locked(folder: Path) -> tuple[Path, int]:
    """Makes a folder whose lock tells that it is in use."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        # Another repair that starts may find it before it is locked, and remove it.
        with suppress(FileNotFoundError):
            fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if take_lock(fd) and made.exists():
                return made, fd
            os.close(fd)


def remove_leftovers(folder: Path) -> None:
    """Removes what repairs left that were killed; those of another user, or in use, stay.

    Args:
        folder: of the data set.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for path in folder.glob(f"{_PREFIX}*"):
        if not _LEFTOVER.fullmatch(path.name):
            continue
        with suppress(OSError):
            fd = os.open(path, flags)
            try:
                # Where there are no locks, none is known to be unused.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_uid == os.geteuid():
                    shutil.rmtree(path)
            finally:
                os.close(fd)


def _mend_shard(
    expected: ExpectedShard, faults: Sequence[Fault], objects: PackedObjects, folder: Path
) -> Mending:
    path = expected.info.relative_path
    # The same name below another folder: the writers name what they write after it.
    made = replace(expected, path=folder / path)
    try:
        check_below(folder.parent, expected.path)
        made.path.parent.mkdir(exist_ok=True)
        if all(f.kind in _PATCHABLE for f in faults):
            message = _patch(expected, made, faults, objects)
        else:
            message = _rebuild(made, objects)
        _take_over(expected, made)
    except MsdataError as error:
        return Mending(path=path, is_mended=False, message=f"not mended, left as it is: {error}")
    except OSError as error:
        reason = storage_error("write", expected.path, error)
        return Mending(path=path, is_mended=False, message=f"not mended, left as it is: {reason}")
    return Mending(path=path, is_mended=True, message=message)


def _patch(
    expected: ExpectedShard, made: ExpectedShard, faults: Sequence[Fault], objects: PackedObjects
) -> str:
    """Copies the shard, cut to its size, and writes the bad samples anew."""
    shutil.copyfile(expected.path, made.path)
    os.truncate(made.path, expected.info.nbytes)
    rows = sorted({row for fault in faults for row in fault.rows})
    if not rows:
        return f"mended: cut to its {expected.info.nbytes:,} bytes"
    ids, locations, preparation = (
        made.sample_ids(),
        objects.locations(made),
        objects.preparation(),
    )
    labels = made.read_rows(None).take(rows).to_pylist()
    names: set[str] = set()
    with made.path.open("r+b") as file:
        for row, label in zip(rows, labels, strict=True):
            try:
                sample = objects.source.read(*locations[row], label)
                arrays = prepare(sample, made.schema, preparation).arrays
            except MsdataError as error:
                raise _changed(ids[row], f"its object {locations[row][0]}: {error}") from error
            if crc32c_of_parts(arrays) != int(made.crc32c[row]):
                raise _changed(ids[row], f"its object {locations[row][0]} has changed since")
            names |= _overwrite(file.fileno(), made, row, arrays)
        os.fsync(file.fileno())
    return f"mended: {len(rows):,} samples read again ({', '.join(sorted(names))} differed)"


def _changed(sample_id: str, reason: str) -> DataError:
    return DataError(
        f"sample {sample_id} cannot be made again, {reason}; restore the object, or pack again "
        "without it"
    )


def _overwrite(fd: int, made: ExpectedShard, row: int, arrays: Sequence[Array]) -> set[str]:
    """Writes a sample's arrays where they differ; returns the names of those."""
    names = set()
    for survey, array, offset in zip(
        made.schema.arrays, arrays, made.offsets[row].tolist(), strict=True
    ):
        content = array.reshape(-1).view(np.uint8).tobytes()
        if os.pread(fd, len(content), offset) != content:
            pwrite_all(fd, [content], offset)
            names.add(survey.name)
    return names


def _rebuild(made: ExpectedShard, objects: PackedObjects) -> str:
    """Packs the shard again, with the code that packed it."""
    rows = made.read_rows(None)
    label_columns = objects.label_columns(rows.column_names)
    task = ShardTask(
        number=0,
        path=made.path,
        container=made.container,
        chunked=objects.is_chunked,
        schema=made.schema,
        preparation=objects.preparation(),
        sample_ids=rows["sample_id"].to_pylist(),
        locations=objects.locations(made),
        labels=label_rows(rows.select(label_columns)),
        scalar_names=scalar_names(made.schema, label_columns),
    )
    result = pack_shard(task, objects.source, _NoProgress()).complete()
    _compare(task, result, made)
    return f"mended: {rows.num_rows:,} objects packed again"


class _NoProgress:
    """Shards are mended one by one, with a line each."""

    def accept(self, nbytes: int) -> None:
        """Nothing to show."""

    def reject(self, rejection: Rejection) -> None:
        """The result says it."""


def _compare(task: ShardTask, result: ShardResult, made: ExpectedShard) -> None:
    """Raises DataError unless the rebuilt shard is what the index says."""
    for position, reason in result.rejected:
        place = task.locations[position][0]
        raise _changed(task.sample_ids[position], f"its object {place}: {reason}")
    differs = np.flatnonzero(np.array(result.columns["crc32c"], np.uint32) != made.crc32c)
    if len(differs):
        place = task.locations[int(differs[0])][0]
        raise _changed(
            task.sample_ids[int(differs[0])],
            f"its object {place} has changed since (as have {len(differs) - 1:,} others)",
        )
    summary = result.summary
    if summary is None or not np.array_equal(summary.offsets, made.offsets):
        raise DataError("packed again, the samples lie elsewhere than the index says; pack it all")
    if (summary.nbytes, summary.frame_crc32c) != (made.info.nbytes, made.info.frame_crc32c):
        raise DataError(
            "packed again, the pixels are right but headers or labels differ from what "
            "dataset.json says: another version of msdata or h5py packed them; pack again"
        )


def _take_over(expected: ExpectedShard, made: ExpectedShard) -> None:
    """Gives the new file the old one's name, after a last look at what is on the disk."""
    index_path = dali_index_path(made.path)
    if made.container == "tar" and not index_path.exists():
        file = ShardFile(made.path, made.info.nbytes)
        write_whole(index_path, dali_index_of(file, made))
    for fault in check_shard(made, bytearray(PIECE_NBYTES)):
        raise DataError(f"what was made anew is wrong too: {fault.message}")
    if expected.path.is_file() and not expected.path.is_symlink():
        shutil.copymode(expected.path, made.path)
    expected.path.parent.mkdir(exist_ok=True)
    if made.container == "tar":
        index_path.replace(dali_index_path(expected.path))
    made.path.replace(expected.path)
    sync_folder(expected.path.parent)


def _mend_dali_index(expected: ExpectedShard, path: str) -> Mending:
    try:
        check_below(expected.path.parents[1], expected.path)
        file = ShardFile(expected.path, expected.info.nbytes)
        write_whole(dali_index_path(expected.path), dali_index_of(file, expected))
    except MsdataError as error:
        return Mending(path=path, is_mended=False, message=f"not mended: {error}")
    return Mending(path=path, is_mended=True, message="mended: made anew from the shard")
