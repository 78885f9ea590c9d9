"""Records between nodes by one-sided MPI reads: the owner's processor has no part in it.

Where a sample lies in its owner's arena follows from the table of owners, so a service reads it
there without asking: the slot's entry and the record in one go, over RDMA where the fabric has it.
The entry is held against the index here, the record by the rank that asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import CachedSplit, Owners
from msdata.cache.group import Window
from msdata.cache.slot_file import MAGIC, SLOT_NBYTES, are_of, slots_at_owners
from msdata.cache.tier import LOG
from msdata.errors import StorageError


class WindowReader:
    """Reads records out of the arenas of all nodes.

    Args:
        window: on the arenas, from their first bytes.
        ranks: the process whose memory each node's arena is.
        owners: owner and tier of every shard.
        split: the data.

    Attributes:
        num_failures: how often MPI refused.
    """

    def __init__(
        self, window: Window, ranks: Sequence[int], owners: Owners, split: CachedSplit
    ) -> None:
        self._window = window
        self._ranks = list(ranks)
        self._owner_of_shard = owners[0]
        self._split = split
        self._first_samples = split.first_samples
        self._places = slots_at_owners(owners, split, len(self._ranks))
        # Slots that were seen full: they stay so, and their record is asked for with the entry.
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
        came = self._are_kept(nodes, samples)
        try:
            unseen = np.flatnonzero(came)[~self._is_full[samples[came]]]
            if len(unseen):
                came[unseen] = self._look(nodes[unseen], samples[unseen], None)
            rows = np.flatnonzero(came)
            chosen = [targets[i] for i in rows.tolist()]
            came[rows] = self._look(nodes[rows], samples[rows], chosen)
        except OSError as error:
            self.num_failures += 1
            if self.num_failures == 1:
                LOG.warning("%s; what other nodes hold comes from storage", error)
            came[:] = False
        return came

    def _are_kept(self, nodes: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which samples the nodes keep in memory at all."""
        is_known = (samples >= 0) & (samples < len(self._is_full))
        shards = self._shards(np.where(is_known, samples, 0))
        is_owner = self._owner_of_shard[shards] == nodes
        kept: NDArray[np.bool_] = is_known & is_owner & (self._places.first_slots[shards] >= 0)
        return kept

    def _shards(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._first_samples, samples, side="right") - 1

    def _look(
        self,
        nodes: NDArray[np.int64],
        samples: NDArray[np.int64],
        targets: Sequence[NDArray[np.uint8]] | None,
    ) -> NDArray[np.bool_]:
        """Reads slots' entries, and their records where there are targets."""
        shards = self._shards(samples)
        slots = self._places.first_slots[shards] + samples - self._first_samples[shards]
        entries_at = self._places.entries_at + slots * SLOT_NBYTES
        records_at = self._places.payload_at[nodes] + slots * self._split.sample_nbytes
        entries = np.zeros((len(samples), SLOT_NBYTES), np.uint8)
        ranks = [self._ranks[n] for n in nodes.tolist()]
        for i, (rank, at) in enumerate(zip(ranks, entries_at.tolist(), strict=True)):
            self._window.get(rank, entries[i], at)
        for target, rank, at in zip(targets or (), ranks, records_at.tolist(), strict=False):
            self._window.get(rank, target, at)
        for rank in set(ranks):
            self._window.flush(rank)
        ready = are_of(entries, samples, self._split.checksums[samples])
        self._is_full[samples] = ready
        return ready
