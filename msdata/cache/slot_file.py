"""One file of a cache tier: a slot for every sample of the shards that this node keeps.

    header | rows | owner, tier, size, place of every shard | entry of every slot | records, packed

The file describes itself, so any process of the user can read it. Writing a slot's state, last,
publishes the slot: readers never see half a sample. Writers use `pwrite`, readers map the file
read-only; so a full file system is an error number, not a signal, and a record costs one copy.
Entries are separate from records, so a search for missing samples touches no records (and allocates
no memory, as even a read of a hole in shared memory would).
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import CachedSplit, Owners
from msdata.cache.slot_places import (
    HEADER_NBYTES,
    SHARD,
    SLOT,
    TABLES_AT,
    entries_at,
    is_held,
    packed_slots,
    payload_at,
)
from msdata.core.checked_json import Count, Unsigned32, Within, parse_json
from msdata.core.checksum import crc32c_of_parts
from msdata.errors import DataError

FORMAT = 4
EMPTY, CLAIMED, READY = 0, 1, 2
MAGIC = b"msdatacache\0"
_STATE_AT = 12
_MAX_SHARDS, _MAX_SAMPLES = 1 << 22, 1 << 40


@dataclass(frozen=True, kw_only=True)
class Header:
    """Identity and sizes of a slot file.

    Attributes:
        fingerprint: the data set's fingerprint.
        split: the split's name.
        sample_nbytes: bytes per record.
        num_shards: number of shards in the split.
        node: the number of the node that keeps the file.
        tier: the tier's code in `tier_of_shard`.
        planned_nbytes: memory and SSD capacities from which the owners were computed.
        most_nbytes: no slot beyond this many bytes of records is ever used.
        owners_crc32c: checksum of the owners and tiers of all shards.
        num_entries: number of entries in the table of slots; no slot beyond is ever used.
        format: version of the file format.
    """

    fingerprint: str
    split: str
    sample_nbytes: Annotated[int, Within(1, 1 << 40)]
    num_shards: Annotated[int, Within(0, _MAX_SHARDS)]
    node: Count
    tier: Count
    planned_nbytes: tuple[Count, Count]
    most_nbytes: Count
    owners_crc32c: Unsigned32
    num_entries: Annotated[int, Within(0, _MAX_SAMPLES)]
    format: int = FORMAT

    def is_of(self, split: CachedSplit) -> bool:
        """Whether the file can serve a split."""
        return (self.fingerprint, self.split, self.sample_nbytes, self.num_shards) == (
            *(split.fingerprint, split.name, split.max_record_nbytes),
            len(split.shard_sizes),
        )


def build(
    fd: int,
    header: Header,
    split: CachedSplit,
    owners: Owners,
    first_slots: NDArray[np.int64] | None = None,
) -> None:
    """Writes the tables of a slot file, and the header last: a file with a header is complete.

    Args:
        fd: an empty file, or one whose header was erased; entries and records stay.
        header: identity and sizes.
        split: the data.
        owners: owner and tier of every shard.
        first_slots: int64 (shards,), slot of each shard's first sample, -1 for none; None packs
            them.

    Raises:
        OSError: the file system refused.
    """
    shards = np.zeros(header.num_shards, SHARD)
    shards["size"] = split.shard_sizes
    shards["owner"], shards["tier"] = owners
    if first_slots is None:
        held = is_held(owners, header.node, header.tier)
        first_slots = packed_slots(held, split.shard_sizes)
    shards["first"] = first_slots
    num_slots = int(np.where(first_slots >= 0, first_slots + split.shard_sizes, 0).max(initial=0))
    tables_end = payload_at(header.num_shards, header.num_entries)
    os.ftruncate(fd, tables_end + num_slots * header.sample_nbytes)
    # Without space for the entries, fail here: a later write through a map would be a SIGBUS.
    os.posix_fallocate(fd, 0, tables_end)
    write_all(fd, [shards.view(np.uint8)], TABLES_AT)
    write_all(fd, [MAGIC + json.dumps(asdict(header)).encode() + b"\n"], 0)


def owners_checksum(owners: Owners) -> int:
    """Checksum of a table of owners."""
    return crc32c_of_parts([np.ascontiguousarray(table) for table in owners])


def read_header(fd: int) -> Header | None:
    """The header; None if it is missing or of another version."""
    raw = os.pread(fd, HEADER_NBYTES, 0)
    if not raw.startswith(MAGIC):
        return None
    text = raw[len(MAGIC) :].partition(b"\n")[0]
    try:
        header = parse_json(text, "the cache file", cure="").read_as(Header)
    except DataError:
        return None
    return header if header.format == FORMAT else None


def are_of(
    entries: NDArray[Any], samples: NDArray[np.int64], checksums: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """Which slots hold their sample with the index's checksum, by their entries.

    Args:
        entries: uint8 (n, `SLOT_NBYTES`), the slots' entries as in the file.
        samples: int64 (n,), the expected samples.
        checksums: uint32 (n,), the expected checksums.
    """
    found = entries.view(SLOT).reshape(len(samples))
    ready: NDArray[np.bool_] = (
        (found["state"] == READY) & (found["sample"] == samples) & (found["crc32c"] == checksums)
    )
    return ready


def write_all(fd: int, buffers: Sequence[Any], offset: int) -> None:
    """Writes all bytes or raises: writing the rest of a short write raises the reason.

    Args:
        fd: the file's descriptor.
        buffers: the bytes, in pieces.
        offset: offset of the first byte in the file.

    Raises:
        OSError: the file system refused.
    """
    wanted = sum(len(b) for b in buffers)
    done = os.pwritev(fd, buffers, offset)
    if done < wanted:
        rest = memoryview(b"".join(buffers))[done:]
        while rest:
            count = os.pwrite(fd, rest, offset + wanted - len(rest))
            rest = rest[count:]


def _read_shards(fd: int, num_shards: int) -> NDArray[Any]:
    shards = np.zeros(num_shards, SHARD)
    count = os.preadv(fd, [shards.view(np.uint8).data], TABLES_AT) if num_shards else 0
    low = np.minimum(shards["size"], shards["first"])
    high = np.maximum(shards["size"], shards["first"])
    is_sound = low.min(initial=0) >= -1 and high.max(initial=0) <= _MAX_SAMPLES
    if count != shards.nbytes or not is_sound or (shards["size"] < 0).any():
        raise OSError("the cache file has a damaged table of shards")
    return shards


class SlotFile:
    """An open slot file.

    Args:
        fd: descriptor of a file that `build` made; the caller closes it.
        is_mapped: map the records too, not only the tables.

    Attributes:
        header: identity and sizes.
        owners: owner and tier of every shard, for all nodes.
        first_slots: int64 (shards,), slot of each shard's first sample; -1 if not held here.
        entries: the slots' entries; a view of the file that other processes change.
        num_slots: number of usable slots, within the header's `most_nbytes`.
        address: address of the first record; 0 if the records are not mapped.

    Raises:
        OSError: the file system refused.
    """

    def __init__(self, fd: int, *, is_mapped: bool) -> None:
        header = read_header(fd)
        if header is None:
            raise OSError("the cache file has lost its header")
        self.fd = fd
        self.header = header
        shards = _read_shards(fd, header.num_shards)
        self.owners: Owners = shards["owner"].copy(), shards["tier"].copy()
        self._sizes = shards["size"].astype(np.int64)
        self._first_samples = np.cumsum(self._sizes) - self._sizes
        self.first_slots = shards["first"].astype(np.int64)
        ends = np.where(self.first_slots >= 0, self.first_slots + self._sizes, 0)
        # The first unused slot.
        most = min(header.most_nbytes // header.sample_nbytes, header.num_entries)
        self._end = min(most, int(ends.max(initial=0)))
        used = np.minimum(ends, self._end) - self.first_slots
        self.num_slots = int(used[(self.first_slots >= 0) & (used > 0)].sum())
        num_mapped = int(ends.max(initial=0)) if is_mapped else 0
        self._payload_at = payload_at(header.num_shards, header.num_entries)
        end = self._payload_at + num_mapped * header.sample_nbytes
        if end > os.fstat(fd).st_size:
            raise OSError("the cache file is truncated")
        self._map = mmap.mmap(fd, end, prot=mmap.PROT_READ)
        with suppress(OSError, AttributeError):
            # Only where the administrator set shmem_enabled to advise does this give huge pages.
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._entries_at = at = entries_at(header.num_shards)
        entries_nbytes = header.num_entries * SLOT.itemsize
        self.entries = self._bytes[at : at + entries_nbytes].view(SLOT)
        self.address = int(self._bytes.ctypes.data) + self._payload_at if is_mapped else 0

    def slots(self, samples: NDArray[np.int64], shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slots of some samples, int64 (n,); -1 for samples without a slot.

        Args:
            samples: int64 (n,), numbers within the split.
            shards: int64 (n,), the samples' shards.
        """
        first = self.first_slots[shards]
        slots = first + samples - self._first_samples[shards]
        return np.where((first >= 0) & (slots >= 0) & (slots < self._end), slots, -1)

    def slots_of_shard(self, shard: int) -> tuple[range, int]:
        """The slots of a shard, and the number of its first sample."""
        first = int(self.first_slots[shard])
        stop = min(first + int(self._sizes[shard]), self._end) if first >= 0 else first
        return range(first, max(first, stop)), int(self._first_samples[shard])

    def are_ready(
        self, slots: NDArray[np.int64], samples: NDArray[np.int64], checksums: NDArray[np.uint32]
    ) -> NDArray[np.bool_]:
        """Which slots hold their sample with the index's checksum.

        Args:
            slots: int64 (n,), -1 for none.
            samples: int64 (n,), the expected samples.
            checksums: uint32 (n,), the expected checksums.
        """
        ready = np.zeros(len(slots), bool)
        some = np.flatnonzero(slots >= 0)
        ready[some] = are_of(self.entries[slots[some]], samples[some], checksums[some])
        return ready

    def state(self, slot: int) -> int:
        """State of a slot."""
        return int(self.entries["state"][slot])

    @property
    def num_ready(self) -> int:
        """Number of slots that hold their sample."""
        return int(np.count_nonzero(self.entries["state"][: self._end] == READY))

    def record_at(self, slot: int) -> int:
        """Offset of a slot's record in the file."""
        return self._payload_at + slot * self.header.sample_nbytes

    def record(self, slot: int) -> NDArray[np.uint8]:
        """A mapped record, uint8 (sample_nbytes,), read-only."""
        start = self.record_at(slot)
        return self._bytes[start : start + self.header.sample_nbytes]

    def prefault(self, start: int, stop: int) -> None:
        """Maps the records of some slots ahead of their use; all of the slots must be full."""
        touched = self._bytes[self.record_at(start) : self.record_at(stop) : mmap.PAGESIZE]
        if len(touched):
            touched.max()

    def set_state(self, slot: int, state: int) -> None:
        """Changes the state of a slot.

        Raises:
            OSError: the file system refused.
        """
        at = self._entries_at + slot * SLOT.itemsize + _STATE_AT
        os.pwrite(self.fd, bytes((state,)), at)

    def publish(self, slot: int, sample: int, checksum: int, parts: Sequence[Any]) -> None:
        """Writes a record and then makes it visible.

        Args:
            slot: the sample's slot.
            sample: the sample's number within the split.
            checksum: the record's CRC32C.
            parts: the record in pieces, each a contiguous buffer of bytes.

        Raises:
            OSError: the file system refused; the slot stays as it was.
        """
        write_all(self.fd, parts, self.record_at(slot))
        entry = np.zeros(1, SLOT)
        entry["sample"], entry["crc32c"] = sample, checksum
        at = self._entries_at + slot * SLOT.itemsize
        write_all(self.fd, [entry.tobytes()[:_STATE_AT]], at)
        self.set_state(slot, READY)

    def close(self) -> None:
        """Unmaps the file, unless batches in flight still use it."""
        self.entries = np.empty(0, SLOT)
        self._bytes = np.empty(0, np.uint8)
        with suppress(BufferError):
            self._map.close()
