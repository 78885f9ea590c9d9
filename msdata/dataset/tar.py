"""WebDataset tar shards: a sample's arrays as `.npy` members, then its JSON member.

Arrays of a coded data set are `.npy` members of codes, or `.blosc` members where compressed.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from msdata.core.checksum import crc32c
from msdata.core.files import write_whole
from msdata.dataset.block_writer import BlockWriter
from msdata.dataset.coding import ArrayCoding
from msdata.dataset.shard import FileShardWriter, Record, ShardSummary, array_views, metadata_text
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


def npy_header(array: Survey, dtype: str | None = None) -> bytes:
    """Makes the `.npy` header of one array; NumPy's own has no fixed length.

    Args:
        array: the array's shape and dtype.
        dtype: the dtype that it is stored as; None for its own.

    Returns:
        Magic, version, length and the padded dict literal; a multiple of 64 bytes long.
    """
    shape = repr(tuple(array.shape))
    text = f"{{'descr': '{dtype or array.dtype}', 'fortran_order': False, 'shape': {shape}, }}"
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


def max_key_nbytes(schema: Schema, *, is_coded: bool = False) -> int:
    """Returns the bytes that a sample's `member_key` may have in shards of this schema."""
    longest = max((*schema.names, ""), key=len) + (".blosc" if is_coded else ".npy")
    return _NAME_BYTES - len(f".{longest}")


def _padding(nbytes: int) -> int:
    return -nbytes % _BLOCK


def _header_template() -> tuple[bytes, bytes, bytes, int]:
    """Returns a ustar header before, between and after size and checksum, and the sum of these."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime = _MODE, 0
    blank = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    blank[_SIZE_AT], blank[_CHECKSUM_AT] = bytes(12), b" " * 8
    before, between = blank[_NAME_BYTES : _SIZE_AT.start], blank[_SIZE_AT.stop : _CHECKSUM_AT.start]
    return bytes(before), bytes(between), bytes(blank[_CHECKSUM_AT.stop :]), sum(blank)


_BEFORE, _BETWEEN, _AFTER, _BLANK_SUM = _header_template()


def _member_header(name: bytes, nbytes: int) -> bytes:
    size = b"%011o" % nbytes
    total = _BLANK_SUM + sum(name) + sum(size)
    name = name.ljust(_NAME_BYTES, b"\0")
    return b"%b%b%b\0%b%06o\0 %b" % (name, _BEFORE, size, _BETWEEN, total, _AFTER)


@dataclass(frozen=True)
class Member:
    """The member of one array.

    Attributes:
        suffix: the end of its name, such as "panstarrs.npy".
        head: its bytes before the array: the `.npy` header, empty for a compressed array.
    """

    suffix: str
    head: bytes


@functools.lru_cache(maxsize=1024)
def member_of(array: Survey, coding: ArrayCoding | None = None, dtype: str | None = None) -> Member:
    """Returns the member of an array.

    Args:
        array: the array.
        coding: how a coded data set stores it; None for one that is not coded.
        dtype: the dtype that it is stored as; None for its own.
    """
    if coding is not None and coding.compress != "none":
        return Member(f"{array.name}.blosc", b"")
    return Member(f"{array.name}.npy", npy_header(array, dtype))


def members_of(
    schema: Schema, codings: Sequence[ArrayCoding] = (), codes: Sequence[str] = ()
) -> list[Member]:
    """Returns the members of a sample's arrays, in the schema's order.

    Args:
        schema: the arrays.
        codings: how a coded data set stores them.
        codes: the dtypes that they are stored as.
    """
    if not codings:
        return [member_of(a) for a in schema.arrays]
    return list(map(member_of, schema.arrays, codings, codes))


class TarShardWriter(FileShardWriter):
    """Writes one tar shard and, when finished, the DALI index beside it."""

    def __init__(self, path: Path, schema: Schema, codings: Sequence[ArrayCoding] = ()) -> None:
        super().__init__(path)
        self._schema = schema
        self._codings = codings
        self._max_key = max_key_nbytes(schema, is_coded=bool(codings))
        self._end = 0
        self._frame_crc = 0
        self._offsets: list[list[int]] = []
        self._index_lines: list[str] = []
        self._blocks = BlockWriter(self._fd)
        self._streams = [self._blocks]
        self._reserved = 0

    def _append(self, record: Record) -> None:
        key = member_key(record.sample_id).encode()
        if len(key) > self._max_key:
            raise SampleError(
                f"its id is too long for a tar member's name ({len(key)} of at most "
                f"{self._max_key} bytes)"
            )
        buffers, offsets, members, nbytes = self._record_parts(key, record)
        if self._end + nbytes > self._reserved:
            self._reserve(self._end + nbytes + _RESERVE)
        self._blocks.append(buffers)
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
        sizes: list[int] = []
        at, frame, pending = self._end, self._frame_crc, b""
        members = members_of(self._schema, self._codings, record.codes)
        for member, view in zip(members, array_views(record), strict=True):
            nbytes = len(member.head) + view.nbytes
            name = b"%b.%b" % (key, member.suffix.encode())
            head = pending + _member_header(name, nbytes) + member.head
            frame = crc32c(head, frame)
            at += len(head)
            offsets.append(at)
            sizes.append(view.nbytes)
            buffers += (head, view)
            at += view.nbytes
            pending = bytes(_padding(nbytes))
        text = metadata_text(record.metadata)
        header = _member_header(key + b".json", len(text))
        tail = pending + header + text + bytes(_padding(len(text)))
        buffers.append(tail)
        json_at = at + len(pending) + _BLOCK
        self._frame_crc = crc32c(tail, frame)
        line = dali_line(
            key.decode(), members, zip(offsets, sizes, strict=True), (json_at, len(text))
        )
        return buffers, offsets, line, at + len(tail) - self._end

    def finish(self) -> ShardSummary:
        """Completes the shard and the index; see `ShardWriter.finish`."""
        summary = super().finish()
        text = dali_index_text(self._index_lines)
        write_whole(dali_index_path(self._path), text, is_one_of_many=True)
        return summary

    def _complete(self) -> ShardSummary:
        self._blocks.append([_END])
        self._blocks.flush()
        os.ftruncate(self._fd, self._end + len(_END))
        shape = (len(self._offsets), len(self._schema.arrays))
        return ShardSummary(
            nbytes=self._end + len(_END),
            frame_crc32c=crc32c(_END, self._frame_crc),
            offsets=np.array(self._offsets, np.int64).reshape(shape),
        )


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


def dali_line(
    key: str,
    members: Sequence[Member],
    spans: Iterable[tuple[int, int]],
    json_span: tuple[int, int],
) -> str:
    """Formats a sample's line in the DALI index: suffix, offset, bytes and name of each member.

    Args:
        key: the sample's `member_key`.
        members: `members_of` its arrays.
        spans: offset and bytes of each array.
        json_span: offset and bytes of the JSON text.
    """
    parts = [
        f"{m.suffix} {offset - len(m.head)} {len(m.head) + nbytes} {key}.{m.suffix}"
        for m, (offset, nbytes) in zip(members, spans, strict=True)
    ]
    return " ".join((*parts, f"json {json_span[0]} {json_span[1]} {key}.json"))


def json_distance(member: Member, nbytes: int) -> int:
    """Returns the bytes from the start of a sample's last array to its JSON member's header.

    Args:
        member: the last array's.
        nbytes: its bytes.
    """
    return nbytes + _padding(len(member.head) + nbytes)


def member_nbytes(header: bytes | bytearray) -> int | None:
    """Reads the size from a member's tar header; None if it is damaged."""
    digits = header[_SIZE_AT].rstrip(b"\0 ")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def record_nbytes(schema: Schema, json_bytes: int, stored_nbytes: int | None = None) -> int:
    """Computes the bytes of one record in a tar, to divide samples into shards.

    Args:
        schema: the arrays.
        json_bytes: length of the JSON member's text.
        stored_nbytes: bytes of its arrays, about; None for those of a data set that is not coded.
    """
    sizes = [len(npy_header(a)) + a.nbytes for a in schema.arrays]
    if stored_nbytes is not None:
        # On average half a block of padding.
        sizes = [stored_nbytes + len(sizes) * _BLOCK // 2] + [0] * (len(sizes) - 1)
    return sum(_BLOCK + n + _padding(n) for n in (*sizes, json_bytes))
