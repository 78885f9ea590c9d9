"""Copies out of a memory map, for shards whose pages the kernel holds in huge folios.

A copy out of a map costs the memory's bandwidth and nothing else; `preadv` adds 6 to 9 us a sample
for its 4 KiB steps. But mapped pages count as the process's memory, and mapping them page by page
costs more than it saves. Where the page cache holds 2 MiB folios (shards are written so that it
does) one fault maps 2 MiB, so a map can be dropped and made again all the time: a few dozen MiB stay
mapped, whatever the data set. Elsewhere (parallel file systems, small folios) `preadv` stays.

A map is also a hazard: pages that cannot be read end the process. So only what is in memory is
read through it; a copy that took long enough to have come from the disk ends the mapping.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HUGE = 2 << 20
# Mapped at once, over all shards: part of the loader's promise to need little beside its ring.
MAPPED_LIMIT_NBYTES = 96 << 20
# A copy at a tenth of the slowest memory bandwidth seen came from a disk, or waited for one.
_SLOW_S_PER_BYTE = 1e-9
_SLOW_S = 0.002
_STATM = Path("/proc/self/statm")
_SHARED_PAGES = 2


class MapBudget:
    """Keeps the pages that all maps hold below a limit, by dropping all of them at once."""

    def __init__(self, limit_nbytes: int = MAPPED_LIMIT_NBYTES) -> None:
        self._limit = limit_nbytes // _HUGE
        self._mapped = 0
        self._maps: list[MappedShard] = []
        self._lock = threading.Lock()

    def note(self, shard: MappedShard, num_folios: int) -> None:
        """Counts folios that are about to be mapped; drops all maps' pages at the limit."""
        with self._lock:
            if not shard.is_counted:
                shard.is_counted = True
                self._maps.append(shard)
            self._mapped += num_folios
            if self._mapped < self._limit:
                return
            maps, self._maps, self._mapped = self._maps, [], num_folios
            for other in maps:
                other.is_counted = False
                other.drop_pages()


class MappedShard:
    """A map of one shard; use `map_if_huge` to make one.

    Args:
        fd: the open file.
        nbytes: its size.
        budget: shared by all maps of a loader.
    """

    def __init__(self, fd: int, nbytes: int, budget: MapBudget) -> None:
        self._map = mmap.mmap(fd, nbytes, prot=mmap.PROT_READ)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self._budget = budget
        self.is_counted = False
        self.is_trusted = True

    def copy(self, target: NDArray[np.uint8], offset: int) -> None:
        """Copies `len(target)` bytes from `offset` on.

        Args:
            target: uint8 (n,).
            offset: first byte.
        """
        end = offset + len(target)
        self._budget.note(self, (end - 1) // _HUGE - offset // _HUGE + 1)
        start_s = time.perf_counter()
        np.copyto(target, self._bytes[offset:end])
        elapsed_s = time.perf_counter() - start_s
        if elapsed_s > _SLOW_S + len(target) * _SLOW_S_PER_BYTE:
            self.is_trusted = False

    def drop_pages(self) -> None:
        """Unmaps all pages; they stay in the page cache and come back with the next fault."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def is_huge(self) -> bool:
        """Whether one touch maps a whole 2 MiB folio, tried at three places that are in memory."""
        places = [int(p) // _HUGE * _HUGE for p in np.linspace(0, len(self._bytes), 5)[1:4]]
        with _PROBE_LOCK:
            for place in places:
                before = _shared_pages()
                self._bytes[place].item()
                if _shared_pages() - before < _HUGE // mmap.PAGESIZE:
                    return False
        self.drop_pages()
        return True


# Two probes at once would see each other's pages.
_PROBE_LOCK = threading.Lock()


def _shared_pages() -> int:
    with _STATM.open("rb") as file:
        return int(file.read().split()[_SHARED_PAGES])


def map_if_huge(fd: int, nbytes: int, budget: MapBudget) -> MappedShard | None:
    """A map of a shard that is in memory, in huge folios; None for all others.

    Args:
        fd: the open file.
        nbytes: its size.
        budget: shared by all maps of a loader.
    """
    if nbytes < 4 * _HUGE or not hasattr(os, "RWF_NOWAIT") or not _STATM.exists():
        return None
    probe = bytearray(1)
    for place in np.linspace(0, nbytes - 1, 17).tolist():
        try:
            if os.preadv(fd, [probe], int(place), os.RWF_NOWAIT) != 1:
                return None
        except OSError:
            return None
    shard = MappedShard(fd, nbytes, budget)
    return shard if shard.is_huge() else None
