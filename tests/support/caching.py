"""What the tests of the cache share: data sets, configurations, ranks as processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import packing

import msdata
from msdata.cache.arena import peers_name
from msdata.cache.config import GIB, CacheConfig
from msdata.cache.service import Service
from msdata.cache.split import cached_split, owners_of_nodes, record_reader
from msdata.cache.transport.rendezvous import FolderGroup
from msdata.dataset.dataset import Split
from msdata.plan.forecast import EpochForecast, Job, forecast_epoch, own_job
from msdata.plan.ownership import equal_nodes
from msdata.topology import Topology

BATCH = 8
# Options of `msdata pack`: records of one length, and of their own.
CODED = "--quantize 4 --compress lz4"
LAYOUTS = ("--format tar", "--format hdf5", CODED)


def split_nbytes(split: Split) -> int:
    """Bytes of all records."""
    return int(split.record_nbytes.sum())


def gib_of(split: Split, share: float) -> float:
    """GiB that hold a share of a split."""
    return share * split_nbytes(split) / GIB


def config(tmp_path: Path, **options: Any) -> CacheConfig:
    """A configuration whose shared memory is a folder of the test."""
    folder = tmp_path / "shm"
    folder.mkdir(exist_ok=True)
    return CacheConfig(**{"shm_dir": folder, "job": "test", **options})


def copies(loader: msdata.Loader) -> list[dict[str, Any]]:
    """The batches of an epoch, copied."""
    return [{name: np.array(column) for name, column in batch.items()} for batch in loader]


def assert_same_batches(
    found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]
) -> None:
    """Two epochs are equal, batch by batch and byte by byte."""
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].tobytes() == right[name].tobytes(), name


def digest_of(batch: dict[str, Any]) -> dict[str, int]:
    """A checksum of all arrays of each sample, by its id."""
    names = [n for n in batch if n != "sample_id"]
    return {
        str(sample): zlib.crc32(b"".join(np.asarray(batch[n][i]).tobytes() for n in names))
        for i, sample in enumerate(batch["sample_id"])
    }


def digests(split: Split) -> dict[str, int]:
    """`digest_of` all samples, read without a cache."""
    with msdata.Loader(split, BATCH) as loader:
        found = merged([{"digests": digest_of(batch)} for batch in loader])
    assert len(found) == len(split)
    return found


def forecast(
    split: Split, policy: str, memory_nbytes: int, topology: Topology, epoch: int
) -> EpochForecast:
    """What `msdata plan` says of an epoch of the ranks below."""
    job = Job(
        topology=topology,
        nodes=equal_nodes(topology.num_nodes, memory_bytes=memory_nbytes),
        shard_sizes=split.shard_sizes,
        sample_bytes=split.record_nbytes,
        batch_per_rank=BATCH,
        policy=policy,
        last="short",
    )
    return forecast_epoch(job, own_job(job), epoch)


# Processes that have ended their job and wait for another: starting one costs a second.
_idle: list[subprocess.Popen[str]] = []


def start_process(prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A process that runs ranks, one after the other; see `cached_rank.py`.

    `prefix` is a command that starts another one, such as `ip netns exec NAME`.
    """
    return subprocess.Popen(
        [*prefix, sys.executable, str(Path(__file__).with_name("cached_rank.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=packing.environment(),
    )


def end_idle_processes() -> list[int]:
    """Ends them; returns their exit codes."""
    codes = []
    while _idle:
        process = _idle.pop()
        process.communicate(timeout=60)
        codes.append(process.returncode)
    return codes


class Rank:
    """A rank as a process of its own."""

    def __init__(
        self,
        data: Path,
        topology: Topology,
        cache: CacheConfig,
        *,
        prefix: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self._prefix = prefix
        self.has_ended = False
        order = {"data": str(data), "topology": asdict(topology), "cache": asdict(cache), **options}
        self.process = _idle.pop() if _idle and not prefix else start_process(prefix)
        self._send(json.dumps(order, default=str))

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """What the rank says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the rank ended with code {self.process.wait(10)}"
        found: dict[str, Any] = json.loads(line)
        return found

    def start_epoch(self) -> None:
        """Lets it run its next epoch."""
        self._send("epoch")

    def end_epoch(self) -> dict[str, Any]:
        """Its steps and counters, after the epoch."""
        digests: dict[str, int] = {}
        steps = 0
        while "stats" not in (said := self.read()):
            assert not digests.keys() & said["digests"].keys()
            digests |= said["digests"]
            steps += 1
        return {"digests": digests, "steps": steps, **said}

    def kill(self) -> None:
        """Ends its process by SIGKILL."""
        self.has_ended = True
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        """Has it close its loader."""
        self._send("end")
        assert self.read() == {"closed": True}
        self.has_ended = True
        if self._prefix:
            self.process.communicate(timeout=60)
            assert self.process.returncode == 0
        else:
            _idle.append(self.process)


def start_ranks(
    data: Path, cache: CacheConfig, num_nodes: int, ranks_per_node: int, **options: Any
) -> list[Rank]:
    """All ranks of a job."""
    return [
        Rank(
            data,
            Topology(num_nodes=num_nodes, ranks_per_node=ranks_per_node, rank=rank),
            cache,
            **options,
        )
        for rank in range(num_nodes * ranks_per_node)
    ]


def run_epoch(ranks: Sequence[Rank]) -> list[dict[str, Any]]:
    """One epoch of all ranks at once."""
    for rank in ranks:
        rank.start_epoch()
    return [rank.end_epoch() for rank in ranks]


def merged(results: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Digests of all ranks; no sample came to two of them."""
    found: dict[str, int] = {}
    for result in results:
        assert not found.keys() & result["digests"].keys()
        found |= result["digests"]
    return found


def names_in(folder: Path) -> Iterator[str]:
    """Arenas that are there."""
    return (path.name for path in sorted(folder.glob("msdata-*")))


class PeerService:
    """A node's service over ZeroMQ, in a thread of this process.

    Args:
        split: the data.
        config: sizes and names; `peers_dir` must be set.
        node: its number.
        num_nodes: number of services, with which it agrees.
        options: further ones of `Service`.
    """

    def __init__(
        self, split: Split, config: CacheConfig, node: int, num_nodes: int, **options: Any
    ) -> None:
        cached = cached_split(split)
        assert config.peers_dir is not None
        name = f"node{node}"
        group = FolderGroup(config.peers_dir, peers_name(config, cached), name, num_nodes)
        own, make_reader = partial(owners_of_nodes, cached), partial(record_reader, split)
        options = {"host": "127.0.0.1", **options}
        self.service = Service(group, config, cached, own, make_reader, **options)
        self.error: BaseException | None = None
        self._stop, self._is_open = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(name,))
        self._thread.start()

    def _run(self, name: str) -> None:
        try:
            self.service.open(name)
            self._is_open.set()
            while not self._stop.is_set():
                self.service.turn()
        except BaseException as error:
            self.error = error
        finally:
            self._is_open.set()

    def wait(self) -> PeerService:
        """Waits until it has agreed with the others and answers."""
        self._is_open.wait(60)
        assert self.error is None, self.error
        return self

    def close(self) -> None:
        """Ends it, once."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self.service.close()


def start_services(split: Split, configs: Sequence[CacheConfig]) -> list[PeerService]:
    """A service for each node, which have agreed."""
    made = [PeerService(split, c, node, len(configs)) for node, c in enumerate(configs)]
    return [service.wait() for service in made]
