"""What all shard containers share: the record that goes in and the summary that comes out."""

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
        arrays: C-contiguous little-endian arrays in the schema's order.
        crc32c: checksum over the arrays' bytes in that order.
        metadata: what the sample's JSON member says; plain values that JSON holds.
    """

    sample_id: str
    arrays: tuple[Array, ...]
    crc32c: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What is known of a finished shard.

    Attributes:
        nbytes: size of the file.
        frame_crc32c: checksum of all bytes that belong to no array, in file order.
        offsets: int64 (samples, arrays), file offset of each array's first byte.
    """

    nbytes: int
    frame_crc32c: int
    offsets: NDArray[np.int64]


class ShardWriter(Protocol):
    """Writes records in order; the shard gets its name in `finish`."""

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
        """Removes what was written."""


# `json.dumps` would make an encoder a call, since it is told of separators.
_encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def metadata_text(metadata: Mapping[str, Any]) -> bytes:
    """A sample's metadata as shards hold it: JSON without spaces.

    Raises:
        ValueError: a number is not finite.
    """
    return _encode_json(metadata).encode()


def array_views(record: Record) -> list[memoryview]:
    """The arrays' bytes, without copies, in the schema's order."""
    return [memoryview(array.reshape(-1).view(np.uint8).data) for array in record.arrays]


def pwrite_all(fd: int, buffers: Sequence[Any], offset: int) -> int:
    """Writes all buffers at `offset`, going on after short writes.

    Returns:
        The bytes written.
    """
    total = sum(memoryview(b).nbytes for b in buffers)
    done = os.pwritev(fd, buffers, offset)
    if done == total:
        return total
    joined = memoryview(b"".join(buffers))
    while done < total:
        done += os.pwrite(fd, joined[done:], offset + done)
    return total
