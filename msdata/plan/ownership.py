"""Which node keeps which shard, and in which tier: a pure function of sizes and capacities.

Nodes keep whole shards, so that caches fill by sequential reads. Every node is filled to the same
level as far as its capacity allows: under `locality` all nodes consume equally many samples, so
equal holdings move least, and where the data exceed all caches this weighs nodes by their capacity.
Rendezvous hashing draws a node's shards, so that a later job on mostly the same nodes finds most of
its shards where they were.

Only integers decide, since logarithms differ in their last bit between processors and the nodes of
a job must agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.plan.random_words import mix64

MEMORY, SSD, STORAGE = 0, 1, 2

_CHUNK_WORDS = 1 << 20  # shard-node pairs hashed at a time: 8 MiB, however many nodes


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What the nodes of a job can keep.

    Attributes:
        memory_bytes: int64 (num_nodes,), room in each node's memory tier.
        ssd_bytes: int64 (num_nodes,), room in each node's SSD tier.
        keys: uint64 (num_nodes,), distinct; a node that keeps its key keeps its shards. Hashes of
            host names make that hold from job to job.
    """

    memory_bytes: NDArray[np.int64]
    ssd_bytes: NDArray[np.int64]
    keys: NDArray[np.uint64]

    def __post_init__(self) -> None:
        shapes = {self.memory_bytes.shape, self.ssd_bytes.shape, self.keys.shape}
        if len(shapes) != 1 or self.keys.ndim != 1 or len(self.keys) < 1:
            raise UsageError(
                f"memory, SSD and keys of the nodes must have one shape (num_nodes,), got {shapes}"
            )
        if (self.memory_bytes < 0).any() or (self.ssd_bytes < 0).any():
            raise UsageError("capacities of nodes must be at least 0, got a negative one")
        if len(np.unique(self.keys)) != len(self.keys):
            raise UsageError("keys of nodes must differ, got the same key twice")

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.keys)


def equal_nodes(num_nodes: int, *, memory_bytes: int, ssd_bytes: int = 0) -> Nodes:
    """Nodes of the same capacity, with keys 0, 1, ...

    Args:
        num_nodes: number of nodes.
        memory_bytes: memory tier of each.
        ssd_bytes: SSD tier of each.

    Returns:
        The nodes.
    """
    return Nodes(
        memory_bytes=np.full(num_nodes, memory_bytes, dtype=np.int64),
        ssd_bytes=np.full(num_nodes, ssd_bytes, dtype=np.int64),
        keys=np.arange(num_nodes, dtype=np.uint64),
    )


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """The owner of every shard.

    Attributes:
        owner_of_shard: int32 (num_shards,), number of the node; -1 if no node keeps the shard.
        tier_of_shard: int8 (num_shards,), `MEMORY`, `SSD` or `STORAGE`.
        node_keys: uint64 (num_nodes,), keys of the nodes that the numbers mean.
    """

    owner_of_shard: NDArray[np.int32]
    tier_of_shard: NDArray[np.int8]
    node_keys: NDArray[np.uint64]

    def __post_init__(self) -> None:
        if self.owner_of_shard.shape != self.tier_of_shard.shape:
            raise UsageError("owners and tiers are not of the same shards")
        if ((self.owner_of_shard < 0) != (self.tier_of_shard == STORAGE)).any():
            raise UsageError("a shard has an owner exactly if it is not in storage alone")

    @classmethod
    def numbered(
        cls, owner_of_shard: NDArray[np.int32], tier_of_shard: NDArray[np.int8], num_nodes: int
    ) -> Ownership:
        """Known owners, of nodes with keys 0, 1, ..."""
        keys = np.arange(num_nodes, dtype=np.uint64)
        return cls(owner_of_shard=owner_of_shard, tier_of_shard=tier_of_shard, node_keys=keys)

    def held(self, amount_of_shard: NDArray[Any], tier: int | None = None) -> NDArray[Any]:
        """Bytes, samples or shares of the data that each node keeps.

        Args:
            amount_of_shard: int64 or float64 (num_shards,), the amount in each shard.
            tier: `MEMORY` or `SSD`; None means both.

        Returns:
            (num_nodes,) of the same dtype.
        """
        chosen = self.owner_of_shard >= 0
        if tier is not None:
            chosen &= self.tier_of_shard == tier
        held = np.zeros(len(self.node_keys), dtype=amount_of_shard.dtype)
        np.add.at(held, self.owner_of_shard[chosen], amount_of_shard[chosen])
        return held


def own_shards(shard_bytes: NDArray[np.int64], nodes: Nodes) -> Ownership:
    """Give each shard to at most one node, without exceeding any capacity by a byte.

    Args:
        shard_bytes: int64 (num_shards,), what a cached shard occupies.
        nodes: the nodes and their capacities.

    Returns:
        The owners. Where all data fit, holdings differ by at most about one shard; where they do
        not, less than one shard per node and tier is left unused.

    Raises:
        UsageError: negative sizes.

    Source: rendezvous hashing, Thaler & Ravishankar 1998; bounded loads, Mirrokni, Thorup &
    Zadimoghaddam 2018.
    """
    sizes = np.asarray(shard_bytes, dtype=np.int64)
    if sizes.ndim != 1 or (sizes < 0).any():
        raise UsageError("shard_bytes must be one non-negative number per shard")
    owner = np.full(len(sizes), -1, dtype=np.int32)
    tier = np.full(len(sizes), STORAGE, dtype=np.int8)
    load = np.zeros(nodes.num_nodes, dtype=np.int64)
    for code, capacity in ((MEMORY, nodes.memory_bytes), (SSD, nodes.ssd_bytes)):
        free = np.flatnonzero(owner < 0)
        room = level_room(load, capacity, int(sizes[free].sum()))
        got = _fill_nodes(free, sizes[free], nodes.keys, room, capacity)
        placed = free[got >= 0]
        owner[placed], tier[placed] = got[got >= 0], code
        np.add.at(load, owner[placed], sizes[placed])
    return Ownership(owner_of_shard=owner, tier_of_shard=tier, node_keys=nodes.keys)


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


def _accept_in_order(
    node: NDArray[np.int32], sizes: NDArray[np.int64], room: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which shards are accepted if each node takes them in the order given until one is too big."""
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


def _fill_nodes(
    shards: NDArray[np.int64],
    sizes: NDArray[np.int64],
    keys: NDArray[np.uint64],
    room: NDArray[np.int64],
    left: NDArray[np.int64],
) -> NDArray[np.int32]:
    """The node of each shard, -1 for none: each asks its favorite that still has room, in rounds.

    `left`, the bytes that a node can take, is never exceeded; `room`, the bytes it should take, is
    where sizes do not add up to it, so that no shard is left over that fits somewhere.
    """
    owner = np.full(len(shards), -1, dtype=np.int32)
    room, left = room.copy(), left.copy()
    pending = np.arange(len(shards))
    open_nodes = np.flatnonzero(room > 0)
    while len(pending) and len(open_nodes):
        choice, score = _favorites(shards[pending], keys, open_nodes)
        by_score = np.argsort(score, kind="stable")[::-1]
        asks = pending[by_score]
        choice = choice[by_score]
        accepted = _accept_in_order(choice, sizes[asks], room)
        owner[asks[accepted]] = choice[accepted]
        for budget in (room, left):
            np.subtract.at(budget, choice[accepted], sizes[asks[accepted]])
        open_nodes = np.setdiff1d(open_nodes, choice[~accepted])
        pending = np.sort(asks[~accepted])
    _fill_gaps(owner, pending, sizes, (room, left))
    return owner


def _favorites(
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
    """Place shards that exceed every node's share, one by one, where most room is left."""
    room, left = budgets
    smallest = np.iinfo(np.int64).min
    for item in pending:
        # Room may be used up: small nodes cannot always take the shares they were planned with.
        wanted = np.where(left >= sizes[item], room, smallest)
        node = int(wanted.argmax())
        if wanted[node] == smallest:
            continue
        owner[item] = node
        room[node] -= sizes[item]
        left[node] -= sizes[item]
