"""What ours is compared with: a cache of each rank's own, LRU or never evicting, of the same bytes.

It stands in the product's loader in place of the node cache, so that order, threads, buffers and
reads of storage are the same and only the policy differs. LRU is what a page cache or a plain
read-through cache does; never evicting, node by node, is MinIO's policy (CoorDL).

Source: Mohan et al., Analyzing and Mitigating Data Stalls in DNN Training, VLDB 2021, section 4.
"""

from __future__ import annotations

import mmap
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.tier import Counters
from msdata.dataset.dataset import Split
from msdata.loader.cached_fill import BufferRows
from msdata.loader.node_cache import NodeCache
from msdata.loader.read import (
    FD,
    NBYTES,
    OFFSET,
    SHARED_MEMORY,
    TARGET,
    BatchReader,
    Filling,
    SampleReader,
    stream_fill,
)
from msdata.loader.ring import BatchBuffer

NEVER_EVICTS, LRU = "never-evict", "lru"


class PrivateTable:
    """Which samples a cache holds, and in which slots; no bytes.

    A slot that was given up is handed out again only after `num_spare` others, so that batches
    still being filled may read and write it.

    Args:
        capacity: samples.
        policy: `LRU`, or `NEVER_EVICTS`: what came first stays.
        num_spare: slots beyond the capacity.
    """

    def __init__(self, capacity: int, policy: str, num_spare: int = 0) -> None:
        self.num_slots = capacity + num_spare
        self._capacity = capacity
        self._is_lru = policy == LRU
        self._slot_of: OrderedDict[int, int] = OrderedDict()
        self._free = deque(range(self.num_slots))

    def take(self, samples: Iterable[int]) -> tuple[list[int], list[int]]:
        """Asks for samples, one after the other, none of them twice.

        Returns:
            For each the slot where it is, -1 for a miss; and the slot that a miss is to be put
            into, -1 for none.
        """
        found, kept = [], []
        for sample in samples:
            slot = self._slot_of.get(sample, -1)
            if slot >= 0 and self._is_lru:
                self._slot_of.move_to_end(sample)
            found.append(slot)
            kept.append(self._admit(sample) if slot < 0 else -1)
        return found, kept

    def _admit(self, sample: int) -> int:
        if len(self._slot_of) >= self._capacity:
            if not self._is_lru or not self._slot_of:
                return -1
            _, given_up = self._slot_of.popitem(last=False)
            self._free.append(given_up)
        slot = self._slot_of[sample] = self._free.popleft()
        return slot


@dataclass(kw_only=True)
class PrivateFilling(Filling):
    """A batch of hits and misses, filled in the order of `rows`: `num_hits` hits first.

    `found` are slots of the hits, `kept` those that misses go into (-1 for none), and `missing`
    the misses, for storage.
    """

    num_hits: int
    found: NDArray[np.int64]
    kept: NDArray[np.int64]
    missing: Filling


class PrivateReader:
    """Fills batches from a `PrivateTable`'s slots ("local"), and from storage."""

    def __init__(
        self, storage: SampleReader, split: Split, table: PrivateTable, counters: Counters
    ) -> None:
        self._storage, self._table, self._counters = storage, table, counters
        self._sizes = np.array([a.nbytes for a in split.schema.arrays], np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        shape = (table.num_slots, split.schema.sample_nbytes)
        memory = mmap.mmap(-1, max(1, shape[0] * shape[1]))
        memory.madvise(mmap.MADV_HUGEPAGE)
        self._records = np.frombuffer(memory, np.uint8, shape[0] * shape[1]).reshape(shape)
        # Touched now: pages that are first written in a timed epoch cost more than the copy.
        self._records[:] = 0

    def plan(self, samples: NDArray[np.int64], buffer: BatchBuffer) -> PrivateFilling:
        """Decides what is a hit; in the order of the epoch, since the loader asks in it."""
        slots, kept = (np.array(s, np.int64) for s in self._table.take(samples.tolist()))
        rows = np.argsort(slots < 0, kind="stable")
        num_hits = int((slots >= 0).sum())
        found = slots[rows[:num_hits]]
        misses = BufferRows(buffer, rows[num_hits:])
        missing = self._storage.plan(samples[rows[num_hits:]], misses)
        return PrivateFilling(
            buffer=buffer,
            samples=samples,
            shards=missing.shards,
            offsets=missing.offsets,
            files=missing.files,
            table=self._copies(found, buffer.addresses[rows[:num_hits]]),
            rows=rows,
            num_hits=num_hits,
            found=found,
            kept=kept[rows[num_hits:]],
            missing=missing,
        )

    def _copies(self, slots: NDArray[np.int64], addresses: NDArray[np.int64]) -> Any:
        """The copies out of the slots, as the product's own cache has its C module make them."""
        at = self._records.ctypes.data + slots[:, None] * self._records.shape[1] + self._starts
        table = np.empty((*at.shape, 4), np.int64)
        table[:, :, FD] = SHARED_MEMORY
        table[:, :, OFFSET] = at
        table[:, :, NBYTES] = self._sizes
        table[:, :, TARGET] = addresses
        return table.reshape(-1, 4)

    def fill(self, filling: PrivateFilling, start: int, stop: int) -> None:
        """Reads the samples [start, stop) of a batch, counted in the order of its `rows`."""
        hits = filling.num_hits
        nbytes = np.full(stop - start, self._sizes.sum())
        for tier, work, first, end in (
            ("local", self._fill_hits, start, min(stop, hits)),
            ("storage", self._fill_misses, max(start, hits), stop),
        ):
            if first < end:
                started_s = time.perf_counter()
                work(filling, first, end)
                self._counters.add(tier, nbytes[: end - first], time.perf_counter() - started_s)

    def _fill_hits(self, filling: PrivateFilling, first: int, end: int) -> None:
        count = len(self._sizes)
        if stream_fill is not None:
            stream_fill.fill(filling.table, first * count, end * count)
            return
        for i in range(first, end):
            record = self._records[filling.found[i]]
            for part, at in zip(self._parts(filling, i), self._starts.tolist(), strict=True):
                part[:] = record[at : at + len(part)]

    def _fill_misses(self, filling: PrivateFilling, first: int, end: int) -> None:
        hits = filling.num_hits
        self._storage.fill(filling.missing, first - hits, end - hits)
        for i in range(first, end):
            slot = int(filling.kept[i - hits])
            if slot < 0:
                continue
            for part, at in zip(self._parts(filling, i), self._starts.tolist(), strict=True):
                self._records[slot, at : at + len(part)] = part

    def _parts(self, filling: PrivateFilling, i: int) -> list[NDArray[np.uint8]]:
        parts: list[NDArray[np.uint8]] = filling.buffer.parts(int(filling.rows[i]))
        return parts


@dataclass(kw_only=True)
class PrivateCache(NodeCache):
    """Stands where the loader has its node's cache."""

    table: PrivateTable
    counters: Counters = field(default_factory=Counters)

    def reader(self, storage: SampleReader, split: Split, *, is_checked: bool) -> BatchReader:
        """What fills batches; checksums are the storage's business."""
        self.counters = Counters()
        return PrivateReader(storage, split, self.table, self.counters)

    def start_epoch(self) -> None:
        """Counts from zero."""
        self.counters.start_epoch()

    def stats(self) -> dict[str, Any]:
        """`tiers`, as the node cache's."""
        return {"tiers": self.counters.to_dict()}
