"""Records between nodes by one-sided MPI reads, which take no processor time of the owner.

A sample's place in its owner's arena follows from the table of owners, so a service reads it there
without asking, over RDMA if the fabric has it. It checks a slot's entry against the index before it
reads the record for the first time (full slots stay full); the rank checks every record, each time.
MPI cannot read an owner's disk: a message asks for those records.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import SSD_TIER
from msdata.cache.config import CachedSplit, Owners
from msdata.cache.slot_file import MAGIC, are_of
from msdata.cache.slot_places import SLOT_NBYTES, entries_at, slots_at_owners
from msdata.cache.tier import LOG
from msdata.cache.transport.link import parts_of
from msdata.core.mpi import Exchange, Window
from msdata.errors import StorageError

# Time limit for a read or an answer of another node, below the ranks' own. While one node is late,
# others get less: if this node's own link is cut, all are late.
_ANSWER_S = 1.5
_NEXT_ANSWER_S = 0.3
# Every node connects to the others one by one, all nodes at once.
_FIRST_ANSWER_S = 60.0
# Bytes awaited at a time: the rank copies them out while more arrive. With all records announced
# together, one thread of a rank reached 0.40 of the rate of bare reads, and 0.73 with this (two
# busy cores; both before records were checked as they are copied).
_RUN_NBYTES = 5 << 18


class WindowReader:
    """Reads records from the arenas of all nodes.

    Args:
        window: the arenas, from their first bytes.
        ranks: the rank of each node's service.
        owners: owner and tier of every shard.
        split: the data.
        exchange: fetches records on disks; None if there are none.

    Attributes:
        num_failures: number of failed or late MPI operations.
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
        self._exchange = exchange
        self._split = split
        places = slots_at_owners(owners, split, len(ranks))
        # Lists, because a lookup of few samples is faster than in arrays.
        self._rank_of_node = list(ranks)
        self._firsts: list[int] = split.first_samples.tolist()
        self._owners, self._tiers = (of_shard.tolist() for of_shard in owners)
        self._first_slots: list[int] = places.first_slots.tolist()
        self._entries_at = entries_at(len(split.shard_sizes))
        # Offset of a sample's record in its owner's arena, less the bytes of all records before it.
        self._shifts: list[int] = (
            places.records_at - split.starts.of(split.first_samples)
        ).tolist()
        # Samples whose slot was seen full.
        self._is_full = bytearray(len(split.checksums))
        # Reads in flight that are late: the node, the read, and the memory that it fills.
        self._late: list[tuple[int, Any, Any]] = []
        self.num_failures = 0

    def check(self, own_rank: int) -> None:
        """Reads the first bytes of every arena, and so connects now, not at the first request.

        Args:
            own_rank: this process's rank; each process starts with its successor.

        Raises:
            StorageError: a read gave wrong bytes.
        """
        num_ranks = len(self._rank_of_node)
        others = sorted(self._rank_of_node, key=lambda rank: (rank - own_rank) % num_ranks)
        for rank in others:
            found = np.zeros(len(MAGIC), np.uint8)
            self._window.wait([self._window.get(rank, found, 0)], _FIRST_ANSWER_S)
            if found.tobytes() != MAGIC:
                raise StorageError(
                    f"one-sided MPI reads from process {rank} give wrong bytes; use --transport zmq"
                )

    def read(
        self,
        nodes: NDArray[np.int64],
        samples: NDArray[np.int64],
        targets: Sequence[NDArray[np.uint8]],
    ) -> Iterator[NDArray[np.bool_]]:
        """Reads the records that their nodes have now; starts all reads, then waits in groups.

        Args:
            nodes: int64 (n,), the node that keeps each sample.
            samples: int64 (n,), numbers within the split.
            targets: for each sample a writable uint8 array of its record's length, else it does not
                come; do not touch it until the iterator has ended or was closed.

        Yields:
            For each group, as soon as it is known, whether each record came and its entry has the
            index's sample number and checksum: bool (m,), n in all.
        """
        wanted = list(zip(nodes.tolist(), samples.tolist(), strict=True))
        left_alone = self._late_nodes() if self._late else set()
        slots = [
            -1 if node in left_alone else self._slot(node, sample, len(target))
            for (node, sample), target in zip(wanted, targets, strict=True)
        ]
        begun: list[Any] = []
        done = 0
        try:
            unseen = [
                i
                for i, (_, sample) in enumerate(wanted)
                if slots[i] >= 0 and not self._is_full[sample]
            ]
            if unseen:
                self._look([wanted[i] for i in unseen], unseen, slots)
            came = np.array([slot >= 0 for slot in slots])
            self._begin(wanted, slots, targets, begun)
            if self._exchange is not None:
                self._ask(came, wanted, targets)
            for start, stop in parts_of(list(map(len, targets)), _RUN_NBYTES):
                self._wait(begun[start:stop])
                done = stop
                yield came[start:stop]
        except OSError as error:
            self.num_failures += 1
            if self.num_failures == 1:
                LOG.warning("%s; samples of other nodes come from storage", error)
            yield np.zeros(len(samples) - done, bool)
        finally:
            left = nodes[done:].tolist()
            self._give_up(zip(left, begun[done:], targets[done:], strict=False))

    def _wait(self, begun: Sequence[Any]) -> None:
        self._window.wait(begun, _NEXT_ANSWER_S if self._late else _ANSWER_S)

    def _give_up(self, reads: Iterable[tuple[int, Any, Any]]) -> None:
        """Keeps the memory of reads that are late, and pauses the use of their nodes.

        A rank checks records as it copies them out, so a late read cannot corrupt a batch.
        """
        for node, read, target in reads:
            with suppress(OSError):
                if read is not None and not self._window.is_here([read]):
                    self._late.append((node, read, target))

    def _late_nodes(self) -> set[int]:
        """Nodes with reads in flight that are late; other nodes are usable again."""
        before, self._late = self._late, []
        self._give_up(before)
        return {node for node, _, _ in self._late}

    def _shard_kept(self, node: int, sample: int, nbytes: int) -> int | None:
        """The shard of a sample; None if the node does not keep it, or number or size is wrong."""
        if not 0 <= sample < len(self._is_full) or self._split.record_nbytes[sample] != nbytes:
            return None
        shard = bisect_right(self._firsts, sample) - 1
        return shard if self._owners[shard] == node else None

    def _slot(self, node: int, sample: int, nbytes: int) -> int:
        """The slot in which a node keeps a sample in memory; -1 for none."""
        shard = self._shard_kept(node, sample, nbytes)
        if shard is None or self._first_slots[shard] < 0:
            return -1
        return self._first_slots[shard] + sample - self._firsts[shard]

    def _look(
        self, wanted: Sequence[tuple[int, int]], rows: Sequence[int], slots: list[int]
    ) -> None:
        """Reads the entries of slots not yet seen full; sets slots that are not full to -1."""
        entries = np.zeros((len(rows), SLOT_NBYTES), np.uint8)
        begun = [
            self._window.get(
                self._rank_of_node[node], entry, self._entries_at + slots[i] * SLOT_NBYTES
            )
            for (node, _), i, entry in zip(wanted, rows, entries, strict=True)
        ]
        try:
            self._wait(begun)
        except OSError:
            self._give_up(zip([node for node, _ in wanted], begun, entries, strict=True))
            raise
        samples = np.array([sample for _, sample in wanted], np.int64)
        ready = are_of(entries, samples, self._split.checksums[samples]).tolist()
        for (_, sample), i, is_ready in zip(wanted, rows, ready, strict=True):
            if is_ready:
                self._is_full[sample] = True
            else:
                slots[i] = -1

    def _ask(
        self,
        came: NDArray[np.bool_],
        wanted: Sequence[tuple[int, int]],
        targets: Sequence[NDArray[np.uint8]],
    ) -> None:
        """Fetches the records that their nodes keep on disk."""
        shards = [self._shard_kept(*key, len(t)) for key, t in zip(wanted, targets, strict=True)]
        rows = [i for i, s in enumerate(shards) if s is not None and self._tiers[s] == SSD_TIER]
        if not rows:
            return
        assert self._exchange is not None
        ranks = [self._rank_of_node[wanted[i][0]] for i in rows]
        samples = [wanted[i][1] for i in rows]
        into = [targets[i] for i in rows]
        try:
            came[rows] = self._exchange.fetch(ranks, samples, into, _ANSWER_S)
        except TimeoutError as error:
            LOG.warning("%s: from now on samples on their disks come from storage", error)
            self._exchange = None

    def _begin(
        self,
        wanted: Sequence[tuple[int, int]],
        slots: Sequence[int],
        targets: Sequence[NDArray[np.uint8]],
        begun: list[Any],
    ) -> None:
        """Starts to read the records of full slots; adds None for other samples."""
        for (node, sample), slot, target in zip(wanted, slots, targets, strict=True):
            if slot < 0:
                begun.append(None)
                continue
            shard = bisect_right(self._firsts, sample) - 1
            at = self._shifts[shard] + int(self._split.starts.of(sample))
            begun.append(self._window.get(self._rank_of_node[node], target, at))
