"""Connects index, plan and cache: opens a node's cache for a loader."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.budget import free_memory
from msdata.cache.client import LOCAL, CacheClient
from msdata.cache.config import GIB, CacheConfig, Owners
from msdata.cache.reporter import Reporter
from msdata.cache.served import ServedArena, find_served
from msdata.cache.split import cached_split, owners_by_capacity, record_reader
from msdata.cache.stale_shm import remove_dead_shared_memory
from msdata.cache.status import forecast_hits
from msdata.cache.tier import LOG
from msdata.cache.transport.link import LinkFetcher, link_address
from msdata.dataset.dataset import Split
from msdata.errors import MsdataError, UsageError
from msdata.loader.cached_fill import CachedReader
from msdata.loader.options import RingSize
from msdata.loader.read import RecordReader, SampleReader
from msdata.topology import Topology, job_name

AUTO = "auto"
# Per sample and rank: checksum, place, position in this epoch's order and in the next one's.
_INDEX_NBYTES = 64


@dataclass(kw_only=True)
class NodeCache:
    """A loader's handle on its node's cache; all parts may be absent.

    Attributes:
        client: the cache; None without one, or if it could not be opened.
        owner_of_shard: int32 (shards,), the owners that policy `locality` deals by, equal on all
            ranks; None if unknown.
        reporter: reports this rank's counters, once started.
        served: the arena, if a service keeps it.
    """

    client: CacheClient | None = None
    owner_of_shard: NDArray[np.int32] | None = None
    reporter: Reporter | None = None
    served: ServedArena | None = None

    @property
    def owners(self) -> Owners | None:
        """Owner and tier of every shard by this node's arena; None without a cache."""
        return None if self.client is None else self.client.owners

    def reader(self, storage: SampleReader, split: Split, *, is_checked: bool) -> RecordReader:
        """The reader that fills batches.

        Args:
            storage: reads from storage.
            split: the data.
            is_checked: check every record against its checksum.
        """
        if self.client is None:
            return storage
        return CachedReader(storage, self.client, split, is_checked=is_checked)

    def start(
        self,
        describe: weakref.WeakMethod[Callable[[], dict[str, Any]]],
        split: Split,
        weights: NDArray[np.float64] | None,
    ) -> None:
        """Starts to fill the cache and to report the counters.

        Args:
            describe: returns the loader's counters and the job that they describe.
            split: the data.
            weights: weights that samples are drawn with, or None.
        """
        if self.client is None:
            return
        self.client.start()

        def described() -> dict[str, Any] | None:
            found = describe()
            return None if found is None else found()

        forecast = None
        if weights is not None:
            forecast = partial(
                forecast_hits,
                shard_sizes=split.shard_sizes,
                owners=self.client.owners,
                weights=weights,
            )
        self.reporter = Reporter(self.client, described, forecast)

    def start_epoch(self) -> None:
        """Resets the counters; with a blocking warmup, waits until all nodes' caches are full."""
        if self.reporter is not None:
            self.reporter.start_epoch()
        if self.served is not None:
            self.served.wait_until_staged()
        if self.client is not None:
            self.client.start_epoch()

    def end_epoch(self) -> None:
        """Reports that the epoch is complete."""
        if self.reporter is not None:
            self.reporter.end_epoch(is_complete=True)

    def stats(self) -> dict[str, Any]:
        """See `CacheClient.stats`; nothing without a cache."""
        return {} if self.client is None else self.client.stats()

    def stop(self) -> None:
        """Asks the threads to end, without waiting."""
        if self.reporter is not None:
            self.reporter.request_stop()
        if self.client is not None:
            self.client.stop()

    def close(self) -> None:
        """Leaves the cache."""
        if self.reporter is not None and not self.reporter.close():
            LOG.warning("the disk of metrics_dir hangs: the cache is left to the process's end")
        elif self.client is not None:
            self.client.close()
        if self.served is not None and not self.served.is_served():
            remove_dead_shared_memory()


def open_node_cache(
    split: Split,
    cache: str | CacheConfig | None,
    topology: Topology,
    ring: RingSize,
    *,
    policy: str,
) -> NodeCache:
    """Joins this node's cache, or brings it up.

    Args:
        split: the data.
        cache: the loader's argument.
        topology: nodes, and this rank's.
        ring: the batches of a rank, which are not there yet.
        policy: of the loader; "locality" deals by owner, on which all ranks have to agree.

    Returns:
        The cache; without a client where something was wrong with it, which is logged.

    Raises:
        UsageError: `cache` means nothing, or the ranks could not agree on owners.
        DataError: the index is damaged.
    """
    config, needs_owners = _config(cache), policy == "locality"
    if config is None:
        return NodeCache()
    rank_nbytes = ring.nbytes + _index_nbytes(split) * len(split)
    reserved_nbytes = config.reserved_nbytes + topology.ranks_per_node * rank_nbytes
    config = replace(config, reserved_nbytes=reserved_nbytes)
    cached = cached_split(split)
    served = find_served(config, cached, topology)
    if served is not None:
        return _join_service(served, config, split, topology, needs_owners=needs_owners)
    own = owners_by_capacity(cached, topology)
    # Other nodes may have services, which agree on sizes of their own.
    is_told = config.memory_nbytes is not None and config.peers_dir is None
    owners = own(config.memory_nbytes or 0, config.ssd_nbytes) if is_told else None
    client = None
    try:
        client = CacheClient(config, cached, topology.node, own, record_reader(split))
    except (MsdataError, OSError) as error:
        LOG.warning("no cache: %s; all samples come from storage", error)
    if owners is None and client is not None and topology.num_nodes == 1:
        owners = client.owners
    if owners is None and needs_owners:
        if client is not None:
            client.close()
        raise UsageError(
            "policy 'locality' needs the same owners on all ranks, and this node's cache service, "
            "which knows them, was not found; start 'msdata cache serve' on each node, or give the "
            "cache a number without services: CacheConfig(memory_gib=...)"
        )
    return NodeCache(client=client, owner_of_shard=None if owners is None else owners[0])


def _index_nbytes(split: Split) -> int:
    """What a rank knows of each sample."""
    # Of coded ones also the record's length and place, and of each array place, length and steps.
    of_codes = sum(16 + 4 * c.num_planes for c in split.codings)
    return _INDEX_NBYTES + (16 + of_codes if of_codes else 0)


def _join_service(
    served: ServedArena,
    asked: CacheConfig,
    split: Split,
    topology: Topology,
    *,
    needs_owners: bool,
) -> NodeCache:
    """Uses the arena of this node's service, and the owners that the services agreed on."""
    num_nodes, node = served.service["num_nodes"], served.service["node"]
    if needs_owners and num_nodes != topology.num_nodes:
        raise UsageError(
            f"the cache's services run on {num_nodes} nodes, the ranks on {topology.num_nodes}, so "
            "policy 'locality' cannot deal samples to their owners; start both on the same nodes"
        )
    if needs_owners and node != topology.node:
        LOG.warning(
            "this node is number %d among the ranks' and %d among the services', so under "
            "'locality' most samples come from peers; number the ranks' nodes by host name",
            *(topology.node, node),
        )
    cached = cached_split(split)
    config = served.config(asked)
    peers = None
    if num_nodes > 1 and config.peers_dir is None:
        peers = LinkFetcher(link_address(served.path), cached.max_record_nbytes)
    try:
        client = CacheClient(config, cached, node, None, record_reader(split), peers=peers)
    except (MsdataError, OSError) as error:
        if needs_owners:
            raise
        LOG.warning("no cache: %s; all samples come from storage", error)
        return NodeCache()
    if topology.local_rank == 0:
        if asked.memory_nbytes not in (None, config.memory_nbytes):
            LOG.warning(
                "this node's cache service keeps %.2f GiB, CacheConfig asks for memory_gib=%.2f, "
                "which is ignored; give the size to 'msdata cache serve --memory-gib'",
                *(config.memory_gib, asked.memory_gib),
            )
        _warn_of_too_little(client, config.reserved_nbytes)
    return NodeCache(client=client, owner_of_shard=client.owners[0], served=served)


def _warn_of_too_little(client: CacheClient, reserved_nbytes: int) -> None:
    """Warns if the ranks and the rest of the arena exceed free memory.

    A service makes its arena before it knows the memory of the ranks.
    """
    slots, free = client.tiers[LOCAL].slots, free_memory()
    missing_nbytes = slots.nbytes - slots.ready_nbytes
    if 0 < free < missing_nbytes + reserved_nbytes:
        LOG.warning(
            "%.2f GiB are free, the service's arena will take %.2f GiB more, and batches and "
            "indices of this node's ranks %.2f GiB: the job may be killed for its memory; give "
            "'msdata cache serve' a smaller --memory-gib, or ranks a smaller batch_size or "
            "prefetch",
            *(free / GIB, missing_nbytes / GIB, reserved_nbytes / GIB),
        )


def _config(cache: str | CacheConfig | None) -> CacheConfig | None:
    if cache is None:
        return None
    if cache == AUTO:
        cache = CacheConfig()
    if not isinstance(cache, CacheConfig):
        raise UsageError(f"cache must be None, 'auto' or a CacheConfig, got {cache!r}")
    return cache if cache.job is not None else replace(cache, job=job_name())
