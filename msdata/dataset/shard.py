"""Shared by all shard containers: the records that go in and the summary that comes out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.schema import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One sample ready to be written.

    Attributes:
        sample_id: its id, unique in the data set.
        arrays: C-contiguous little-endian arrays in the schema's order; uint8 (bytes,) of a coded
            data set.
        crc32c: checksum over the arrays' bytes in that order.
        metadata: content of the sample's JSON member.
        codes: dtype that each array of a coded data set is stored as.
    """

    sample_id: str
    arrays: tuple[Array, ...]
    crc32c: int
    metadata: Mapping[str, Any]
    codes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """Summary of a finished shard.

    Attributes:
        nbytes: size of the file.
        frame_crc32c: CRC32C of all bytes between the arrays, in file order.
        offsets: int64 (samples, arrays), file offset of each array's first byte.
    """

    nbytes: int
    frame_crc32c: int
    offsets: NDArray[np.int64]


class ShardWriter(Protocol):
    """Writes records in order; `finish` gives the shard its name."""

    def append(self, record: Record) -> None:
        """Adds one sample.

        Raises:
            StorageError: the file system refused.
        """

    def finish(self) -> ShardSummary:
        """Completes the shard, flushes it to the disk and renames it.

        Raises:
            StorageError: the file system refused.
        """

    def abort(self) -> None:
        """Removes the unfinished shard."""


# `json.dumps` with separators would make one encoder per call.
_encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def metadata_text(metadata: Mapping[str, Any]) -> bytes:
    """Encodes a sample's metadata for shards: JSON without spaces.

    Raises:
        ValueError: a number is not finite.
    """
    return _encode_json(metadata).encode()


def array_views(record: Record) -> list[memoryview]:
    """Returns the arrays' bytes, without copies, in the schema's order."""
    return [memoryview(array.reshape(-1).view(np.uint8).data) for array in record.arrays]


def pwrite_all(fd: int, buffers: Sequence[Any], offset: int) -> int:
    """Writes all buffers at `offset`, continuing after short writes.

    Returns:
        The number of bytes.
    """
    total = sum(memoryview(b).nbytes for b in buffers)
    done = os.pwritev(fd, buffers, offset)
    if done == total:
        return total
    joined = memoryview(b"".join(buffers))
    while done < total:
        done += os.pwrite(fd, joined[done:], offset + done)
    return total
