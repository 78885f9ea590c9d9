"""Rebuilds damaged shards from their source files, or leaves them as they are.

If a few samples of a shard are corrupt, `repair` copies the shard and reads those samples again. If
its headers are damaged or its size is wrong, `repair` packs it again with the code that packed it.
The new file replaces the old one only when all its bytes agree with manifest and index, so a source
that has changed since cannot do harm.
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
from msdata.core.files import storage_error, sync_folder, take_lock, write_whole
from msdata.core.trusted_names import check_below
from msdata.dataset.block_writer import pwrite_all
from msdata.dataset.coded_columns import DECODED_CRC32C
from msdata.dataset.manifest import INDEXED
from msdata.dataset.shard_files import ShardFile
from msdata.dataset.tar import dali_index_path
from msdata.errors import DataError, MsdataError
from msdata.pack.columns import scalar_names
from msdata.pack.encode import encode_sample
from msdata.pack.planning import label_rows
from msdata.pack.prepare import prepare
from msdata.pack.shard_task import Rejection, ShardResult, ShardTask, pack_shard
from msdata.schema import Array
from msdata.verify.expected_shard import ExpectedShard, dali_index_of
from msdata.verify.packed_objects import PackedObjects
from msdata.verify.shard_check import PIECE_NBYTES, Fault, check_shard
from msdata.verify.verify import Expectations, VerifyReport

# Faults that leave everything in place except the pixels of single samples.
_PATCHABLE = frozenset(("sample", "longer"))
_PREFIX = ".repair-"
# `tempfile` names them so.
_LEFTOVER = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")


@dataclass(frozen=True, kw_only=True)
class RepairResult:
    """The outcome of the repair of one damaged file.

    Attributes:
        path: the file, relative to the data set's folder.
        is_repaired: the file is whole again; otherwise it is unchanged.
        message: what was done, or why nothing was done.
    """

    path: str
    is_repaired: bool
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def repair(report: VerifyReport, *, source: Path | None = None) -> list[RepairResult]:
    """Repairs the files that can be repaired.

    Args:
        report: what `verify_dataset` found.
        source: the folder with the objects; None uses the folder that was packed.

    Returns:
        One result per damaged file.

    Raises:
        StorageError: the data set's folder cannot be written.
    """
    manifest = report.manifest
    if manifest is None or any(f.kind == "index" for f in report.faults):
        return [_refused(f) for f in report.faults if f.kind in ("index", "manifest")]
    if manifest.container == INDEXED:
        return [_not_ours(report.path, f) for f in report.faults]
    faults: dict[str, list[Fault]] = defaultdict(list)
    for fault in report.faults:
        faults[fault.path].append(fault)
    results: list[RepairResult] = []
    objects = PackedObjects(report.path, manifest, source)
    with _temporary_folder(report.path) as folder:
        for expected in Expectations(report.path, manifest).shards():
            found = faults.get(expected.info.relative_path, [])
            if found:
                results.append(_repair_shard(expected, found, objects, folder))
            index_path = dali_index_path(expected.path).relative_to(report.path).as_posix()
            if index_path in faults and all(r.is_repaired for r in results[-1:] if found):
                results.append(_repair_dali_index(expected, index_path))
    return results


def _refused(fault: Fault) -> RepairResult:
    message = (
        "cannot be repaired: the shards are checked against it; restore it from a copy, or pack "
        "again with the same source, catalog and settings, which gives the same bytes"
    )
    return RepairResult(path=fault.path, is_repaired=False, message=message)


def _not_ours(folder: Path, fault: Fault) -> RepairResult:
    target = (folder / fault.path).resolve()
    message = f"cannot be repaired: it is a link to {target}; restore that file from a copy"
    return RepairResult(path=fault.path, is_repaired=False, message=message)


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder on the data set's own file system, so that files can be renamed out of it."""
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
    """Makes a folder whose lock says that it is in use."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        # Another repair that starts may find the folder before it is locked, and remove it.
        with suppress(FileNotFoundError):
            fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if take_lock(fd) and made.exists():
                return made, fd
            os.close(fd)


def remove_leftovers(folder: Path) -> None:
    """Removes the folders that killed repairs left; keeps those of other users and those in use.

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
                # On a file system without locks all stay: any of them may be in use.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_uid == os.geteuid():
                    shutil.rmtree(path)
            finally:
                os.close(fd)


def _repair_shard(
    expected: ExpectedShard, faults: Sequence[Fault], objects: PackedObjects, folder: Path
) -> RepairResult:
    path = expected.info.relative_path
    # Same relative path in another folder: the writers name their files after it.
    made = replace(expected, path=folder / path)
    try:
        check_below(folder.parent, expected.path)
        made.path.parent.mkdir(exist_ok=True)
        if all(f.kind in _PATCHABLE for f in faults):
            message = _patch(expected, made, faults, objects)
        else:
            message = _rebuild(made, objects)
        _take_over(expected, made)
    except (MsdataError, OSError) as error:
        if not isinstance(error, MsdataError):
            error = storage_error("write", expected.path, error)
        message = f"not repaired, left as it is: {error}"
        return RepairResult(path=path, is_repaired=False, message=message)
    return RepairResult(path=path, is_repaired=True, message=message)


def _patch(
    expected: ExpectedShard, made: ExpectedShard, faults: Sequence[Fault], objects: PackedObjects
) -> str:
    """Copies the shard, cuts it to its size, and rewrites the corrupt samples."""
    shutil.copyfile(expected.path, made.path)
    os.truncate(made.path, expected.info.nbytes)
    rows = sorted({row for fault in faults for row in fault.rows})
    if not rows:
        return f"repaired: cut to its {expected.info.nbytes:,} bytes"
    ids, locations, preparation = (
        made.sample_ids(),
        objects.locations(made),
        objects.preparation(),
    )
    labels = made.read_rows(None).take(rows).to_pylist()
    steps = made.steps() if made.codings else {}
    names: set[str] = set()
    with made.path.open("r+b") as file:
        for row, label in zip(rows, labels, strict=True):
            try:
                sample = objects.source.read(*locations[row], label)
                arrays = prepare(sample, made.schema, preparation).arrays
            except MsdataError as error:
                raise _changed(ids[row], f"its object {locations[row][0]}: {error}") from error
            known = {name: values[row] for name, values in steps.items()}
            stored = encode_sample(arrays, made.codings, known, made.codes[row])
            if crc32c_of_parts(stored.arrays) != int(made.crc32c[row]):
                _refuse_other_bytes(made, row, stored.columns.get(DECODED_CRC32C))
                raise _changed(ids[row], f"its object {locations[row][0]} has changed since")
            names |= _overwrite(file.fileno(), made, row, stored.arrays)
        os.fsync(file.fileno())
    return f"repaired: {len(rows):,} samples read again ({', '.join(sorted(names))} differed)"


def _changed(sample_id: str, reason: str) -> DataError:
    return DataError(
        f"cannot rebuild sample {sample_id}: {reason}; restore the object, or pack again without it"
    )


def _overwrite(fd: int, made: ExpectedShard, row: int, arrays: Sequence[Array]) -> set[str]:
    """Writes the arrays of a sample that differ; returns their names."""
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
    """Packs the shard again with the code that packed it."""
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
        codings=made.codings,
        steps=made.steps() if made.codings else None,
    )
    result = pack_shard(task, objects.source, _NoProgress()).complete()
    _compare(task, result, made)
    return f"repaired: {rows.num_rows:,} objects packed again"


def _refuse_other_bytes(made: ExpectedShard, row: int, decoded_crc32c: int | None) -> None:
    """Raises DataError if a sample decodes as it should, so that only its compressor differs."""
    if decoded_crc32c is None:
        return
    if made.read_rows([DECODED_CRC32C])[DECODED_CRC32C][row].as_py() == decoded_crc32c:
        raise DataError(
            "the compressor gives other bytes for the same pixels: another version of blosc2 "
            "packed them; install that one, or pack again"
        )


class _NoProgress:
    """Shows no progress: each repaired shard has its own line."""

    def accept(self, nbytes: int) -> None:
        """Ignores the bytes."""

    def reject(self, rejection: Rejection) -> None:
        """Ignores the rejection: `ShardResult` lists it."""


def _compare(task: ShardTask, result: ShardResult, made: ExpectedShard) -> None:
    """Raises DataError unless the rebuilt shard agrees with the index."""
    for position, reason in result.rejected:
        place = task.locations[position][0]
        raise _changed(task.sample_ids[position], f"its object {place}: {reason}")
    differs = np.flatnonzero(np.array(result.columns["crc32c"], np.uint32) != made.crc32c)
    if len(differs):
        first = int(differs[0])
        decoded = result.columns.get(DECODED_CRC32C)
        _refuse_other_bytes(made, first, None if decoded is None else decoded[first])
        place = task.locations[int(differs[0])][0]
        raise _changed(
            task.sample_ids[int(differs[0])],
            f"its object {place} has changed since (as have {len(differs) - 1:,} others)",
        )
    summary = result.summary
    if summary is None or not np.array_equal(summary.offsets, made.offsets):
        raise DataError(
            "packed again, the samples lie elsewhere than the index says; pack all again"
        )
    if (summary.nbytes, summary.frame_crc32c) != (made.info.nbytes, made.info.frame_crc32c):
        raise DataError(
            "packed again, the pixels are right but headers or labels differ from what "
            "dataset.json says: another version of msdata or h5py packed them; pack again"
        )


def _take_over(expected: ExpectedShard, made: ExpectedShard) -> None:
    """Checks the new file on the disk and gives it the old one's name."""
    index_path = dali_index_path(made.path)
    if made.container == "tar" and not index_path.exists():
        file = ShardFile(made.path, made.info.nbytes)
        write_whole(index_path, dali_index_of(file, made))
    for fault in check_shard(made, bytearray(PIECE_NBYTES)):
        raise DataError(f"the rebuilt shard is wrong too: {fault.message}")
    if expected.path.is_file() and not expected.path.is_symlink():
        shutil.copymode(expected.path, made.path)
    expected.path.parent.mkdir(exist_ok=True)
    if made.container == "tar":
        index_path.replace(dali_index_path(expected.path))
    made.path.replace(expected.path)
    sync_folder(expected.path.parent)


def _repair_dali_index(expected: ExpectedShard, path: str) -> RepairResult:
    try:
        check_below(expected.path.parents[1], expected.path)
        file = ShardFile(expected.path, expected.info.nbytes)
        write_whole(dali_index_path(expected.path), dali_index_of(file, expected))
    except MsdataError as error:
        return RepairResult(path=path, is_repaired=False, message=f"not repaired: {error}")
    return RepairResult(path=path, is_repaired=True, message="repaired: rebuilt from the shard")
