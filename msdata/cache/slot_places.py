"""Where slots and records lie in the slot files of all nodes: arithmetic over the table of owners.

`slot_file` describes the file; here is what a node can compute about another node's file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import CachedSplit, Owners
from msdata.cache.shared_file import NUM_ROWS, ROW_NBYTES

HEADER_NBYTES = 4096
ROWS_AT = HEADER_NBYTES
TABLES_AT = ROWS_AT + NUM_ROWS * ROW_NBYTES
_PAYLOAD_ALIGNMENT = 4096
_UNUSED = ("unused", "u1", (3,))
SHARD = np.dtype(
    [("first", "<i8"), ("at", "<i8"), ("slots", "<i8"), ("owner", "<i4"), ("tier", "i1"), _UNUSED]
)
SLOT = np.dtype([("sample", "<i8"), ("nbytes", "<i8"), ("crc32c", "<u4"), ("state", "u1"), _UNUSED])
SLOT_NBYTES = SLOT.itemsize


def entries_at(num_shards: int) -> int:
    """Offset of the slots' entries in a file."""
    return TABLES_AT + num_shards * SHARD.itemsize


def payload_at(num_shards: int, num_entries: int) -> int:
    """Offset of the records in a file."""
    end = entries_at(num_shards) + num_entries * SLOT.itemsize
    return -(-end // _PAYLOAD_ALIGNMENT) * _PAYLOAD_ALIGNMENT


def is_held(owners: Owners, node: int, tier: int) -> NDArray[np.bool_]:
    """Which shards a node keeps in a tier, bool (shards,)."""
    held: NDArray[np.bool_] = (owners[0] == node) & (owners[1] == tier)
    return held


def packed(held: NDArray[np.bool_], amounts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each held shard begins if they stand without gaps; -1 for other shards.

    Args:
        held: bool (shards,), the shards in the file.
        amounts: int64 (shards,), samples or bytes per shard.
    """
    kept = np.where(held, amounts, 0)
    return np.where(held, np.cumsum(kept) - kept, -1)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where one file keeps its shards.

    Attributes:
        first_slots: int64 (shards,), slot of each shard's first sample; -1 if not kept here.
        records_at: int64 (shards,), start of each shard's records, counted from the first record of
            the file; -1 if not kept here.
        num_slots: int64 (shards,), how many of its first samples have a usable slot.
    """

    first_slots: NDArray[np.int64]
    records_at: NDArray[np.int64]
    num_slots: NDArray[np.int64]


def usable_slots(
    split: CachedSplit,
    held: NDArray[np.bool_],
    most_nbytes: int,
    preferred: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """How many of the first samples of each held shard may be kept, int64 (shards,).

    Args:
        split: the data.
        held: bool (shards,), the shards in the file.
        most_nbytes: bytes of records that the file may keep.
        preferred: bool (shards,), shards that come before the others; None for none.
    """
    order = np.flatnonzero(held)
    if preferred is not None:
        order = order[np.argsort(~preferred[order], kind="stable")]
    num_slots = np.zeros(len(held), np.int64)
    ends = np.cumsum(split.shard_nbytes[order])
    num_whole = int(np.searchsorted(ends, most_nbytes, side="right"))
    num_slots[order[:num_whole]] = split.shard_sizes[order[:num_whole]]
    for shard in order[num_whole : num_whole + 1].tolist():
        first, size = int(split.first_samples[shard]), int(split.shard_sizes[shard])
        starts = split.starts.of(np.arange(first, first + size + 1))
        room = most_nbytes - int(ends[num_whole] - split.shard_nbytes[shard])
        num_slots[shard] = np.searchsorted(starts[1:] - starts[0], room, side="right")
    return num_slots


@dataclass(frozen=True, kw_only=True)
class SlotPlaces:
    """Where records lie in the files of all nodes.

    Attributes:
        first_slots: int64 (shards,), slot of each shard's first sample in its owner's file; -1 if
            no node keeps it in memory.
        records_at: int64 (shards,), offset of each shard's first record in its owner's file; its
            records stand packed behind it (`CachedSplit.starts`). -1 if no node keeps it in memory.
    """

    first_slots: NDArray[np.int64]
    records_at: NDArray[np.int64]


def slots_at_owners(owners: Owners, split: CachedSplit, num_nodes: int) -> SlotPlaces:
    """Where records lie in each node's arena, computed from the table of owners.

    Args:
        owners: owner and tier of every shard.
        split: the data.
        num_nodes: number of nodes.
    """
    num_shards = len(split.shard_sizes)
    first_slots, records_at = np.full((2, num_shards), -1, np.int64)
    for node in range(num_nodes):
        held = is_held(owners, node, tier=0)
        payload = payload_at(num_shards, int(split.shard_sizes[held].sum()))
        first_slots[held] = packed(held, split.shard_sizes)[held]
        records_at[held] = payload + packed(held, split.shard_nbytes)[held]
    return SlotPlaces(first_slots=first_slots, records_at=records_at)
