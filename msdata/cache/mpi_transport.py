"""Records between nodes by one-sided MPI reads: the owner's processor has no part in it.

Where a sample lies in its owner's arena follows from the table of owners, so a service reads it
there without asking, over RDMA where the fabric has it. A slot's entry is held against the index
before its record is read for the first time (full slots stay full); every record is, each time, by
the rank that asked. What stands on an owner's disk, MPI cannot read: a message asks for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import SSD_TIER
from msdata.cache.config import CachedSplit, Owners
from msdata.cache.group import Exchange, Window
from msdata.cache.slot_file import MAGIC, SLOT_NBYTES, are_of, slots_at_owners
from msdata.cache.tier import LOG
from msdata.errors import StorageError

# What others have to answer for what is on their disks: less than ranks wait.
_ANSWER_S = 1.5


class WindowReader:
    """Reads records out of the arenas of all nodes.

    Args:
        window: on the arenas, from their first bytes.
        ranks: the process whose memory each node's arena is.
        owners: owner and tier of every shard.
        split: the data.
        exchange: for what is on disks; None where nothing is.

    Attributes:
        num_failures: how often MPI refused.
    """

    def __init__(
        self,
        window: Window,
        ranks: Sequence[int],
        owners: Owners,
        split: CachedSplit,
        exchange: Exchange | None = None,
    ) -> None:
        self._window = window
        self._ranks = list(ranks)
        self._owner_of_shard, self._tier_of_shard = owners
        self._exchange = exchange
        self._split = split
        self._first_samples = split.first_samples
        self._places = slots_at_owners(owners, split, len(self._ranks))
        # Slots that were seen full, by sample.
        self._is_full = np.zeros(len(split.checksums), bool)
        self.num_failures = 0

    def check(self, own_rank: int) -> None:
        """Reads the first bytes of every arena: connections are made now, not at first need.

        Args:
            own_rank: of this process; each begins with the one after it.

        Raises:
            StorageError: something else came.
        """
        others = sorted(self._ranks, key=lambda rank: (rank - own_rank) % len(self._ranks))
        for rank in others:
            found = np.zeros(len(MAGIC), np.uint8)
            self._window.get(rank, found, 0)
            self._window.flush(rank)
            if found.tobytes() != MAGIC:
                raise StorageError(
                    f"one-sided MPI reads from process {rank} give other bytes than are there; use "
                    "--transport zmq"
                )

    def read(
        self,
        nodes: NDArray[np.int64],
        samples: NDArray[np.int64],
        targets: Sequence[NDArray[np.uint8]],
    ) -> NDArray[np.bool_]:
        """Reads records that their nodes have at the moment.

        Args:
            nodes: int64 (n,), which node keeps each.
            samples: int64 (n,), numbers within the split.
            targets: for each a writable uint8 array (sample_nbytes,).

        Returns:
            bool (n,), which are there with the sample number and checksum of the index.
        """
        came, slots = self._kept(nodes, samples)
        try:
            unseen = np.flatnonzero(came & ~self._is_full[np.where(came, samples, 0)])
            if len(unseen):
                came[unseen] = self._look(nodes[unseen], samples[unseen], slots[unseen])
            self._get(nodes, slots, targets, np.flatnonzero(came).tolist())
            if self._exchange is not None:
                self._ask(came, nodes, samples, targets)
        except TimeoutError as error:
            LOG.warning("%s: what is on their disks comes from storage from now on", error)
            self._exchange = None
            came[:] = False
        except OSError as error:
            self.num_failures += 1
            if self.num_failures == 1:
                LOG.warning("%s; what other nodes hold comes from storage", error)
            came[:] = False
        return came

    def _kept(
        self, nodes: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which samples the nodes keep in memory at all, and in which slots."""
        is_known = (samples >= 0) & (samples < len(self._is_full))
        found = np.where(is_known, samples, 0)
        shards = np.searchsorted(self._first_samples, found, side="right") - 1
        first_slots = self._places.first_slots[shards]
        kept: NDArray[np.bool_] = is_known & (self._owner_of_shard[shards] == nodes)
        kept &= first_slots >= 0
        return kept, first_slots + found - self._first_samples[shards]

    def _look(
        self, nodes: NDArray[np.int64], samples: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which slots hold their samples by now."""
        entries = np.zeros((len(samples), SLOT_NBYTES), np.uint8)
        ranks = [self._ranks[n] for n in nodes.tolist()]
        places = self._places.entries_at + slots * SLOT_NBYTES
        for entry, rank, at in zip(entries, ranks, places.tolist(), strict=True):
            self._window.get(rank, entry, at)
        for rank in set(ranks):
            self._window.flush(rank)
        ready = are_of(entries, samples, self._split.checksums[samples])
        self._is_full[samples] = ready
        return ready

    def _ask(
        self,
        came: NDArray[np.bool_],
        nodes: NDArray[np.int64],
        samples: NDArray[np.int64],
        targets: Sequence[NDArray[np.uint8]],
    ) -> None:
        """Fetches what their nodes keep on disk."""
        is_known = (samples >= 0) & (samples < len(self._is_full))
        found = np.where(is_known, samples, 0)
        shards = np.searchsorted(self._first_samples, found, side="right") - 1
        is_kept = is_known & (self._owner_of_shard[shards] == nodes)
        rows = np.flatnonzero(is_kept & (self._tier_of_shard[shards] == SSD_TIER)).tolist()
        if not rows:
            return
        assert self._exchange is not None
        ranks = [self._ranks[int(nodes[i])] for i in rows]
        wanted = [int(samples[i]) for i in rows], [targets[i] for i in rows]
        came[rows] = self._exchange.fetch(ranks, *wanted, _ANSWER_S)

    def _get(
        self,
        nodes: NDArray[np.int64],
        slots: NDArray[np.int64],
        targets: Sequence[NDArray[np.uint8]],
        rows: Sequence[int],
    ) -> None:
        """Reads the records of some rows."""
        ranks = set()
        for i in rows:
            node, slot = int(nodes[i]), int(slots[i])
            at = int(self._places.payload_at[node]) + slot * self._split.sample_nbytes
            ranks.add(rank := self._ranks[node])
            self._window.get(rank, targets[i], at)
        for rank in ranks:
            self._window.flush(rank)
