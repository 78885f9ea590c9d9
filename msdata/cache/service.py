"""One process a node that keeps its arenas, fills them, and serves them to other nodes.

It makes no arena itself: it joins those that the job's ranks on this node make, whose numbers of
nodes are the ranks' own. (torchrun numbers nodes as they arrive, not as Slurm does.) From then on
it is one of the arena's users, so the arena outlives the ranks, and a restarted rank finds it full.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from msdata.cache.arena import arena_path
from msdata.cache.client import LOCAL, SSD, CacheClient
from msdata.cache.config import GIB, CacheConfig, CachedSplit, ReadRecord
from msdata.cache.rendezvous import announce, job_keys, withdraw
from msdata.cache.slot_file import read_header
from msdata.cache.tier import LOG
from msdata.cache.zmq_transport import ZmqServer, make_keys
from msdata.errors import MsdataError, UsageError


@dataclass
class _Served:
    """An arena that is served."""

    client: CacheClient
    server: ZmqServer
    node: int
    inode: int


class NodeService:
    """Serves all arenas of one job and split on this node; a context manager.

    Args:
        config: `job`, `peers_dir`, `shm_dir` and `ssd_dir` count; sizes are the arenas'.
        split: the data.
        make_reader: gives a function that reads one record from storage.
        host: name or address under which other nodes reach this one; None takes its name.

    Raises:
        UsageError: there is no `peers_dir`.
        MissingPackageError: pyzmq is absent.
        StorageError: the folder of the peers cannot be used.
    """

    def __init__(
        self,
        config: CacheConfig,
        split: CachedSplit,
        make_reader: Callable[[], ReadRecord],
        host: str | None = None,
    ) -> None:
        if config.peers_dir is None:
            raise UsageError("a service needs a folder that all nodes see, to be found by them")
        self._config = config
        self._folder = config.peers_dir
        self._split = split
        self._make_reader = make_reader
        self._host = host
        self._keys = job_keys(self._folder, make_keys)
        self._served: dict[Path, _Served] = {}

    def look(self) -> None:
        """Joins arenas that have appeared and leaves those whose name is gone."""
        example = arena_path(self._config, self._split, 0)
        of_any_node = example.name.rpartition("-")[0] + "-*"
        found = {p: _inode(p) for p in example.parent.glob(of_any_node)}
        for path, served in list(self._served.items()):
            if found.get(path) != served.inode:
                self._leave(path)
        for path in found.keys() - self._served.keys():
            try:
                self._join(path)
            except (MsdataError, OSError) as error:
                LOG.warning("%s is not served: %s", path, error)

    def _join(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            header = read_header(fd)
        finally:
            os.close(fd)
        if header is None:
            # Being made at the moment; the next look finds it.
            return
        place = path.name.rpartition("-")[2]
        ssd_gib = header.planned_nbytes[1] / GIB if self._config.ssd_dir else 0.0
        config = replace(
            self._config,
            node=None if place == f"n{header.node}" else place,
            ssd_dir=self._config.ssd_dir if ssd_gib else None,
            ssd_gib=ssd_gib,
            peers_dir=None,
        )
        client = CacheClient(config, self._split, header.node, None, self._make_reader())
        inode = os.fstat(client.tiers[LOCAL].slots.fd).st_ino
        server = ZmqServer(lambda sample: record_of(client, sample), self._keys, self._host)
        self._served[path] = _Served(client, server, header.node, inode)
        client.start()
        announce(self._folder, self._split.label, header.node, server.address)

    def _leave(self, path: Path) -> None:
        served = self._served.pop(path)
        withdraw(self._folder, self._split.label, served.node, served.server.address)
        served.server.close()
        served.client.close()

    def stats(self) -> dict[int, dict[str, Any]]:
        """What `CacheClient.stats` says of the cache, by number of node."""
        return {s.node: s.client.stats()["cache"] for s in self._served.values()}

    def close(self) -> None:
        """Leaves all arenas."""
        for path in list(self._served):
            self._leave(path)

    def __enter__(self) -> NodeService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def record_of(client: CacheClient, sample: int) -> Any | None:
    """A record that this node has at the moment, from memory or SSD.

    Args:
        client: of the node's cache.
        sample: number within the split; one that is none gives None.
    """
    if not 0 <= sample < client.num_samples:
        return None
    places = client.locate(np.array([sample]))
    source, slot = int(places.source[0]), int(places.slots[0])
    if source == LOCAL:
        return client.tiers[LOCAL].slots.record(slot)
    if source == SSD:
        slots = client.tiers[SSD].slots
        try:
            return os.pread(slots.fd, slots.header.sample_nbytes, slots.record_at(slot))
        except OSError:
            return None
    return None


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
