"""Gives a slot file of an earlier job the shards of this one; what both have is kept."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import CachedSplit, Owners
from msdata.cache.slot_file import (
    MAGIC,
    SLOT,
    Header,
    SlotFile,
    build,
    entries_at,
    is_held,
    write_all,
)

# Of Linux's fallocate(2).
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def place_shards(
    held: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    old_first_slots: NDArray[np.int64],
    num_slots: int,
) -> NDArray[np.int64]:
    """Finds slots for shards without moving those that have some.

    Args:
        held: bool (shards,), the shards that are to have slots.
        sizes: int64 (shards,), samples of each.
        old_first_slots: int64 (shards,), slot of each shard's first sample so far; -1 for none.
        num_slots: all there are.

    Returns:
        int64 (shards,), the slots of the first samples; -1 where the shard has none, or where no
        gap is large enough.
    """
    stays = held & (old_first_slots >= 0) & (old_first_slots + sizes <= num_slots)
    first_slots = np.where(stays, old_first_slots, -1)
    gaps = find_gaps(first_slots, sizes, num_slots)
    for shard in np.flatnonzero(held & ~stays):
        gap = next((g for g in gaps if g[1] - g[0] >= sizes[shard]), None)
        if gap is not None:
            first_slots[shard] = gap[0]
            gap[0] += int(sizes[shard])
    return first_slots


def find_gaps(
    first_slots: NDArray[np.int64], sizes: NDArray[np.int64], num_slots: int
) -> list[list[int]]:
    """Start and end of each run of slots that no shard has.

    Args:
        first_slots: int64 (shards,), slot of each shard's first sample; -1 for none.
        sizes: int64 (shards,), samples of each.
        num_slots: all there are.
    """
    shards = np.flatnonzero(first_slots >= 0)
    runs = sorted(zip(first_slots[shards].tolist(), sizes[shards].tolist(), strict=True))
    gaps, end = [], 0
    for first, size in [*runs, (num_slots, 0)]:
        if first > end:
            gaps.append([end, first])
        end = first + size
    return gaps


def reorder(fd: int, header: Header, split: CachedSplit, owners: Owners) -> Header:
    """Gives a slot file other shards; records of those that it had already stay where they are.

    Args:
        fd: of a file of the same data that nobody else uses.
        header: what it is to become.
        split: the data.
        owners: owner and tier of every shard.

    Returns:
        What it became: with slots beyond `most_nbytes` where records are kept there, and as many
        bytes of others given back to the file system.

    Raises:
        OSError: the file system refused.
    """
    old = SlotFile(fd, is_mapped=False)
    sizes = split.shard_sizes
    held = is_held(owners, header.node, header.tier)
    # Whoever finds this half done makes the file anew.
    write_all(fd, [bytes(len(MAGIC))], 0)
    old_end = int(np.where(old.first_slots >= 0, old.first_slots + sizes, 0).max(initial=0))
    if old_end * header.sample_nbytes > header.most_nbytes and _give_back(fd, old, held, sizes):
        header = replace(header, most_nbytes=old_end * header.sample_nbytes)
    num_slots = min(header.num_entries, header.most_nbytes // header.sample_nbytes)
    first_slots = place_shards(held, sizes, old.first_slots, num_slots)
    entries = np.zeros(header.num_entries, SLOT)
    for shard in np.flatnonzero((first_slots >= 0) & (old.first_slots == first_slots)):
        at = slice(int(first_slots[shard]), int(first_slots[shard] + sizes[shard]))
        entries[at] = old.entries[at]
    old.close()
    write_all(fd, [entries.view(np.uint8)], entries_at(header.num_shards))
    build(fd, header, split, owners, first_slots)
    return header


def _give_back(fd: int, old: SlotFile, held: NDArray[np.bool_], sizes: NDArray[np.int64]) -> bool:
    """Gives the room of records that are no longer wanted back; False where that cannot be done."""
    wanted = np.where(held, old.first_slots, -1)
    end = int(np.where(old.first_slots >= 0, old.first_slots + sizes, 0).max(initial=0))
    libc = ctypes.CDLL(None)
    for first, stop in find_gaps(wanted, sizes, end):
        start, nbytes = old.record_at(first), old.record_at(stop) - old.record_at(first)
        place = ctypes.c_int64(start), ctypes.c_int64(nbytes)
        if libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, *place):
            return False
    return True
