"""One file of a cache tier: a slot for every sample of the shards that this node keeps.

    header | rows | owner, tier, place of every shard | entry of every slot | records

The records of a shard stand packed, in the order of its samples, whatever their lengths; the
index tells the lengths.

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
    Layout,
    entries_at,
    payload_at,
)
from msdata.core.checked_json import Count, Unsigned32, Within, parse_json
from msdata.core.checksum import crc32c_of_parts
from msdata.errors import DataError

FORMAT = 5
EMPTY, CLAIMED, READY = 0, 1, 2
MAGIC = b"msdatacache\0"
_STATE_AT: int = SLOT.fields["state"][1]  # type: ignore[index]
_MAX_SHARDS, _MAX_SAMPLES, _MAX_NBYTES = 1 << 22, 1 << 40, 1 << 60


@dataclass(frozen=True, kw_only=True)
class Header:
    """Identity and sizes of a slot file.

    Attributes:
        fingerprint: the data set's fingerprint.
        split: the split's name.
        split_nbytes: bytes of all records of the split.
        num_shards: number of shards in the split.
        node: the number of the node that keeps the file.
        tier: the tier's code in `tier_of_shard`.
        planned_nbytes: memory and SSD capacities from which the owners were computed.
        most_nbytes: no record that ends beyond this many bytes of records is ever kept.
        owners_crc32c: checksum of the owners and tiers of all shards.
        num_entries: number of entries in the table of slots; no slot beyond is ever used.
        format: version of the file format.
    """

    fingerprint: str
    split: str
    split_nbytes: Annotated[int, Within(0, _MAX_NBYTES)]
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
        return (self.fingerprint, self.split, self.split_nbytes, self.num_shards) == (
            *(split.fingerprint, split.name, split.nbytes),
            len(split.shard_sizes),
        )


def build(fd: int, header: Header, split: CachedSplit, owners: Owners, layout: Layout) -> None:
    """Writes the tables of a slot file, and the header last: a file with a header is complete.

    Args:
        fd: an empty file, or one whose header was erased; entries and records stay.
        header: identity and sizes.
        split: the data.
        owners: owner and tier of every shard.
        layout: where the file keeps its shards.

    Raises:
        OSError: the file system refused.
    """
    shards = np.zeros(header.num_shards, SHARD)
    shards["owner"], shards["tier"] = owners
    shards["first"], shards["at"] = layout.first_slots, layout.records_at
    shards["slots"] = layout.num_slots
    tables_end = payload_at(header.num_shards, header.num_entries)
    os.ftruncate(fd, tables_end + _records_end(shards, split))
    # Without space for the entries, fail here: a later write through a map would be a SIGBUS.
    os.posix_fallocate(fd, 0, tables_end)
    write_all(fd, [shards.view(np.uint8)], TABLES_AT)
    write_all(fd, [MAGIC + json.dumps(asdict(header)).encode() + b"\n"], 0)


def _records_end(shards: NDArray[Any], split: CachedSplit) -> int:
    """The end of the last usable record, counted from the first record."""
    first = split.first_samples
    nbytes = split.starts.of(first + shards["slots"]) - split.starts.of(first)
    return int((shards["at"] + nbytes)[shards["slots"] > 0].max(initial=0))


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


def _read_shards(fd: int, header: Header, split: CachedSplit | None) -> NDArray[Any]:
    shards = np.zeros(header.num_shards, SHARD)
    count = os.preadv(fd, [shards.view(np.uint8).data], TABLES_AT) if len(shards) else 0
    first, num_slots = shards["first"], shards["slots"]
    kept = shards[num_slots > 0]
    is_sound = (
        count == shards.nbytes
        and min(first.min(initial=0), shards["at"].min(initial=0)) >= -1
        and min(num_slots.min(initial=0), kept["first"].min(initial=0)) >= 0
        and max(first.max(initial=0), num_slots.max(initial=0)) <= header.num_entries
        and (kept["first"] + kept["slots"]).max(initial=0) <= header.num_entries
        and (np.diff(kept["first"]) >= kept["slots"][:-1]).all()
        and kept["at"].min(initial=0) >= 0
        and shards["at"].max(initial=0) <= _MAX_NBYTES
        and (split is None or (num_slots <= split.shard_sizes).all())
    )
    if not is_sound:
        raise OSError("the cache file has a damaged table of shards")
    return shards


class SlotFile:
    """An open slot file.

    Args:
        fd: descriptor of a file that `build` made; the caller closes it.
        split: the data; None gives access to the tables only, not to records.
        is_mapped: map the records too, not only the tables.

    Attributes:
        header: identity and sizes.
        owners: owner and tier of every shard, for all nodes.
        layout: where the file keeps its shards.
        entries: the slots' entries; a view of the file that other processes change.
        num_slots: number of usable slots, within the header's `most_nbytes`.
        payload_at: offset of the first record in the file.
        nbytes: bytes from the first record to the end of the last one.
        address: address of the file's first byte; 0 if the records are not mapped.

    Raises:
        OSError: the file system refused, or the file is damaged or of other data.
    """

    def __init__(self, fd: int, split: CachedSplit | None = None, *, is_mapped: bool) -> None:
        header = read_header(fd)
        if header is None:
            raise OSError("the cache file has lost its header")
        if split is not None and not header.is_of(split):
            raise OSError("the cache file is of other data")
        self.fd = fd
        self.header = header
        shards = _read_shards(fd, header, split)
        self.owners: Owners = shards["owner"].copy(), shards["tier"].copy()
        first, at, num_slots = (shards[name].copy() for name in ("first", "at", "slots"))
        self.layout = Layout(first_slots=first, records_at=at, num_slots=num_slots)
        self.num_slots = int(num_slots.sum())
        self._shards = np.flatnonzero(num_slots)
        self.payload_at = payload_at(header.num_shards, header.num_entries)
        self.nbytes = 0
        if split is not None:
            self._starts, self._record_nbytes = split.starts, split.record_nbytes
            self._first_samples = split.first_samples
            self._stops = self._first_samples + num_slots
            # Slot less sample, and offset of a record less the bytes of all records before it.
            self._shift = first - self._first_samples
            self._base = self.payload_at + at - split.starts.of(self._first_samples)
            self.nbytes = _records_end(shards, split)
        self._map_file(is_mapped=is_mapped)

    def _map_file(self, *, is_mapped: bool) -> None:
        end = self.payload_at + (self.nbytes if is_mapped else 0)
        if end > os.fstat(self.fd).st_size:
            raise OSError("the cache file is truncated")
        self._map = mmap.mmap(self.fd, end, prot=mmap.PROT_READ)
        with suppress(OSError, AttributeError):
            # Only where the administrator set shmem_enabled to advise does this give huge pages.
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._entries_at = at = entries_at(self.header.num_shards)
        entries_nbytes = self.header.num_entries * SLOT.itemsize
        self.entries = self._bytes[at : at + entries_nbytes].view(SLOT)
        self.address = int(self._bytes.ctypes.data) if is_mapped else 0

    def slots(self, samples: NDArray[np.int64], shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slots of some samples, int64 (n,); -1 for samples without a slot.

        Args:
            samples: int64 (n,), numbers within the split.
            shards: int64 (n,), the samples' shards.
        """
        return np.where(samples < self._stops[shards], samples + self._shift[shards], -1)

    def records_at(
        self, samples: NDArray[np.int64], shards: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Offsets in the file of the records of samples that have slots, int64 (n,).

        Args:
            samples: int64 (n,), numbers within the split.
            shards: int64 (n,), the samples' shards.
        """
        at: NDArray[np.int64] = self._base[shards] + self._starts.of(samples)
        return at

    def slots_of_shard(self, shard: int) -> tuple[range, int]:
        """The usable slots of a shard, and the number of its first sample."""
        first = int(self.layout.first_slots[shard])
        stop = first + int(self.layout.num_slots[shard])
        return range(first, stop), int(self._first_samples[shard])

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
        return int(np.count_nonzero(self.entries["state"] == READY))

    @property
    def ready_nbytes(self) -> int:
        """Bytes of the records in full slots."""
        return int(self.entries["nbytes"][self.entries["state"] == READY].sum())

    def _place(self, slot: int) -> tuple[int, int]:
        """Offset of a usable slot's record in the file, and the record's bytes."""
        starts = self.layout.first_slots[self._shards]
        shard = int(self._shards[np.searchsorted(starts, slot, side="right") - 1])
        sample = slot - int(self._shift[shard])
        at = int(self._base[shard] + self._starts.of(sample))
        return at, int(self._record_nbytes[sample])

    def record_at(self, slot: int) -> int:
        """Offset of a slot's record in the file."""
        return self._place(slot)[0]

    def record(self, slot: int) -> NDArray[np.uint8]:
        """A mapped record, uint8 (bytes of the record,), read-only."""
        at, nbytes = self._place(slot)
        return self._bytes[at : at + nbytes]

    def read_record(self, slot: int) -> bytes:
        """Reads a record from the file.

        Raises:
            OSError: the file system refused.
        """
        at, nbytes = self._place(slot)
        return os.pread(self.fd, nbytes, at)

    def prefault(self, start: int, stop: int) -> None:
        """Maps records ahead of their use.

        Args:
            start: a byte, counted from the first record; all slots from here on must be full.
            stop: the byte after the last.
        """
        first = self.payload_at
        touched = self._bytes[first + start : first + min(stop, self.nbytes) : mmap.PAGESIZE]
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
        entry["nbytes"] = sum(map(len, parts))
        at = self._entries_at + slot * SLOT.itemsize
        write_all(self.fd, [entry.tobytes()[:_STATE_AT]], at)
        self.set_state(slot, READY)

    def close(self) -> None:
        """Unmaps the file, unless batches in flight still use it."""
        self.entries = np.empty(0, SLOT)
        self._bytes = np.empty(0, np.uint8)
        with suppress(BufferError):
            self._map.close()
