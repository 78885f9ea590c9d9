"""The cache service of one node: makes the arena, fills it, and exchanges records with the others.

The services of a job agree on who owns which shard before the first rank asks. Each service offers
what its node can give; the owners follow from all offers and are stored in every arena. So nodes
may differ, "auto" may find a different size on each, and a rank needs to know only its job.

Services agree over MPI, or through a folder that all nodes see (`peers_dir`). Over MPI they read
from each other for their ranks; with a folder the ranks themselves ask other nodes' services.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import arena_path, peers_name, word
from msdata.cache.budget import memory_budget
from msdata.cache.client import LOCAL, CacheClient
from msdata.cache.config import GIB, CacheConfig, CachedSplit, Owners, ReadRecord
from msdata.cache.metrics import METRICS_S, remove_metrics, service_families, write_metrics
from msdata.cache.served import arena_of_service, served_place
from msdata.cache.shared_file import is_used
from msdata.cache.slot_file import Header, SlotFile, owners_checksum
from msdata.cache.stale_shm import remove_dead_shared_memory
from msdata.cache.tier import LOG
from msdata.cache.transport.group import Group, agree
from msdata.cache.transport.link import describe_service, link_address
from msdata.cache.transport.link_server import LinkServer
from msdata.cache.transport.listen import listen_address
from msdata.cache.transport.mpi_transport import WindowReader
from msdata.cache.transport.rendezvous import announce, job_keys, withdraw
from msdata.cache.transport.zmq_transport import ZmqServer, make_keys
from msdata.errors import MsdataError, StorageError

# Memory and SSD bytes of every node, int64 (nodes,) each -> owners.
OwnByCapacities = Callable[[NDArray[np.int64], NDArray[np.int64]], Owners]
# Seconds between checks for other services' requests; requests of the node's ranks need no check.
_TURN_S = 0.001
_TURN_ALONE_S = 0.1
_METRICS_PAUSE_S = 3600.0


@dataclass(frozen=True)
class Offer:
    """The capacities that one node offers.

    Attributes:
        memory_nbytes: shared memory.
        ssd_nbytes: SSD space.
        bound_to: checksum of the owners in an earlier service's arena that ranks still use, or
            None.
    """

    memory_nbytes: int
    ssd_nbytes: int
    bound_to: int | None = None


class Service:
    """Keeps one node's arena; a context manager whose `turn` must be called repeatedly.

    Args:
        group: all services of the job.
        config: sizes and names; `config.job` must be set. With `peers_dir` other nodes' ranks are
            served over ZeroMQ, at `listen`.
        split: the data.
        own: computes the owners of all shards from the capacities of all nodes.
        make_reader: makes a function that reads one record from storage.
        host: with `peers_dir`, name or address under which other nodes reach this one; None takes
            the address at which the service listens.
        is_encrypted: with `peers_dir`, encrypt and authenticate what travels between nodes.

    Attributes:
        node: this node's number; set by `open`, as are `offers` and `path`.
        offers: each node's capacities, by number.
        path: the arena's file.

    Raises:
        UsageError: `listen` does not belong to this machine.
        MissingPackageError: pyzmq is missing.
        StorageError: the folder of the peers is unusable.
    """

    def __init__(
        self,
        group: Group,
        config: CacheConfig,
        split: CachedSplit,
        own: OwnByCapacities,
        make_reader: Callable[[], ReadRecord],
        *,
        host: str | None = None,
        is_encrypted: bool = True,
    ) -> None:
        self._group = group
        self._config = config
        self._split = split
        self._own = own
        self._make_reader = make_reader
        self._client: CacheClient | None = None
        self._link: LinkServer | None = None
        self._area: mmap.mmap | None = None
        self._have_all_filled: Callable[[], bool] | None = None
        self._metrics_due_s = 0.0
        self._server: ZmqServer | None = None
        self._is_encrypted = is_encrypted
        self._peers_name = peers_name(config, split)
        if config.peers_dir is not None:
            self._place, self._told = listen_address(config.listen, host)
            self._keys = job_keys(config.peers_dir, make_keys)
        self.node = 0
        self.offers: tuple[Offer, ...] = ()
        self.path = Path()

    def open(self, host: str | None = None) -> None:
        """Agrees with the other services, makes the arena, starts to fill it and to answer ranks.

        Args:
            host: a name for this machine; None takes its host name.

        Raises:
            StorageError: shared memory, SSD or another process prevented it here.
            EndedElsewhere: another service failed.
        """
        remove_dead_shared_memory()
        group = self._group
        hosts = group.allgather(socket.getfqdn() if host is None else host)
        # In the order of host names, as torchrun numbers nodes (c10d rendezvous).
        ranks = sorted(range(group.size), key=lambda rank: (hosts[rank], rank))
        self.node = ranks.index(group.rank)
        num_here = hosts.count(hosts[group.rank])
        place = self._config.node or (f"n{self.node}" if num_here > 1 else None)
        self._config = replace(self._config, node=served_place(place))
        self.path = arena_path(self._config, self._split, self.node)
        mine = agree(group, lambda: self._offer(num_here))
        offers = group.allgather(astuple(mine))
        self.offers = tuple(Offer(*offers[rank]) for rank in ranks)
        if self.offers[self.node].memory_nbytes != mine.memory_nbytes:
            LOG.warning(
                "this node keeps the %.2f GiB that its service offered to the others before",
                self.offers[self.node].memory_nbytes / GIB,
            )
        owners = self._agree_on_owners(ranks)
        agree(group, lambda: self._open_here(owners))
        reader = self._open_window(ranks, owners)
        if reader is not None:
            agree(group, partial(reader.check, group.rank))
        agree(group, lambda: self._open_link(reader))
        self._open_server()
        self._cache.start()

    def _offer(self, num_here: int) -> Offer:
        """This node's offer: the asked size, the free memory, or an earlier arena's size."""
        config = self._config
        if describe_service(link_address(self.path)) is not None:
            raise StorageError(
                f"another service of job {config.job} runs on this node; end it, or choose another "
                "name by --job"
            )
        found = self._found()
        if found is not None and is_used(self.path):
            header, owners = found
            memory, ssd = header.planned_nbytes
            bound_to = owners_checksum(owners)
            return Offer(memory, ssd, bound_to)
        asked = config.memory_nbytes
        if asked is None and found is not None:
            return Offer(found[0].planned_nbytes[0], config.ssd_nbytes)
        _, most = memory_budget(asked, config.shm_dir)
        if asked is None:
            most //= num_here
        elif most < asked:
            LOG.warning(
                "--memory-gib asks for %.2f GiB, but shared memory and cgroup have %.2f GiB free; "
                "the cache is smaller, the rest comes from storage",
                *(asked / GIB, most / GIB),
            )
        return Offer(most, config.ssd_nbytes)

    def _found(self) -> tuple[Header, Owners] | None:
        """Header and owners of an earlier service's arena; None if it cannot be used."""
        found = arena_of_service(self.path, self._split)
        return found if found is not None and found[0].node == self.node else None

    def _agree_on_owners(self, ranks: Sequence[int]) -> Owners:
        """The owners for all nodes: from arenas still in use, else computed from the offers."""
        bound = [n for n, offer in enumerate(self.offers) if offer.bound_to is not None]
        # What was said through a folder stays there, so the table follows from it for ever.
        if not bound or not self._group.ends_together:
            memory = np.array([o.memory_nbytes for o in self.offers], np.int64)
            ssd = np.array([o.ssd_nbytes for o in self.offers], np.int64)
            return self._own(memory, ssd)
        if len({self.offers[n].bound_to for n in bound}) > 1:
            raise StorageError(self._disagreement)
        found = self._found() if self.node == bound[0] else None
        owners: Owners = self._group.allgather(found and found[1])[ranks[bound[0]]]
        return owners

    @property
    def _disagreement(self) -> str:
        return (
            f"ranks of job {self._config.job} use arenas of earlier services that disagree on the "
            "owners of shards; end those ranks first"
        )

    def _open_here(self, owners: Owners) -> None:
        mine = self.offers[self.node]
        config = replace(
            self._config,
            memory_gib=mine.memory_nbytes / GIB,
            ssd_gib=mine.ssd_nbytes / GIB,
            ssd_dir=self._config.ssd_dir if mine.ssd_nbytes else None,
            peers_dir=None,
        )
        read = self._make_reader()
        self._client = CacheClient(config, self._split, self.node, lambda *_: owners, read)
        if owners_checksum(self._client.owners) != owners_checksum(owners):
            raise StorageError(self._disagreement)

    def _open_window(self, ranks: Sequence[int], owners: Owners) -> WindowReader | None:
        """Opens all nodes' arenas to each other's reads."""
        if not self._group.ends_together:
            return None
        slots = self._slots
        # Network cards refuse memory that is mapped for reading only.
        self._area = mmap.mmap(slots.fd, os.fstat(slots.fd).st_size)
        window = self._group.window(self._area)
        exchange = None
        if any(offer.ssd_nbytes for offer in self.offers):
            exchange = self._group.exchange(self._cache.records)
        return WindowReader(window, ranks, owners, self._split, exchange)

    @property
    def _cache(self) -> CacheClient:
        assert self._client is not None
        return self._client

    @property
    def _slots(self) -> SlotFile:
        return self._cache.tiers[LOCAL].slots

    def _open_link(self, reader: WindowReader | None) -> None:
        def read_nothing(nodes: Any, samples: Any, targets: Any) -> Iterable[NDArray[np.bool_]]:
            yield np.zeros(len(samples), bool)

        read = read_nothing if reader is None else reader.read
        address = link_address(self.path)
        try:
            made = LinkServer(address, self.describe, read)
        except OSError as error:
            raise StorageError(f"another service keeps {self.path} ({error})") from error
        self._link = made

    def _open_server(self) -> None:
        """With a folder, serves this node's records to the ranks of other nodes."""
        folder = self._config.peers_dir
        if folder is None:
            return
        self._server = ZmqServer(
            self._cache.records,
            self._keys,
            self._told,
            listen=self._place,
            is_encrypted=self._is_encrypted,
        )
        announce(folder, self._peers_name, self.node, self._server.address)

    def describe(self) -> dict[str, Any]:
        """This service's description for ranks."""
        peers_dir = self._config.peers_dir
        return {
            "node": self.node,
            "num_nodes": self._group.size,
            "peers_dir": str(peers_dir.resolve() if peers_dir else ""),
            "warmup": self._config.warmup,
            "memory_gib": self.offers[self.node].memory_nbytes / GIB,
            "ssd_gib": self.offers[self.node].ssd_nbytes / GIB,
            "ssd_dir": str(self._config.ssd_dir or ""),
            "is_full": bool(self._have_all_filled and self._have_all_filled()),
            "filled_samples": self._client.filler.num_samples if self._client else 0,
        }

    @property
    def num_filled(self) -> int:
        """Samples in this node's memory."""
        return self._slots.num_ready

    def turn(self) -> bool:
        """Answers ranks and other services; returns False once the job's services must end."""
        assert self._link is not None
        self._link.serve(_TURN_S if self._group.ends_together else _TURN_ALONE_S)
        self._write_metrics()
        if self._have_all_filled is None and self._cache.filler.is_done:
            self._have_all_filled = self._group.begin_barrier()
        return not self._group.poll()

    def stats(self) -> dict[str, Any]:
        """`cache` of `CacheClient.stats`, and with `peers_dir` what this node has `served`."""
        served = {} if self._server is None else self._server.served
        return {**self._cache.stats()["cache"], "served": served}

    def _write_metrics(self) -> None:
        """Writes counters into `config.metrics_dir`, if set, every `METRICS_S` seconds."""
        path = self._metrics_path
        if path is None or time.monotonic() < self._metrics_due_s:
            return
        self._metrics_due_s = time.monotonic() + METRICS_S
        labels = {"run": self._config.job, "split": self._split.name, "node": self.node}
        try:
            stats = self.stats()
            write_metrics(path, service_families(stats, stats["served"], labels))
        except (MsdataError, OSError) as error:
            # Pause for long, so that the warning does not repeat.
            self._metrics_due_s = time.monotonic() + _METRICS_PAUSE_S
            LOG.warning("cannot write counters: %s", error)

    @property
    def _metrics_path(self) -> Path | None:
        names = f"{word(self._config.job or '')}-{word(self._split.name)}"
        folder = self._config.metrics_dir
        return folder and folder / f"msdata-{names}-service{self.node}.prom"

    def close(self) -> None:
        """Leaves the arena, which stays with ranks that use it; other services continue."""
        folder = self._config.peers_dir
        if self._server is not None and folder is not None:
            withdraw(folder, self._peers_name, self.node, self._server.address)
            self._server.close()
        if self._client is not None and self._metrics_path is not None:
            remove_metrics(self._metrics_path)
        if self._link is not None:
            self._link.close()
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
