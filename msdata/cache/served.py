"""A rank's side of its node's cache service: finds the arena that the service keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msdata.cache.arena import SERVED, arena_path, peek
from msdata.cache.config import GIB, CacheConfig, CachedSplit, Owners
from msdata.cache.slot_file import Header
from msdata.cache.transport.link import describe_service, link_address
from msdata.cache.transport.peer_links import TIMEOUT_S
from msdata.topology import Topology

_POLL_S = 0.1
# Services and ranks are started at the same time; the former are ready within seconds.
_SERVICE_WAIT_S = 20.0
# A service that has ended refuses at once; one that is busy filling may time out a few times.
_MOST_LATE = 5


def served_place(place: str | None) -> str:
    """The node's part of the name of a service's arena.

    Args:
        place: names a simulated node on a shared machine; None on a real node.
    """
    return SERVED if place is None else f"{SERVED}.{place}"


def find_served(config: CacheConfig, split: CachedSplit, topology: Topology) -> ServedArena | None:
    """Finds the arena that this node's service keeps, waiting for the service; None without one.

    With `config.peers_dir` an arena is used also while its service is gone.

    Args:
        config: names; `config.job` must be set.
        split: the data.
        topology: nodes, and this rank's.
    """
    if config.memory_nbytes is not None and config.peers_dir is None:
        # The caller makes an arena of this size.
        return None
    wait_s = config.service_wait_s
    if wait_s is None:
        wait_s = _SERVICE_WAIT_S if topology.num_nodes > 1 else 0.0
    deadline_s = time.monotonic() + wait_s
    while (found := find_service(config, split, topology.node)) is None:
        if time.monotonic() >= deadline_s:
            return _left_by_service(config, split, topology) if config.peers_dir else None
        time.sleep(_POLL_S)
    return found


def _left_by_service(
    config: CacheConfig, split: CachedSplit, topology: Topology
) -> ServedArena | None:
    for place, path in _places(config, split, topology.node):
        found = arena_of_service(path, split)
        if found is not None:
            header, owners = found
            memory_nbytes, ssd_nbytes = header.planned_nbytes
            service = {
                "node": header.node,
                "num_nodes": max(topology.num_nodes, 1 + int(owners[0].max(initial=0))),
                "peers_dir": str(config.peers_dir),
                "warmup": config.warmup,
                "is_full": True,
                "memory_gib": memory_nbytes / GIB,
                "ssd_gib": ssd_nbytes / GIB if config.ssd_dir else 0.0,
                "ssd_dir": str(config.ssd_dir or ""),
            }
            return ServedArena(path=path, place=place, service=service)
    return None


def find_service(config: CacheConfig, split: CachedSplit, node: int) -> ServedArena | None:
    """Finds the service that keeps this node's arena; None if none answers.

    Args:
        config: names; `config.job` must be set.
        split: the data.
        node: this node's number in the ranks' launcher, which distinguishes simulated nodes.
    """
    for place, path in _places(config, split, node):
        found = describe_service(link_address(path))
        if found is not None:
            return ServedArena(path=path, place=place, service=found)
    return None


def _places(config: CacheConfig, split: CachedSplit, node: int) -> Iterator[tuple[str, Path]]:
    """Where a service of this node may keep its arena."""
    for name in [config.node] if config.node is not None else [None, f"n{node}"]:
        place = served_place(name)
        yield place, arena_path(replace(config, node=place), split, node)


@dataclass(frozen=True, kw_only=True)
class ServedArena:
    """An arena that a service keeps.

    Attributes:
        path: the arena's file.
        place: the value of `CacheConfig.node` that joins it.
        service: the result of `Service.describe`.
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
        peers_dir = self.service.get("peers_dir")
        return replace(
            asked,
            node=self.place,
            memory_gib=self.service["memory_gib"],
            ssd_gib=ssd_gib,
            ssd_dir=Path(ssd_dir) if ssd_gib else None,
            warmup=self.service["warmup"],
            peers_dir=Path(peers_dir) if peers_dir else None,
        )


def arena_of_service(path: Path, split: CachedSplit) -> tuple[Header, Owners] | None:
    """Header and owners of the arena that a service made; None if there is none of this split.

    Args:
        path: the arena.
        split: the data.
    """
    return peek(path, lambda s: (s.header, s.owners) if s.header.is_of(split) else None)
