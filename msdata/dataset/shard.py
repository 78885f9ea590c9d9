"""Shared by all shard containers: the records that go in and the summary that comes out."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.core.files import open_temporary, publish, refusals, storage_error
from msdata.dataset.block_writer import BlockWriter
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
        """Removes the unfinished shard; silent, because it follows another error."""


class FileShardWriter(ABC):
    """A `ShardWriter` of one file, which has a temporary name until it is whole.

    Args:
        path: final name.

    Raises:
        StorageError: the file system refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: list[BlockWriter] = []
        with refusals("write", path):
            temporary = open_temporary(path)
        self._fd, self._partial = temporary.fd, temporary.path

    @abstractmethod
    def _append(self, record: Record) -> None:
        """Adds one sample; may raise OSError."""

    @abstractmethod
    def _complete(self) -> ShardSummary:
        """Writes all that is left; may raise OSError."""

    def append(self, record: Record) -> None:
        """Adds one sample; see `ShardWriter.append`."""
        try:
            self._append(record)
        except OSError as error:
            raise storage_error("write", self._path, error) from error

    def finish(self) -> ShardSummary:
        """Completes the shard; see `ShardWriter.finish`."""
        with refusals("write", self._path):
            summary = self._complete()
            os.fsync(self._fd)
            publish(self._partial, self._path)
            self._close()
        return summary

    def abort(self) -> None:
        """Removes the unfinished shard; see `ShardWriter.abort`."""
        # h5py raises RuntimeError for errors of the system.
        with suppress(OSError, RuntimeError):
            self._close()
        with suppress(OSError):
            self._partial.unlink()

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()
        # Cleared first: closing twice might close another thread's file of the same number.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


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
