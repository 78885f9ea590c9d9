"""Memory maps of shards that the page cache holds in huge folios; a few dozen MiB stay mapped.

A copy out of a map costs the memory's bandwidth and nothing else. But mapped pages count as the
process's memory, and mapping them 4 KiB at a time costs more than it saves (0.65 of the memory-copy
limit, measured). Where the page cache holds 2 MiB folios, and shards are written so that it does,
one fault maps 2 MiB: a map can be dropped and made again all the time. Shards in small folios, or
not in memory, are not mapped; they are read.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msdata.shard_files import NOWAIT, ShardFile

_HUGE = 2 << 20
# Mapped at once, over all shards: part of the loader's promise to need little beside its ring.
MAPPED_LIMIT_NBYTES = 96 << 20
# Each map holds a file descriptor of its own; processes may have 1,024 of them.
_MAX_MAPS = 256
_NUM_MEMORY_PROBES = 17
_STATM = Path("/proc/self/statm")
_SHARED_PAGES = 2


class ShardMaps:
    """Maps shards on demand and keeps what they occupy below a limit.

    Args:
        limit_nbytes: of pages mapped at once.
    """

    def __init__(self, limit_nbytes: int = MAPPED_LIMIT_NBYTES) -> None:
        self._limit = limit_nbytes // _HUGE
        self._maps: dict[int, mmap.mmap | None] = {}
        self._addresses: dict[int, int] = {}
        self._mapped: set[int] = set()
        self._lock = threading.Lock()

    def address(self, number: int, file: ShardFile) -> int:
        """Where a shard is mapped; 0 where it is not, because that would not pay.

        Args:
            number: the shard's place in the split.
            file: the shard.
        """
        if number not in self._addresses:
            found = _map_if_huge(file) if len(self._maps) < _MAX_MAPS else None
            with self._lock:
                self._maps[number] = found
                self._addresses[number] = 0 if found is None else _address_of(found)
        return self._addresses[number]

    def forget(self) -> None:
        """Has every shard looked at anew: what was cold may be hot by now, and the reverse."""
        with self._lock:
            self._addresses = {}
            self._maps = {}
            self._mapped = set()

    def note(self, sources: NDArray[np.int64], nbytes: NDArray[np.int64]) -> None:
        """Counts what is about to be copied; drops all pages first when it would pass the limit.

        Args:
            sources: int64 (n,), addresses in the maps; 0 for what is not mapped.
            nbytes: int64 (n,).
        """
        mapped = sources != 0
        firsts, lasts = sources[mapped] // _HUGE, (sources + nbytes - 1)[mapped] // _HUGE
        folios = {*firsts.tolist(), *lasts.tolist()}
        with self._lock:
            self._mapped |= folios
            if len(self._mapped) <= self._limit:
                return
            self._mapped = folios
            for found in self._maps.values():
                if found is not None:
                    # The pages stay in the page cache and come back with the next fault.
                    found.madvise(mmap.MADV_DONTNEED)


def _address_of(found: mmap.mmap) -> int:
    return int(np.frombuffer(found, np.uint8).ctypes.data)


def _map_if_huge(file: ShardFile) -> mmap.mmap | None:
    """A map of a shard that is in memory, in huge folios; None for all others."""
    if file.nbytes < 4 * _HUGE or not _STATM.exists() or not _is_in_memory(file):
        return None
    found = mmap.mmap(file.fd, file.nbytes, prot=mmap.PROT_READ)
    view = np.frombuffer(found, np.uint8)
    for place in np.linspace(0, file.nbytes, 5)[1:4].astype(np.int64) // _HUGE * _HUGE:
        before = _shared_pages()
        view[place].item()
        if _shared_pages() - before < _HUGE // mmap.PAGESIZE:
            return None
    return found


def _is_in_memory(file: ShardFile) -> bool:
    """Whether bytes spread over the shard are all in the page cache."""
    probe = bytearray(1)
    for place in np.linspace(0, file.nbytes - 1, _NUM_MEMORY_PROBES).astype(np.int64).tolist():
        try:
            if os.preadv(file.fd, [probe], place, NOWAIT) != 1:
                return False
        except OSError:
            return False
    return True


def _shared_pages() -> int:
    """Pages of files and shared memory that this process has mapped."""
    with _STATM.open("rb") as statm:
        return int(statm.read().split()[_SHARED_PAGES])
