"""The cache service of one node under MPI, or alone: makes the arena, fills it, asks the others.

The services of a job agree on who owns which shard before the first rank asks. Each service offers
what its node can give; the owners follow from all offers and are stored in every arena. So nodes
may differ, "auto" may find a different size on each, and a rank needs to know only its job.
(`msdata.cache.zmq_service` serves the arenas that ranks make; their owners follow from settings.)
"""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import SERVED, arena_path, peek
from msdata.cache.budget import memory_budget
from msdata.cache.client import LOCAL, CacheClient
from msdata.cache.config import GIB, CacheConfig, CachedSplit, Owners, ReadRecord
from msdata.cache.shared_file import is_used
from msdata.cache.slot_file import Header, SlotFile, owners_checksum
from msdata.cache.stale_shm import remove_dead_shared_memory
from msdata.cache.tier import LOG
from msdata.cache.transport.group import Group, agree
from msdata.cache.transport.link import TIMEOUT_S, describe_service, link_address
from msdata.cache.transport.link_server import LinkServer
from msdata.cache.transport.mpi_transport import WindowReader
from msdata.cache.zmq_service import records_of
from msdata.errors import StorageError

# Memory and SSD bytes of every node, int64 (nodes,) each -> owners.
OwnByCapacities = Callable[[NDArray[np.int64], NDArray[np.int64]], Owners]
# Seconds between checks for other services' requests; requests of the node's ranks need no check.
_TURN_S = 0.001
_TURN_ALONE_S = 0.1
_POLL_S = 0.1
# A service that has ended refuses at once; one that is busy filling may time out a few times.
_MOST_LATE = 5


@dataclass(frozen=True, kw_only=True)
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


class MpiService:
    """Keeps one node's arena; a context manager whose `turn` must be called repeatedly.

    Args:
        group: all services of the job.
        config: sizes and names; `config.job` must be set.
        split: the data.
        own: computes the owners of all shards from the capacities of all nodes.
        make_reader: makes a function that reads one record from storage.

    Attributes:
        node: this node's number; set by `open`, as are `offers` and `path`.
        offers: each node's capacities, by number.
        path: the arena's file.
    """

    def __init__(
        self,
        group: Group,
        config: CacheConfig,
        split: CachedSplit,
        own: OwnByCapacities,
        make_reader: Callable[[], ReadRecord],
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
        offers = group.allgather(agree(group, lambda: self._offer(num_here)))
        self.offers = tuple(offers[rank] for rank in ranks)
        owners = self._agree_on_owners(ranks)
        agree(group, lambda: self._open_here(owners))
        reader = self._open_window(ranks, owners)
        if reader is not None:
            agree(group, partial(reader.check, group.rank))
        agree(group, lambda: self._open_link(reader))
        assert self._client is not None
        self._client.start()

    def _offer(self, num_here: int) -> Offer:
        """This node's offer: the asked size, the free memory, or an earlier arena's size."""
        config = self._config
        if describe_service(link_address(self.path)) is not None:
            raise StorageError(
                f"another service of job {config.job} runs on this node; end it, or choose another "
                "name by --job"
            )
        found = _found(self.path, self._split, self.node)
        if found is not None and is_used(self.path):
            header, owners = found
            memory, ssd = header.planned_nbytes
            bound_to = owners_checksum(owners)
            return Offer(memory_nbytes=memory, ssd_nbytes=ssd, bound_to=bound_to)
        asked = config.memory_nbytes
        if asked is None and found is not None:
            return Offer(memory_nbytes=found[0].planned_nbytes[0], ssd_nbytes=config.ssd_nbytes)
        _, most = memory_budget(asked, config.shm_dir)
        if asked is None:
            most //= num_here
        elif most < asked:
            LOG.warning(
                "--memory-gib asks for %.2f GiB, but shared memory and cgroup have %.2f GiB free; "
                "the cache is smaller, the rest comes from storage",
                *(asked / GIB, most / GIB),
            )
        return Offer(memory_nbytes=most, ssd_nbytes=config.ssd_nbytes)

    def _agree_on_owners(self, ranks: Sequence[int]) -> Owners:
        """The owners for all nodes: from arenas still in use, else computed from the offers."""
        bound = [n for n, offer in enumerate(self.offers) if offer.bound_to is not None]
        if not bound:
            memory = np.array([o.memory_nbytes for o in self.offers], np.int64)
            ssd = np.array([o.ssd_nbytes for o in self.offers], np.int64)
            return self._own(memory, ssd)
        if len({self.offers[n].bound_to for n in bound}) > 1:
            raise StorageError(
                f"ranks of job {self._config.job} use arenas of several earlier services that "
                "disagree on the owners of shards; end those ranks first"
            )
        found = _found(self.path, self._split, self.node) if self.node == bound[0] else None
        owners: Owners = self._group.broadcast(found and found[1], ranks[bound[0]])
        return owners

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

    def _open_window(self, ranks: Sequence[int], owners: Owners) -> WindowReader | None:
        """Opens all nodes' arenas to each other's reads."""
        if self._group.size == 1:
            return None
        slots = self._slots
        # Network cards refuse memory that is mapped for reading only.
        self._area = mmap.mmap(slots.fd, os.fstat(slots.fd).st_size)
        window = self._group.window(self._area)
        exchange = None
        if any(offer.ssd_nbytes for offer in self.offers):
            assert self._client is not None
            exchange = self._group.exchange(partial(records_of, self._client))
        return WindowReader(window, ranks, owners, self._split, exchange)

    @property
    def _slots(self) -> SlotFile:
        assert self._client is not None
        return self._client.tiers[LOCAL].slots

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

    def describe(self) -> dict[str, Any]:
        """This service's description for ranks."""
        return {
            "node": self.node,
            "num_nodes": self._group.size,
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
        assert self._client is not None
        self._link.serve(_TURN_S if self._group.size > 1 else _TURN_ALONE_S)
        if self._have_all_filled is None and self._client.filler.is_done:
            self._have_all_filled = self._group.begin_barrier()
        return not self._group.poll()

    def close(self) -> None:
        """Leaves the arena, which stays with ranks that use it; other services continue."""
        if self._link is not None:
            self._link.close()
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> MpiService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def served_place(place: str | None) -> str:
    """The node's part of the name of a service's arena.

    Args:
        place: names a simulated node on a shared machine; None on a real node.
    """
    return SERVED if place is None else f"{SERVED}.{place}"


def _found(path: Path, split: CachedSplit, node: int) -> tuple[Header, Owners] | None:
    """Header and owners of an earlier service's arena; None if it cannot be used."""

    def look(header: Header, slots: SlotFile) -> tuple[Header, Owners] | None:
        is_same = header.is_of(split) and header.node == node
        return (header, slots.owners) if is_same else None

    return peek(path, look)


def find_service(config: CacheConfig, split: CachedSplit, node: int) -> ServedArena | None:
    """Finds the service that keeps this node's arena; None if none answers.

    Args:
        config: names; `config.job` must be set.
        split: the data.
        node: this node's number in the ranks' launcher, which distinguishes simulated nodes.
    """
    places = [config.node] if config.node is not None else [None, f"n{node}"]
    for place in map(served_place, places):
        path = arena_path(replace(config, node=place), split, node)
        found = describe_service(link_address(path))
        if found is not None:
            return ServedArena(path=path, place=place, service=found)
    return None


@dataclass(frozen=True, kw_only=True)
class ServedArena:
    """An arena that a service keeps.

    Attributes:
        path: the arena's file.
        place: the value of `CacheConfig.node` that joins it.
        service: the result of `MpiService.describe`.
    """

    path: Path
    place: str
    service: dict[str, Any]

    def is_served(self) -> bool:
        """Whether its service still answers."""
        return describe_service(link_address(self.path)) is not None

    def wait_until_staged(self) -> None:
        """With a blocking warmup, waits until all nodes are full or this node's service ends."""
        found: dict[str, Any] | None = self.service
        num_late = 0
        while num_late < _MOST_LATE and (
            found is None or (found["warmup"] == "blocking" and not found["is_full"])
        ):
            time.sleep(_POLL_S)
            asked_s = time.monotonic()
            found = describe_service(link_address(self.path))
            is_late = time.monotonic() - asked_s >= TIMEOUT_S
            if found is None and not is_late:
                return
            num_late = num_late + 1 if found is None else 0

    def config(self, asked: CacheConfig) -> CacheConfig:
        """The configuration with which a rank joins the arena."""
        ssd_gib, ssd_dir = self.service["ssd_gib"], self.service["ssd_dir"]
        return replace(
            asked,
            node=self.place,
            memory_gib=self.service["memory_gib"],
            ssd_gib=ssd_gib,
            ssd_dir=Path(ssd_dir) if ssd_gib else None,
            warmup=self.service["warmup"],
        )
