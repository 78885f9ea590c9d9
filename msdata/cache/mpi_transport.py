"""Records between nodes by one-sided MPI reads: the owner's processor has no part in it.

Where a sample lies in its owner's arena follows from the table of owners, so a service reads it
there without asking, over RDMA where the fabric has it. A slot's entry is held against the index
before its record is read for the first time (full slots stay full); every record is, each time, by
the rank that asked. What stands on an owner's disk, MPI cannot read: a message asks for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

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
# So much is waited for at once: a rank copies it out while more comes. Where records were told of
# all together, one thread of a rank came to 0.40 of bare reads in place of 0.73 (two busy cores).
_RUN_NBYTES = 1 << 20


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
        self._ranks = np.array(ranks, np.int64)
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
        num_ranks = len(self._ranks)
        others = sorted(self._ranks.tolist(), key=lambda rank: (rank - own_rank) % num_ranks)
        for rank in others:
            found = np.zeros(len(MAGIC), np.uint8)
            self._window.wait([self._window.get(rank, found, 0)])
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
    ) -> Iterator[NDArray[np.bool_]]:
        """Reads records that their nodes have at the moment; begins all, then waits for some.

        Args:
            nodes: int64 (n,), which node keeps each.
            samples: int64 (n,), numbers within the split.
            targets: for each a writable uint8 array (sample_nbytes,), not to be touched until the
                iterator has ended, or was closed.

        Yields:
            For some samples after the other, as soon as it is known, which are there with the
            sample number and checksum of the index: bool (m,), n in all.
        """
        came, slots = self._kept(nodes, samples)
        begun: list[Any] = []
        done = 0
        try:
            unseen = np.flatnonzero(came & ~self._is_full[np.where(came, samples, 0)])
            if len(unseen):
                came[unseen] = self._look(nodes[unseen], samples[unseen], slots[unseen])
            self._begin(nodes, slots, targets, (came, begun))
            if self._exchange is not None:
                self._ask(came, nodes, samples, targets)
            step = -(-_RUN_NBYTES // self._split.sample_nbytes)
            for start in range(0, len(samples), step):
                self._window.wait(begun[start : start + step])
                done = min(start + step, len(samples))
                yield came[start:done]
        except OSError as error:
            self.num_failures += 1
            if self.num_failures == 1:
                LOG.warning("%s; what other nodes hold comes from storage", error)
            yield np.zeros(len(samples) - done, bool)
        finally:
            # Nothing may still be on its way when the targets are given up.
            with suppress(OSError):
                self._window.wait(begun[done:])

    def _kept(
        self, nodes: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which samples the nodes keep in memory at all, and in which slots."""
        is_known = (samples >= 0) & (samples < len(self._is_full))
        found = samples if is_known.all() else np.where(is_known, samples, 0)
        shards = np.searchsorted(self._first_samples, found, side="right") - 1
        first_slots = self._places.first_slots[shards]
        kept: NDArray[np.bool_] = (self._owner_of_shard[shards] == nodes) & (first_slots >= 0)
        kept &= is_known
        return kept, first_slots + found - self._first_samples[shards]

    def _look(
        self, nodes: NDArray[np.int64], samples: NDArray[np.int64], slots: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which slots hold their samples by now."""
        entries = np.zeros((len(samples), SLOT_NBYTES), np.uint8)
        ranks = self._ranks[nodes]
        places = self._places.entries_at + slots * SLOT_NBYTES
        get = self._window.get
        self._window.wait(list(map(get, ranks.tolist(), entries, places.tolist())))
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
        ranks = self._ranks[nodes[rows]].tolist()
        wanted = [int(samples[i]) for i in rows], [targets[i] for i in rows]
        try:
            came[rows] = self._exchange.fetch(ranks, *wanted, _ANSWER_S)
        except TimeoutError as error:
            LOG.warning("%s: what is on their disks comes from storage from now on", error)
            self._exchange = None

    def _begin(
        self,
        nodes: NDArray[np.int64],
        slots: NDArray[np.int64],
        targets: Sequence[NDArray[np.uint8]],
        into: tuple[NDArray[np.bool_], list[Any]],
    ) -> None:
        """Begins to read those records that are there; a None stands for each other."""
        came, begun = into
        known = np.where(came, nodes, 0)
        ranks = self._ranks[known].tolist()
        places = (self._places.payload_at[known] + slots * self._split.sample_nbytes).tolist()
        for i, is_there in enumerate(came.tolist()):
            begun.append(self._window.get(ranks[i], targets[i], places[i]) if is_there else None)
