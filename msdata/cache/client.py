"""A rank's view of its node's cache: locates the samples of a batch and caches what the rank read.

Once the cache is open, its faults raise nothing here: a sample that the cache cannot deliver comes
from storage.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import Arena, peers_name
from msdata.cache.config import GIB, CacheConfig, CachedSplit, Own, Owners, ReadRecord
from msdata.cache.filler import Filler
from msdata.cache.shared_file import Row
from msdata.cache.slot_places import ROWS_AT
from msdata.cache.ssd import SsdTier
from msdata.cache.tier import LOG, Counters, Tier
from msdata.cache.transport.peer_links import PeerLinks
from msdata.cache.transport.rendezvous import address_of, job_keys
from msdata.cache.transport.zmq_transport import ZmqFetcher, make_keys
from msdata.errors import MsdataError

# Sources of a sample.
LOCAL, SSD, PEER, STORAGE = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the samples of a batch are.

    Attributes:
        samples: int64 (n,), numbers within the split.
        source: int8 (n,), `LOCAL`, `SSD`, `PEER` or `STORAGE`.
        home: int8 (n,), `LOCAL` or `SSD`, the tier of this node that keeps the sample, filled or
            not; `STORAGE` if neither does.
        slots: int64 (n,), the sample's slot in that tier; -1 for none.
        at: int64 (n,), the record's offset in that tier's file, where there is a slot.
        nbytes: int64 (n,), bytes of each record.
        owners: int32 (n,), the node that keeps the sample; -1 for none.
    """

    samples: NDArray[np.int64]
    source: NDArray[np.int8]
    home: NDArray[np.int8]
    slots: NDArray[np.int64]
    at: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    owners: NDArray[np.int32]

    def taken(self, rows: NDArray[np.int64]) -> Places:
        """The places of some samples, in the order of `rows`."""
        return Places(**{name: values[rows] for name, values in vars(self).items()})


class CacheClient:
    """Opens this node's tiers; `start` begins to fill them, `close` leaves them.

    Args:
        config: sizes and names; `config.job` must be set.
        split: the data.
        node: this node's number.
        own: computes the owners of all shards from a node's capacities; None joins an existing
            arena as it is.
        read: reads the record of a sample from storage, for the filler.
        peers: fetches records of other nodes and is closed with the client; None looks for nodes
            in `config.peers_dir`.

    Attributes:
        owners: owner and tier of every shard, from this node's arena.
        tiers: the open tiers by `LOCAL` and `SSD`.
        counters: this rank's reads by tier.
        config: the given configuration.
        split: the given data.
        row: this process's row in the arena, for `msdata cache status`.
        has_peers: whether the client asks other nodes.

    Raises:
        StorageError: the file system refused shared memory or SSD.
        OSError: the folder for shared memory does not exist.
    """

    def __init__(
        self,
        config: CacheConfig,
        split: CachedSplit,
        node: int,
        own: Own | None,
        read: ReadRecord,
        *,
        peers: PeerLinks | None = None,
    ) -> None:
        self.split = split
        self.config = config
        self.counters = Counters()
        self._arena = Arena(config, split, node, own)
        self._ssd: SsdTier | None = None
        slots = self._arena.slots
        self.row = Row(slots.fd, ROWS_AT)
        self.owners: Owners = slots.owners
        self.tiers: dict[int, Tier] = {LOCAL: Tier("local", self._arena, split)}
        self._say_what_was_found()
        if config.ssd_nbytes:
            self._open_ssd(node)
        self.filler = Filler(
            list(self.tiers.values()), slots.fd, read, is_shared=config.warmup == "blocking"
        )
        self._peers = self._open_peers() if peers is None else peers
        self.has_peers = self._peers is not None
        self._lock = threading.Lock()
        self._num_altered = 0
        self._last_stats: dict[str, Any] | None = None

    def _open_ssd(self, node: int) -> None:
        planned = self._arena.slots.header.planned_nbytes, self.owners
        try:
            self._ssd = SsdTier(self.config, self.split, node, planned)
        except (MsdataError, OSError) as error:
            LOG.warning("cannot open the SSD tier: %s; its samples come from storage", error)
            return
        self.tiers[SSD] = Tier("ssd", self._ssd, self.split)

    def _open_peers(self) -> PeerLinks | None:
        folder = self.config.peers_dir
        if folder is None:
            return None
        try:
            find = partial(address_of, folder, peers_name(self.config, self.split))
            return ZmqFetcher(find, job_keys(folder, make_keys))
        except (MsdataError, OSError) as error:
            LOG.warning("cannot ask other nodes: %s; their samples come from storage", error)
            return None

    def _say_what_was_found(self) -> None:
        header = self._arena.slots.header
        planned, most = header.planned_nbytes[0], header.most_nbytes
        if self._arena.removed:
            LOG.info("removed arenas of dead jobs: %s", ", ".join(map(str, self._arena.removed)))
        if self._arena.is_made_here and most < planned:
            LOG.warning(
                "%s: memory_gib asks for %.2f GiB, but shared memory and cgroup have %.2f GiB free "
                "besides %.2f GiB for batches and indices; the cache is smaller, the rest comes "
                "from storage",
                *(self._arena.path, planned / GIB, most / GIB, self.config.reserved_nbytes / GIB),
            )

    def locate(self, samples: NDArray[np.int64]) -> Places:
        """Finds the samples of a batch.

        Args:
            samples: int64 (n,), numbers within the split.
        """
        shards = np.searchsorted(self.split.first_samples, samples, side="right") - 1
        source = np.full(len(samples), STORAGE, np.int8)
        home, slots, at = source.copy(), np.full(len(samples), -1, np.int64), samples
        for code, tier in self.tiers.items():
            found = tier.slots.slots(samples, shards)
            ready = tier.slots.are_ready(found, samples, self.split.checksums[samples])
            home[found >= 0] = code
            source[ready] = code
            slots = np.where(found >= 0, found, slots)
            at = np.where(found >= 0, tier.slots.records_at(samples, shards), at)
        owners = self.owners[0][shards]
        if self._peers is not None:
            source[(home == STORAGE) & (owners >= 0)] = PEER
        return Places(
            samples=samples,
            source=source,
            home=home,
            slots=slots,
            at=at,
            nbytes=self.split.record_nbytes[samples],
            owners=owners,
        )

    def fetch(self, places: Places, rows: Sequence[Sequence[Any]]) -> list[bool]:
        """Copies records of other nodes into `rows` and checks them against the index.

        Args:
            places: the places of the wanted samples.
            rows: for each sample the pieces of memory that its record fills, uint8 arrays.

        Returns:
            For each sample whether its record came and its checksum is right.
        """
        assert self._peers is not None
        checksums = self.split.checksums[places.samples].tolist()

        def is_sound(i: int, crc: int) -> bool:
            is_same: bool = crc == checksums[i]
            if not is_same:
                with self._lock:
                    self._num_altered += 1
            return is_same

        return self._peers.fetch(places.owners.tolist(), places.samples.tolist(), rows, is_sound)

    def records(self, samples: NDArray[np.int64]) -> list[Any | None]:
        """The records that this node has now, from memory or SSD, for other nodes.

        Args:
            samples: int64 (n,), numbers within the split; numbers out of range give None.
        """
        is_one = (samples >= 0) & (samples < len(self.split.checksums))
        places = self.locate(np.where(is_one, samples, 0))
        source = np.where(is_one, places.source, STORAGE)
        return [
            self._record(where, slot)
            for where, slot in zip(source.tolist(), places.slots.tolist(), strict=True)
        ]

    def _record(self, source: int, slot: int) -> Any | None:
        if source == LOCAL:
            return self.tiers[LOCAL].slots.record(slot)
        if source == SSD:
            with suppress(OSError):
                return self.tiers[SSD].slots.read_record(slot)
        return None

    def claim(self, places: Places) -> None:
        """Tells the filler which samples this rank will read from storage and cache."""
        for code, tier in self.tiers.items():
            tier.claim(places.slots[(places.home == code) & (places.source == STORAGE)])

    def keep(self, places: Places, i: int, parts: list[NDArray[np.uint8]]) -> bool:
        """Caches a record read from storage if this node keeps its sample.

        Args:
            places: the places of the batch.
            i: the sample's position in the batch.
            parts: the record in pieces.

        Returns:
            False if the record is known to be corrupt, see `Tier.keep`.
        """
        tier = self.tiers.get(int(places.home[i]))
        return tier is None or tier.keep(int(places.slots[i]), int(places.samples[i]), parts)

    def start(self) -> None:
        """Starts to fill the tiers."""
        self.filler.start()

    def start_epoch(self) -> None:
        """Resets the counters; with a blocking warmup, waits until the tiers are full."""
        if self.config.warmup == "blocking":
            self.filler.wait()
        self.counters.start_epoch()

    def stop(self) -> None:
        """Asks the filler to stop, without waiting."""
        self.filler.request_stop()

    def stats(self) -> dict[str, Any]:
        """Counters of the epoch by tier, and of the cache as a whole.

        Returns:
            `tiers`: samples, bytes and seconds of the epoch by "local", "ssd", "peer" and
            "storage"; `totals`: the sums over all epochs; `has_peers`; `cache`: slots, filled slots
            and faults by tier, `filler` with the reads of this process's filler, and `peers` with
            `failures` and `down` as in `PeerLinks.stats` and the number of `corrupt` records.
        """
        if self._last_stats is not None:
            return self._last_stats
        filler = self.filler
        peers = {} if self._peers is None else self._peers.stats()
        return {
            "tiers": self.counters.to_dict(),
            "totals": self.counters.totals(),
            "has_peers": self.has_peers,
            "cache": {
                **{tier.name: tier.to_dict() for tier in self.tiers.values()},
                "filler": {
                    "samples": filler.num_samples,
                    "bytes": filler.nbytes,
                    "seconds": filler.seconds,
                    "failed_shards": filler.num_failed,
                    "is_done": filler.is_done,
                },
                **({"peers": {**peers, "corrupt": self._num_altered}} if peers else {}),
            },
        }

    def close(self) -> None:
        """Leaves the tiers; the last to leave removes the shared memory."""
        if self._last_stats is not None:
            return
        self._last_stats = self.stats()
        if self._peers is not None:
            self._peers.close()
        if not self.filler.stop():
            # The thread still uses the descriptors; the end of the process closes them.
            LOG.warning("storage hangs: the cache stays open until the process ends")
            return
        if self._ssd is not None:
            self._ssd.close()
        self._arena.close()
