"""The cache service of one node over ZeroMQ: fills the ranks' arenas, serves them to other nodes.

This service makes no arena: it joins those that the job's ranks make on this node, and takes the
node's number from them. (torchrun numbers nodes as they arrive, not as Slurm does.) From then on it
is one of the arena's users, so the arena outlives the ranks, and a restarted rank finds it full.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.arena import arena_path, word
from msdata.cache.client import LOCAL, SSD, STORAGE, CacheClient
from msdata.cache.config import GIB, CacheConfig, CachedSplit, ReadRecord
from msdata.cache.metrics import METRICS_S, remove_metrics, service_families, write_metrics
from msdata.cache.own_file import open_own
from msdata.cache.slot_file import read_header
from msdata.cache.tier import LOG
from msdata.cache.transport.listen import listen_address
from msdata.cache.transport.rendezvous import announce, job_keys, withdraw
from msdata.cache.transport.zmq_transport import ZmqServer, make_keys
from msdata.errors import MsdataError, UsageError

_METRICS_PAUSE_S = 3600.0


@dataclass
class _Served:
    """An arena that this service serves."""

    client: CacheClient
    server: ZmqServer
    node: int
    inode: int


class ZmqService:
    """Serves all arenas of one job and split on this node; a context manager.

    Args:
        config: `job`, `peers_dir`, `listen`, `shm_dir`, `ssd_dir` and `metrics_dir` count; sizes
            come from the arenas.
        split: the data.
        make_reader: makes a function that reads one record from storage.
        host: name or address under which other nodes reach this one; None takes the address at
            which it listens.
        is_encrypted: encrypt and authenticate what travels between nodes.

    Raises:
        UsageError: `peers_dir` is missing, or `listen` does not belong to this machine.
        MissingPackageError: pyzmq is missing.
        StorageError: the folder of the peers is unusable.
    """

    def __init__(
        self,
        config: CacheConfig,
        split: CachedSplit,
        make_reader: Callable[[], ReadRecord],
        host: str | None = None,
        *,
        is_encrypted: bool = True,
    ) -> None:
        if config.peers_dir is None:
            raise UsageError("a service needs peers_dir, a folder that all nodes see")
        self._config = config
        self._folder = config.peers_dir
        self._split = split
        self._make_reader = make_reader
        self._place, self._told = listen_address(config.listen, host)
        self._is_encrypted = is_encrypted
        self._keys = job_keys(self._folder, make_keys)
        self._served: dict[Path, _Served] = {}
        self._refused: dict[Path, str] = {}
        self._metrics_due_s = 0.0

    def look(self) -> None:
        """Joins new arenas and leaves those whose name is gone."""
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
                is_news = self._refused.get(path) != str(error)
                LOG.log(
                    logging.WARNING if is_news else logging.DEBUG,
                    "cannot serve %s: %s; retrying every second",
                    *(path, error),
                )
                self._refused[path] = str(error)

    def _join(self, path: Path) -> None:
        fd = open_own(path, os.O_RDONLY)
        try:
            header = read_header(fd)
        finally:
            os.close(fd)
        if header is None:
            # A rank is still making it; the next look finds it.
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
        server = ZmqServer(
            partial(records_of, client),
            self._keys,
            self._told,
            listen=self._place,
            is_encrypted=self._is_encrypted,
        )
        self._served[path] = _Served(client, server, header.node, inode)
        try:
            announce(self._folder, self._split.label, header.node, server.address)
        except MsdataError:
            # Without an announcement no rank finds this server; the next look tries again.
            self._leave(path)
            raise
        client.start()

    def _leave(self, path: Path) -> None:
        served = self._served.pop(path)
        withdraw(self._folder, self._split.label, served.node, served.server.address)
        served.server.close()
        served.client.close()
        if self._config.metrics_dir is not None:
            remove_metrics(self._metrics_path(self._config.metrics_dir, served.node))

    def stats(self) -> dict[int, dict[str, Any]]:
        """By node number: `cache` of `CacheClient.stats`, and `served`."""
        return {
            s.node: {**s.client.stats()["cache"], "served": s.server.served}
            for s in self._served.values()
        }

    def write_metrics(self) -> None:
        """Writes counters into `config.metrics_dir`, if set, every `METRICS_S` seconds."""
        folder = self._config.metrics_dir
        if folder is None or time.monotonic() < self._metrics_due_s:
            return
        self._metrics_due_s = time.monotonic() + METRICS_S
        try:
            for node, stats in self.stats().items():
                labels = {"run": self._config.job, "split": self._split.name, "node": node}
                write_metrics(
                    self._metrics_path(folder, node),
                    service_families(stats, stats["served"], labels),
                )
        except (MsdataError, OSError) as error:
            # Pause for long, so that the warning does not repeat.
            self._metrics_due_s = time.monotonic() + _METRICS_PAUSE_S
            LOG.warning("cannot write counters: %s", error)

    def _metrics_path(self, folder: Path, node: int) -> Path:
        names = f"{word(self._config.job or '')}-{word(self._split.name)}"
        return folder / f"msdata-{names}-service{node}.prom"

    def close(self) -> None:
        """Leaves all arenas."""
        for path in list(self._served):
            self._leave(path)

    def __enter__(self) -> ZmqService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def records_of(client: CacheClient, samples: NDArray[np.int64]) -> list[Any | None]:
    """The records that this node has now, from memory or SSD.

    Args:
        client: the client of the node's cache.
        samples: int64 (n,), numbers within the split; numbers out of range give None.
    """
    is_one = (samples >= 0) & (samples < client.num_samples)
    places = client.locate(np.where(is_one, samples, 0))
    source = np.where(is_one, places.source, STORAGE)
    return [
        _record(client, where, slot)
        for where, slot in zip(source.tolist(), places.slots.tolist(), strict=True)
    ]


def _record(client: CacheClient, source: int, slot: int) -> Any | None:
    if source == LOCAL:
        return client.tiers[LOCAL].slots.record(slot)
    if source == SSD:
        try:
            return client.tiers[SSD].slots.read_record(slot)
        except OSError:
            return None
    return None


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None
