"""Fills batches from the node's cache, and from storage if the cache does not have the samples.

`SampleReader` gets the missing samples as a smaller batch, whose rows lie scattered in the buffer,
so storage is read as without a cache. Samples from storage are then put into the cache. A record
with a wrong checksum, wherever it came from, is read from storage again and checked, whether the
loader verifies records or not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.client import LOCAL, PEER, SSD, CacheClient, Places
from msdata.dataset.dataset import Split
from msdata.loader.coded_read import RecordRows
from msdata.loader.read import (
    FD,
    NBYTES,
    OFFSET,
    SHARED_MEMORY,
    TARGET,
    Filling,
    Rows,
    SampleReader,
    stream_fill,
)


class BufferRows:
    """Some rows of a batch, with the interface of a whole one.

    Args:
        buffer: the whole.
        rows: int64 (n,), the rows.
    """

    def __init__(self, buffer: Rows, rows: NDArray[np.int64]) -> None:
        self._buffer, self._rows = buffer, rows
        self.addresses = buffer.addresses[rows]

    def reads(self, row: int) -> list[list[Any]]:
        """The buffers of each read of one row."""
        return self._buffer.reads(int(self._rows[row]))

    def parts(self, row: int) -> list[NDArray[np.uint8]]:
        """The bytes of one row, array by array."""
        return self._buffer.parts(int(self._rows[row]))

    def spans(
        self, offsets: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offset and bytes of each read of some rows, int64 (k, reads)."""
        return self._buffer.spans(offsets, self._rows[rows])


@dataclass(kw_only=True)
class CachedFilling(Filling):
    """A batch whose samples come from several tiers.

    It is filled in the order of `rows`: from shared memory first, then SSD, peers, storage.

    Attributes:
        places: locations of the samples of those rows.
        ends: cumulative numbers of samples from shared memory, SSD and peers.
        missing: the part that storage serves.
    """

    places: Places
    ends: tuple[int, int, int]
    missing: Filling


class CachedReader:
    """The reader of `FillPool` with a cache.

    Args:
        reader: reads from storage.
        client: the cache; the caller closes it.
        split: the data.
        is_checked: check records from shared memory against their checksums too.
    """

    def __init__(
        self, reader: SampleReader, client: CacheClient, split: Split, *, is_checked: bool
    ) -> None:
        self._storage = reader
        self._client = client
        self._is_checked = is_checked
        sizes = np.array([a.nbytes for a in split.schema.arrays], np.int64)
        self._sizes = sizes
        self._starts = np.cumsum(sizes) - sizes

    def plan(self, samples: NDArray[np.int64], buffer: Rows) -> CachedFilling:
        """Decides where each sample of a batch comes from.

        Args:
            samples: int64 (n,), numbers within the split.
            buffer: the destination.

        Raises:
            DataError: a shard is missing or truncated.
            StorageError: the file system refused.
        """
        places = self._client.locate(samples)
        rows = np.argsort(places.source, kind="stable")
        places = places.taken(rows)
        in_memory, cached, elsewhere = np.searchsorted(places.source, [LOCAL, SSD, PEER], "right")
        ends = int(in_memory), int(cached), int(elsewhere)
        self._client.claim(places)
        missing = self._missing(places.samples[ends[2] :], buffer, rows[ends[2] :])
        return CachedFilling(
            buffer=buffer,
            samples=samples,
            shards=missing.shards,
            offsets=missing.offsets,
            files=missing.files,
            table=self._table(places.at[: ends[0]], buffer.addresses[rows[: ends[0]]]),
            rows=rows,
            places=places,
            ends=ends,
            missing=missing,
        )

    def _missing(
        self, samples: NDArray[np.int64], buffer: Rows, rows: NDArray[np.int64]
    ) -> Filling:
        return self._storage.plan(samples, BufferRows(buffer, rows))

    def _table(
        self, at: NDArray[np.int64], addresses: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """The C module's table for copies out of shared memory."""
        if not self._storage.is_streaming:
            return None
        sources = self._client.tiers[LOCAL].slots.address + at[:, None] + self._starts
        table = np.empty((*sources.shape, 4), np.int64)
        table[:, :, FD] = SHARED_MEMORY
        table[:, :, OFFSET] = sources
        table[:, :, NBYTES] = self._sizes
        table[:, :, TARGET] = addresses
        return table.reshape(-1, 4)

    def fill(self, filling: CachedFilling, start: int, stop: int) -> None:
        """Reads the samples [start, stop) of a batch, counted in the order of its `rows`.

        Raises:
            DataError: a shard was truncated or altered.
            StorageError: the file system refused.
        """
        in_memory, cached, elsewhere = filling.ends
        steps = (
            ("local", self._fill_local, start, min(stop, in_memory)),
            ("ssd", self._fill_ssd, max(start, in_memory), min(stop, cached)),
            ("peer", self._fill_peer, max(start, cached), min(stop, elsewhere)),
            ("storage", self._fill_missing, max(start, elsewhere), stop),
        )
        for tier, fill, first, end in steps:
            if first >= end:
                continue
            started_s = time.perf_counter()
            failed = fill(filling, first, end)
            seconds, nbytes = time.perf_counter() - started_s, filling.places.nbytes
            if failed:
                self._client.counters.add("storage", nbytes[failed], 0.0)
                nbytes = np.delete(nbytes, failed)
                end -= len(failed)
            self._client.counters.add(tier, nbytes[first:end], seconds)

    def _fill_local(self, filling: CachedFilling, first: int, end: int) -> list[int]:
        """Copies out of shared memory; returns the samples that storage served."""
        num_arrays = len(self._sizes)
        arena = self._client.tiers[LOCAL].slots
        if isinstance(filling.buffer, RecordRows) and not self._is_checked:
            filling.buffer.point(
                filling.rows[first:end], arena.address + filling.places.at[first:end]
            )
        elif filling.table is not None and stream_fill is not None:
            stream_fill.fill(filling.table, first * num_arrays, end * num_arrays)
        else:
            for i in range(first, end):
                self._copy_record(filling, i, arena.record(int(filling.places.slots[i])))
        if not self._is_checked:
            return []
        return [i for i in range(first, end) if not self._is_sound(filling, i, LOCAL)]

    def _fill_ssd(self, filling: CachedFilling, first: int, end: int) -> list[int]:
        """Reads from the SSD tier; returns the samples that storage served."""
        slots = self._client.tiers[SSD].slots
        failed = []
        for i in range(first, end):
            at = int(filling.places.at[i])
            # After a failed read the buffer does not match the checksum.
            with suppress(OSError):
                os.preadv(slots.fd, [p.data for p in self._parts(filling, i)], at)
            if not self._is_sound(filling, i, SSD):
                failed.append(i)
        return failed

    def _fill_peer(self, filling: CachedFilling, first: int, end: int) -> list[int]:
        """Asks other nodes; returns the samples that storage served."""
        rows = [self._parts(filling, i) for i in range(first, end)]
        places = filling.places.taken(np.arange(first, end))
        came = self._client.fetch(places, rows)
        failed = [first + i for i, is_there in enumerate(came) if not is_there]
        if failed:
            self._read_checked(filling, failed)
        return failed

    def read_again(self, filling: CachedFilling, i: int) -> None:
        """Reads a sample from storage that did not decode; see `BatchReader`."""
        if filling.places.source[i] != LOCAL:
            self._read_checked(filling, [i])
            return
        slots = self._client.tiers[LOCAL].slots
        self._copy_record(filling, i, slots.record(int(filling.places.slots[i])))
        self._is_sound(filling, i, LOCAL)

    def _read_checked(self, filling: CachedFilling, numbers: Sequence[int]) -> None:
        """Reads samples from storage that other tiers gave corrupt, or not at all.

        Raises:
            DataError: a sample is corrupt in storage, too.
        """
        at = list(numbers)
        missing = self._missing(filling.places.samples[at], filling.buffer, filling.rows[at])
        self._storage.fill(missing, 0, len(at))
        for i in range(len(at)):
            self._storage.check(missing, i, self._client.split.checksums)

    def _copy_record(self, filling: CachedFilling, i: int, record: NDArray[np.uint8]) -> None:
        at = 0
        for part in self._parts(filling, i):
            part[:] = record[at : at + len(part)]
            at += len(part)

    def _fill_missing(self, filling: CachedFilling, first: int, end: int) -> list[int]:
        skipped = filling.ends[2]
        self._storage.fill(filling.missing, first - skipped, end - skipped)
        for i in range(first, end):
            if filling.places.slots[i] < 0:
                continue
            if not self._client.keep(filling.places, i, self._parts(filling, i)):
                self._read_checked(filling, [i])
                self._client.keep(filling.places, i, self._parts(filling, i))
        return []

    def _is_sound(self, filling: CachedFilling, i: int, source: int) -> bool:
        """Checks a sample from a tier; if it is corrupt, reads it from storage."""
        places, parts = filling.places, self._parts(filling, i)
        tier = self._client.tiers[source]
        slot, sample = int(places.slots[i]), int(places.samples[i])
        if tier.is_sound(slot, sample, parts):
            return True
        self._read_checked(filling, [i])
        tier.keep(slot, sample, parts)
        return False

    def _parts(self, filling: CachedFilling, i: int) -> list[NDArray[np.uint8]]:
        parts: list[NDArray[np.uint8]] = filling.buffer.parts(int(filling.rows[i]))
        return parts
