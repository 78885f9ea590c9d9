"""Filling nodes with shards: equal levels, rendezvous hashing, room counted in bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msdata.plan.random_words import mix64

_CHUNK_WORDS = 1 << 20  # shard-node pairs hashed at a time: 8 MiB, however many nodes


def level_room(load: NDArray[np.int64], left: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Room of each node if `total` bytes are poured on top of the loads, as water finds its level.

    Args:
        load: int64 (num_nodes,), bytes that each node holds already.
        left: int64 (num_nodes,), bytes that it can still take.
        total: bytes to distribute.

    Returns:
        int64 (num_nodes,): at most `left`; the sum is `total` or, by rounding up to whole bytes, at
        most num_nodes - 1 more; all of `left` where `total` does not fit.
    """
    if int(left.sum()) <= total:
        return left.copy()
    low, high = 0, int((load + left).max())
    while low < high:
        level = (low + high) // 2
        if int(np.clip(level - load, 0, left).sum()) >= total:
            high = level
        else:
            low = level + 1
    return np.clip(low - load, 0, left)


def accept_in_order(
    node: NDArray[np.int32], sizes: NDArray[np.int64], room: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which shards their nodes accept if each takes them in the order given until one is too big.

    Args:
        node: int32 (num_shards,), the node that each shard asks.
        sizes: int64 (num_shards,), bytes.
        room: int64 (num_nodes,), bytes.

    Returns:
        bool (num_shards,).
    """
    if not len(node):
        return np.zeros(0, dtype=np.bool_)
    order = np.argsort(node, kind="stable")
    grouped = node[order]
    used = np.cumsum(sizes[order])
    is_first = np.concatenate([[True], grouped[1:] != grouped[:-1]])
    before = (used - sizes[order])[is_first]
    used -= before[np.cumsum(is_first) - 1]
    accepted = np.empty(len(node), dtype=np.bool_)
    accepted[order] = used <= room[grouped]
    return accepted


def fill_nodes(
    shards: NDArray[np.int64],
    sizes: NDArray[np.int64],
    keys: NDArray[np.uint64],
    room: NDArray[np.int64],
    left: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Give shards to nodes: each asks its favourite node that still has room, in rounds.

    Args:
        shards: int64 (num_shards,), numbers of the shards, which their favourites depend on.
        sizes: int64 (num_shards,), bytes.
        keys: uint64 (num_nodes,).
        room: int64 (num_nodes,), bytes each node should take, at most `left`; exceeded where
            sizes do not add up to it, so that no shard is left over that fits somewhere.
        left: int64 (num_nodes,), bytes it can take; never exceeded.

    Returns:
        int32 (num_shards,): numbers of nodes, -1 for shards that fit nowhere.
    """
    owner = np.full(len(shards), -1, dtype=np.int32)
    room, left = room.copy(), left.copy()
    pending = np.arange(len(shards))
    open_nodes = np.flatnonzero(room > 0)
    while len(pending) and len(open_nodes):
        choice, score = _favourites(shards[pending], keys, open_nodes)
        by_score = np.argsort(score, kind="stable")[::-1]
        asks = pending[by_score]
        choice = choice[by_score]
        accepted = accept_in_order(choice, sizes[asks], room)
        owner[asks[accepted]] = choice[accepted]
        for budget in (room, left):
            np.subtract.at(budget, choice[accepted], sizes[asks[accepted]])
        open_nodes = np.setdiff1d(open_nodes, choice[~accepted])
        pending = np.sort(asks[~accepted])
    _fill_gaps(owner, pending, sizes, (room, left))
    return owner


def _favourites(
    shards: NDArray[np.int64], keys: NDArray[np.uint64], nodes: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """The node with the highest hash with each shard, and that hash."""
    choice = np.empty(len(shards), dtype=np.int32)
    score = np.empty(len(shards), dtype=np.uint64)
    node_words = keys[nodes].astype(np.uint64)
    mix64(node_words)
    shard_words = shards.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    rows = max(1, _CHUNK_WORDS // len(nodes))
    for low in range(0, len(shards), rows):
        words = shard_words[low : low + rows, None] + node_words
        mix64(words)
        best = words.argmax(axis=1)
        choice[low : low + rows] = nodes[best]
        score[low : low + rows] = words[np.arange(len(words)), best]
    return choice, score


def _fill_gaps(
    owner: NDArray[np.int32],
    pending: NDArray[np.int64],
    sizes: NDArray[np.int64],
    budgets: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> None:
    """Shards that fit into nobody's room go, one by one, where they fit and most room is left."""
    room, left = budgets
    smallest = np.iinfo(np.int64).min
    for item in pending:
        # Room may be used up: small nodes cannot always take the shares they were reckoned with.
        wanted = np.where(left >= sizes[item], room, smallest)
        node = int(wanted.argmax())
        if wanted[node] == smallest:
            continue
        owner[item] = node
        room[node] -= sizes[item]
        left[node] -= sizes[item]
