"""WebDataset tar shards: a sample's arrays as `.npy` members, then its JSON member.

Compared with HDF5: any tar or WebDataset tool reads them, a sample is contiguous, and DALI has an
index beside each shard; headers take 0.7 %. All records have the same layout (headers of fixed
length, arrays first), so one scattered read fetches all arrays of a sample.

Source: POSIX.1-2001 ustar interchange format; the WebDataset convention (key up to the first dot);
NumPy Enhancement Proposal 1, version 1.0.
"""

from __future__ import annotations

import functools
import os
import sys
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np

from msdata.core.checksum import crc32c
from msdata.core.files import open_temporary, publish, storage_error, write_whole
from msdata.dataset.block_writer import BlockWriter
from msdata.dataset.shard import Record, ShardSummary, array_views, metadata_text
from msdata.errors import SampleError
from msdata.schema import Schema, Survey

SUFFIX = ".tar"
INDEX_SUFFIX = ".idx"
_BLOCK = 512
_NAME_BYTES = 100
_END = bytes(2 * _BLOCK)
# The file grows in steps ahead of the writes: writes that extend it one by one take a third more
# system time (ext4). A hole costs nothing, and `finish` cuts it off.
_RESERVE = 128 << 20
_SIZE_AT = slice(124, 136)
_CHECKSUM_AT = slice(148, 156)
_DALI_INDEX_VERSION = "v1.2"
# Without owner and time: equal input gives equal bytes.
_MODE = 0o644
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_ALIGNMENT = 64


def npy_header(array: Survey) -> bytes:
    """Makes the `.npy` header of one array; NumPy's own has no fixed length.

    Args:
        array: the array's shape and dtype.

    Returns:
        Magic, version, length and the padded dict literal; a multiple of 64 bytes long.
    """
    shape = repr(tuple(array.shape))
    text = f"{{'descr': '{array.dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    unpadded = len(_NPY_MAGIC) + 2 + len(text) + 1
    padded = -(-unpadded // _NPY_ALIGNMENT) * _NPY_ALIGNMENT
    body = text + " " * (padded - unpadded) + "\n"
    return _NPY_MAGIC + len(body).to_bytes(2, "little") + body.encode("latin1")


def member_key(sample_id: str) -> str:
    """Encodes the sample's id as the first part of its members' names.

    WebDataset ends the key at the first dot, and a slash would make folders: both are
    percent-encoded, like everything that is not plain ASCII.
    """
    return quote(sample_id, safe="-_+=@,").replace(".", "%2E")


def _padding(nbytes: int) -> int:
    return -nbytes % _BLOCK


@functools.lru_cache(maxsize=1024)
def _header_template(nbytes: int) -> tuple[bytes, bytes, int]:
    """Returns a ustar header up to its checksum, after it, and the sum with a blank checksum."""
    info = tarfile.TarInfo("")
    info.size, info.mode, info.mtime = nbytes, _MODE, 0
    blank = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    blank[_CHECKSUM_AT] = b" " * 8
    before, after = blank[_NAME_BYTES : _CHECKSUM_AT.start], blank[_CHECKSUM_AT.stop :]
    return bytes(before), bytes(after), sum(blank)


def _member_header(name: bytes, template: tuple[bytes, bytes, int]) -> bytes:
    before, after, blank_sum = template
    return b"%b%b%06o\0 %b" % (name.ljust(_NAME_BYTES, b"\0"), before, blank_sum + sum(name), after)


class TarShardWriter:
    """Writes one tar shard and, when finished, the DALI index beside it."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._schema = schema
        self._dali_members = dali_members(schema)
        self._npy = [npy_header(a) for a in schema.arrays]
        self._headers = [
            _header_template(len(npy) + a.nbytes)
            for npy, a in zip(self._npy, schema.arrays, strict=True)
        ]
        self._suffixes = [f".{a.name}.npy".encode() for a in schema.arrays]
        self._max_key = _NAME_BYTES - max(map(len, (*self._suffixes, b".json")))
        self._paddings = [
            bytes(_padding(len(npy) + a.nbytes))
            for npy, a in zip(self._npy, schema.arrays, strict=True)
        ]
        self._end = 0
        self._frame_crc = 0
        self._offsets: list[list[int]] = []
        self._index_lines: list[str] = []
        try:
            temporary = open_temporary(path)
        except OSError as error:
            raise storage_error("write", path, error) from error
        self._fd, self._partial = temporary.fd, temporary.path
        self._blocks = BlockWriter(self._fd)
        self._reserved = 0

    def append(self, record: Record) -> None:
        """Adds one sample; see `ShardWriter.append`."""
        key = member_key(record.sample_id).encode()
        if len(key) > self._max_key:
            raise SampleError(
                f"its id is too long for a tar member's name ({len(key)} of at most "
                f"{self._max_key} bytes)"
            )
        buffers, offsets, members, nbytes = self._record_parts(key, record)
        try:
            if self._end + nbytes > self._reserved:
                self._reserve(self._end + nbytes + _RESERVE)
            self._blocks.append(buffers)
        except OSError as error:
            raise storage_error("write", self._path, error) from error
        self._end += nbytes
        self._offsets.append(offsets)
        self._index_lines.append(members)

    def _reserve(self, nbytes: int) -> None:
        try:
            os.ftruncate(self._fd, nbytes)
            self._reserved = nbytes
        except OSError:
            # A limit of file sizes that the shard may not reach, or a full disk without sparse
            # files: the writes raise if they fail too.
            self._reserved = sys.maxsize

    def _record_parts(self, key: bytes, record: Record) -> tuple[list[object], list[int], str, int]:
        buffers: list[object] = []
        offsets: list[int] = []
        at, frame, pending = self._end, self._frame_crc, b""
        for i, view in enumerate(array_views(record)):
            name = key + self._suffixes[i]
            head = pending + _member_header(name, self._headers[i]) + self._npy[i]
            frame = crc32c(head, frame)
            at += len(head)
            offsets.append(at)
            buffers += (head, view)
            at += view.nbytes
            pending = self._paddings[i]
        text = metadata_text(record.metadata)
        header = _member_header(key + b".json", _header_template(len(text)))
        tail = pending + header + text + bytes(_padding(len(text)))
        buffers.append(tail)
        json_at = at + len(pending) + _BLOCK
        self._frame_crc = crc32c(tail, frame)
        line = dali_line(key.decode(), self._dali_members, offsets, (json_at, len(text)))
        return buffers, offsets, line, at + len(tail) - self._end

    def finish(self) -> ShardSummary:
        """Completes the shard; see `ShardWriter.finish`."""
        try:
            self._blocks.append([_END])
            self._blocks.flush()
            os.ftruncate(self._fd, self._end + len(_END))
            os.fsync(self._fd)
            publish(self._partial, self._path)
            self._close()
        except OSError as error:
            raise storage_error("write", self._path, error) from error
        write_whole(
            dali_index_path(self._path), dali_index_text(self._index_lines), is_one_of_many=True
        )
        shape = (len(self._offsets), len(self._schema.arrays))
        return ShardSummary(
            nbytes=self._end + len(_END),
            frame_crc32c=crc32c(_END, self._frame_crc),
            offsets=np.array(self._offsets, np.int64).reshape(shape),
        )

    def abort(self) -> None:
        """Removes the unfinished shard; silent, because it follows another error."""
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._partial.unlink()

    def _close(self) -> None:
        self._blocks.close()
        # Cleared first: closing twice might close another thread's file of the same number.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def dali_index_path(shard: Path) -> Path:
    """Returns the path of a tar shard's DALI index."""
    return shard.with_suffix(INDEX_SUFFIX)


def dali_index_text(lines: Sequence[str]) -> bytes:
    """Formats a DALI index.

    Args:
        lines: `dali_line` of each sample.
    """
    header = f"{_DALI_INDEX_VERSION} {len(lines)}\n"
    return (header + "".join(line + "\n" for line in lines)).encode()


def dali_members(schema: Schema) -> list[tuple[str, int, int]]:
    """Lists (suffix, bytes before the pixels, total bytes) of each array's member."""
    heads = [len(npy_header(a)) for a in schema.arrays]
    return [
        (f"{a.name}.npy", head, head + a.nbytes)
        for a, head in zip(schema.arrays, heads, strict=True)
    ]


def dali_line(
    key: str,
    members: Sequence[tuple[str, int, int]],
    offsets: Sequence[int],
    json_span: tuple[int, int],
) -> str:
    """Formats a sample's line in the DALI index: suffix, offset, bytes and name of each member.

    Args:
        key: the sample's `member_key`.
        members: `dali_members` of the schema.
        offsets: offset of each array.
        json_span: offset and bytes of the JSON text.
    """
    parts = [
        f"{suffix} {offset - head} {nbytes} {key}.{suffix}"
        for (suffix, head, nbytes), offset in zip(members, offsets, strict=True)
    ]
    return " ".join((*parts, f"json {json_span[0]} {json_span[1]} {key}.json"))


def json_distance(schema: Schema) -> int:
    """Returns the bytes from the start of a sample's last array to its JSON member's header."""
    last = schema.arrays[-1]
    return last.nbytes + _padding(len(npy_header(last)) + last.nbytes)


def member_nbytes(header: bytes | bytearray) -> int | None:
    """Reads the size from a member's tar header; None if it is damaged."""
    digits = header[_SIZE_AT].rstrip(b"\0 ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def record_nbytes(schema: Schema, json_bytes: int) -> int:
    """Computes the bytes of one record in a tar, to divide samples into shards.

    Args:
        schema: the arrays.
        json_bytes: length of the JSON member's text.
    """
    members = [len(npy_header(a)) + a.nbytes for a in schema.arrays] + [json_bytes]
    return sum(_BLOCK + n + _padding(n) for n in members)
