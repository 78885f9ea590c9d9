"""WebDataset tar shards: a sample's arrays as `.npy` members, then its JSON member.

Against HDF5: any tar or WebDataset tool reads them, a sample lies in one piece, and DALI has an
index beside each; the price is 0.7 % of headers. The layout of a record is the same for every
sample (headers of fixed length, arrays first), so one scattering read fetches all arrays of one.

Source: POSIX.1-2001 ustar interchange format; the WebDataset convention (key up to the first dot).
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from urllib.parse import quote

import numpy as np

from msdata.atomic_file import partial_path, publish, storage_error, write_whole
from msdata.checksum import crc32c
from msdata.errors import SampleError
from msdata.schema import Schema
from msdata.shards.block_writer import BlockWriter
from msdata.shards.npy import npy_header
from msdata.shards.shard import Record, ShardSummary, array_views

SUFFIX = ".tar"
INDEX_SUFFIX = ".idx"
_BLOCK = 512
_NAME_BYTES = 100
_END = bytes(2 * _BLOCK)
_CHECKSUM_AT = slice(148, 156)
_DALI_INDEX_VERSION = "v1.2"
# No owner, no time: equal input gives equal bytes.
_MODE = 0o644


def member_key(sample_id: str) -> str:
    """The sample's id as the first part of its members' names.

    WebDataset ends the key at the first dot, and a slash would make folders: both are
    percent-encoded, as is everything that is not plain ASCII.
    """
    return quote(sample_id, safe="-_+=@,").replace(".", "%2E")


def _padding(nbytes: int) -> int:
    return -nbytes % _BLOCK


def _header_template(nbytes: int) -> tuple[bytes, int]:
    """The ustar header without a name, and the sum of its bytes with a blank checksum."""
    info = tarfile.TarInfo("")
    info.size, info.mode, info.mtime = nbytes, _MODE, 0
    blank = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    blank[_CHECKSUM_AT] = b" " * 8
    return bytes(blank[_NAME_BYTES:]), sum(blank)


def _member_header(name: bytes, template: tuple[bytes, int]) -> bytes:
    rest, blank_sum = template
    checksum = b"%06o\0 " % (blank_sum + sum(name))
    start = _CHECKSUM_AT.start - _NAME_BYTES
    padded = name + bytes(_NAME_BYTES - len(name))
    return b"".join((padded, rest[:start], checksum, rest[start + 8 :]))


class TarShardWriter:
    """Writes one tar shard and, when finished, the DALI index beside it."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._schema = schema
        self._npy = [npy_header(a) for a in schema.arrays]
        self._headers = [
            _header_template(len(npy) + a.nbytes)
            for npy, a in zip(self._npy, schema.arrays, strict=True)
        ]
        self._suffixes = [f".{a.name}.npy".encode() for a in schema.arrays]
        self._paddings = [
            bytes(_padding(len(npy) + a.nbytes))
            for npy, a in zip(self._npy, schema.arrays, strict=True)
        ]
        self._end = 0
        self._frame_crc = 0
        self._offsets: list[list[int]] = []
        self._index_lines: list[str] = []
        try:
            self._fd = os.open(partial_path(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise storage_error("write", path, error) from error
        self._blocks = BlockWriter(self._fd)

    @property
    def fd(self) -> int:
        """The open file, for early flushing while it is written."""
        return self._fd

    def append(self, record: Record) -> None:
        """Adds one sample; see `ShardWriter.append`."""
        key = member_key(record.sample_id).encode()
        longest = max(max(map(len, self._suffixes)), len(b".json"))
        if len(key) + longest > _NAME_BYTES:
            raise SampleError(
                f"its id is too long for a tar member's name ({len(key)} of at most "
                f"{_NAME_BYTES - longest} bytes)"
            )
        buffers, offsets, members, nbytes = self._record_parts(key, record)
        try:
            self._blocks.append(buffers)
        except OSError as error:
            raise storage_error("write", self._path, error) from error
        self._end += nbytes
        self._offsets.append(offsets)
        self._index_lines.append(members)

    def _record_parts(self, key: bytes, record: Record) -> tuple[list[object], list[int], str, int]:
        buffers: list[object] = []
        offsets: list[int] = []
        members: list[str] = []
        at, frame, pending = self._end, self._frame_crc, b""
        for i, view in enumerate(array_views(record)):
            name = key + self._suffixes[i]
            head = pending + _member_header(name, self._headers[i]) + self._npy[i]
            frame = crc32c(head, frame)
            at += len(head)
            offsets.append(at)
            members.append(self._dali_entry(name, at - len(self._npy[i]), view.nbytes, i))
            buffers += (head, view)
            at += view.nbytes
            pending = self._paddings[i]
        text = json.dumps(dict(record.metadata), separators=(",", ":"), allow_nan=False).encode()
        header = _member_header(key + b".json", _header_template(len(text)))
        tail = pending + header + text + bytes(_padding(len(text)))
        buffers.append(tail)
        json_at = at + len(pending) + _BLOCK
        members.append(f"json {json_at} {len(text)} {(key + b'.json').decode()}")
        self._frame_crc = crc32c(tail, frame)
        nbytes = at + len(tail) - self._end
        return buffers, offsets, " ".join(members), nbytes

    def _dali_entry(self, name: bytes, at: int, nbytes: int, i: int) -> str:
        size = len(self._npy[i]) + nbytes
        return f"{self._schema.arrays[i].name}.npy {at} {size} {name.decode()}"

    def finish(self) -> ShardSummary:
        """Completes the shard; see `ShardWriter.finish`."""
        try:
            self._blocks.append([_END])
            self._blocks.flush()
            os.fsync(self._fd)
            os.close(self._fd)
            publish(self._path)
        except OSError as error:
            raise storage_error("write", self._path, error) from error
        header = f"{_DALI_INDEX_VERSION} {len(self._index_lines)}\n"
        text = header + "".join(line + "\n" for line in self._index_lines)
        write_whole(dali_index_path(self._path), text.encode())
        shape = (len(self._offsets), len(self._schema.arrays))
        return ShardSummary(
            nbytes=self._end + len(_END),
            frame_crc32c=crc32c(_END, self._frame_crc),
            offsets=np.array(self._offsets, np.int64).reshape(shape),
        )

    def abort(self) -> None:
        """Removes what was written."""
        os.close(self._fd)
        partial_path(self._path).unlink(missing_ok=True)


def dali_index_path(shard: Path) -> Path:
    """Where the DALI index of a tar shard lies."""
    return shard.with_suffix(INDEX_SUFFIX)


def record_nbytes(schema: Schema, json_bytes: int) -> int:
    """Bytes of one record in a tar, for dividing samples into shards.

    Args:
        schema: the arrays.
        json_bytes: length of the JSON member's text.
    """
    members = [len(npy_header(a)) + a.nbytes for a in schema.arrays] + [json_bytes]
    return sum(_BLOCK + n + _padding(n) for n in members)
