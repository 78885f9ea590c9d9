"""Checks one shard, every byte once: arrays against the index, all else against the manifest.

Reads in file order through one buffer, so memory does not grow with the shard. Damage becomes a
`Fault`; only mistakes of the caller raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msdata.core.checksum import crc32c, crc32c_of_parts
from msdata.core.files import storage_error
from msdata.dataset.coded_columns import DECODED_CRC32C, decoded
from msdata.dataset.hdf5 import frame_ranges
from msdata.dataset.manifest import INDEXED
from msdata.dataset.shard_files import ShardFile
from msdata.dataset.tar import INDEX_SUFFIX, dali_index_path
from msdata.errors import DataError, StorageError
from msdata.verify.expected_shard import ExpectedShard, dali_index_of

# One request of a parallel file system; larger ones gain nothing, smaller ones wait more often.
PIECE_NBYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of one file.

    Attributes:
        kind: "missing", "truncated", "longer", "unreadable", "sample", "frame" (bytes that belong
            to no array), "dali_index", "index", "columns" or "manifest".
        path: the file, relative to the data set's folder.
        message: what is wrong with it.
        rows: positions in the shard of the affected samples, where known.
        sample_ids: their ids.
    """

    kind: str
    path: str
    message: str
    rows: tuple[int, ...] = ()
    sample_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def check_shard(expected: ExpectedShard, buffer: Any) -> list[Fault]:
    """Checks one shard.

    Args:
        expected: what manifest and index promise.
        buffer: writable memory to read through.

    Returns:
        Its faults; empty for an intact shard.
    """
    try:
        found = expected.path.stat().st_size
        # Opened with its actual size: a wrong size is a fault, and the samples inside still count.
        file = ShardFile(expected.path, found)
        faults = _size_faults(expected, found)
        faults += _content_faults(expected, file, found, buffer)
        if expected.container == "tar" and not any(
            f.kind in ("truncated", "frame") for f in faults
        ):
            # The sizes of the JSON members are read from the shard; a rebuild writes both files.
            faults += _dali_faults(expected, file)
    except FileNotFoundError:
        count, first = expected.info.num_samples, expected.sample_ids()[0]
        message = f"it is missing: {count:,} samples are lost, the first is {first}"
        return [_fault(expected, "missing", message, range(count))]
    except (DataError, StorageError) as error:
        return [_fault(expected, "unreadable", str(error))]
    except OSError as error:
        message = str(storage_error("read", expected.path, error))
        return [_fault(expected, "unreadable", message)]
    return faults


def _fault(expected: ExpectedShard, kind: str, message: str, rows: Sequence[int] = ()) -> Fault:
    ids = tuple(expected.sample_ids()[row] for row in rows)
    path = expected.info.relative_path
    return Fault(kind=kind, path=path, message=message, rows=tuple(rows), sample_ids=ids)


def _size_faults(expected: ExpectedShard, found: int) -> list[Fault]:
    wanted = expected.info.nbytes
    if found == wanted:
        return []
    if found > wanted:
        message = f"{found - wanted:,} bytes longer than the {wanted:,} that dataset.json says"
        return [_fault(expected, "longer", f"it is {message}")]
    stops = (expected.offsets + expected.array_nbytes).max(axis=1)
    lost = np.flatnonzero(stops > found).tolist()
    message = f"it was truncated: {found:,} of {wanted:,} bytes are left"
    if lost:
        first = expected.sample_ids()[lost[0]]
        message += f", {len(lost):,} samples are lost, the first is {first}"
    else:
        message += ", no sample is lost"
    return [_fault(expected, "truncated", message, lost)]


def _content_faults(
    expected: ExpectedShard, file: ShardFile, found: int, buffer: Any
) -> list[Fault]:
    nbytes = min(found, expected.info.nbytes)
    sums, frame_crc = checksums(expected, file, nbytes, buffer)
    faults = [
        _fault(
            expected,
            "sample",
            f"sample {expected.sample_ids()[row]} is corrupt: CRC32C {crc:08x}, "
            f"expected {said:08x}",
            [row],
        )
        for row, (crc, said) in enumerate(zip(sums, expected.crc32c.tolist(), strict=True))
        if crc is not None and crc != said
    ]
    are_intact = [crc == said for crc, said in zip(sums, expected.crc32c.tolist(), strict=True)]
    faults += _coding_faults(expected, file, are_intact)
    is_ours = expected.container != INDEXED
    if is_ours and nbytes == expected.info.nbytes and frame_crc != expected.info.frame_crc32c:
        said = expected.info.frame_crc32c
        faults.append(
            _fault(
                expected,
                "frame",
                f"bytes between the arrays are corrupt: CRC32C {frame_crc:08x}, expected "
                f"{said:08x}; all pixels are intact, --repair packs the shard again",
            )
        )
    return faults


def _coding_faults(
    expected: ExpectedShard, file: ShardFile, are_intact: Sequence[bool]
) -> list[Fault]:
    """Decodes the samples of a coded shard whose bytes are as they were written."""
    if not expected.codings:
        return []
    faults = []
    names = [f"{prefix}_{name}" for prefix in ("dtype", "step") for name in expected.quantized]
    rows = expected.read_rows([DECODED_CRC32C, *names]).to_pylist()
    for row, (is_intact, values) in enumerate(zip(are_intact, rows, strict=True)):
        if not is_intact:
            continue
        sample_id, said = expected.sample_ids()[row], values[DECODED_CRC32C]
        try:
            stored = file.read_arrays(expected.offsets[row], expected.array_nbytes[row])
            arrays = decoded(expected.schema, expected.codings, stored, values)
            crc = crc32c_of_parts(arrays.values())
            fact = f"decodes to other pixels: CRC32C {crc:08x}, expected {said:08x}"
        except DataError as error:
            crc, fact = None, f"does not decode: {error}"
        if crc != said:
            faults.append(_fault(expected, "sample", f"sample {sample_id} {fact}", [row]))
    return faults


def _dali_faults(expected: ExpectedShard, file: ShardFile) -> list[Fault]:
    """Compares the DALI index beside a tar shard, whose headers are intact, with a rebuilt one."""
    try:
        found = dali_index_path(expected.path).read_bytes()
        fact = "" if found == dali_index_of(file, expected) else "corrupt"
    except FileNotFoundError:
        fact = "missing"
    path = str(Path(expected.info.relative_path).with_suffix(INDEX_SUFFIX))
    message = f"the index that DALI reads is {fact}; --repair rebuilds it"
    return [Fault(kind="dali_index", path=path, message=message)] if fact else []


def checksums(
    expected: ExpectedShard, file: ShardFile, nbytes: int, buffer: Any
) -> tuple[list[int | None], int]:
    """Reads a shard once.

    Args:
        expected: what manifest and index promise.
        file: the open shard.
        nbytes: bytes to read.
        buffer: writable memory to read through.

    Returns:
        CRC32C of each sample's arrays, None for a sample that is cut off; and CRC32C of all other
        bytes.
    """
    num_samples = len(expected.offsets)
    sums = [0] * (num_samples + 1)
    view = memoryview(buffer)
    segments, is_in_order = _segments(expected)
    base = filled = 0
    for start, stop, row in segments:
        at, stop = start, min(stop, nbytes)
        while at < stop:
            if not base <= at < base + filled:
                # Out of order, the bytes beyond the segment are not needed next.
                end = nbytes if is_in_order else stop
                base, filled = at, min(len(view), end - at)
                file.read_into([view[:filled]], base)
            take = min(stop, base + filled) - at
            sums[row] = crc32c(view[at - base : at - base + take], sums[row])
            at += take
    stops = (expected.offsets + expected.array_nbytes).max(axis=1, initial=0)
    complete = (stops <= nbytes).tolist()
    return [crc if ok else None for crc, ok in zip(sums, complete, strict=False)], sums[-1]


def _segments(expected: ExpectedShard) -> tuple[list[tuple[int, int, int]], bool]:
    """Lists (start, stop, row) of all bytes; row -1 stands for bytes between the arrays.

    In file order if that visits each sample's arrays in the schema's order, as its checksum needs;
    otherwise sample by sample, then the rest. The second value says whether it is in file order.
    """
    offsets, sizes = expected.offsets, expected.array_nbytes
    num_samples, num_arrays = offsets.shape
    starts = offsets.reshape(-1)
    stops = (offsets + sizes).reshape(-1)
    rows = np.repeat(np.arange(num_samples), num_arrays)
    arrays = list(zip(starts.tolist(), stops.tolist(), rows.tolist(), strict=True))
    if expected.container == INDEXED:
        # What lies between belongs to other splits, or to whoever wrote the file.
        return arrays, False
    gaps = [(a, b, -1) for a, b in frame_ranges(offsets, sizes, expected.info.nbytes)]
    if bool((np.diff(offsets, axis=1) > 0).all()):
        return sorted(arrays + gaps), True
    return arrays + gaps, False
