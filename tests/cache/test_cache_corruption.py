"""A record that is known to be corrupt is never handed out, by no tier, and without `verify`."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import caching
import numpy as np
import packing
import pytest

import msdata
from msdata.cache.arena import peers_name
from msdata.cache.client import LOCAL, SSD
from msdata.cache.config import CacheConfig, CachedSplit
from msdata.cache.split import cached_split, record_reader
from msdata.cache.transport.link import LinkFetcher
from msdata.cache.transport.link_server import LinkServer
from msdata.cache.transport.rendezvous import announce, job_keys
from msdata.cache.transport.zmq_transport import ZmqServer, make_keys
from msdata.dataset.dataset import Split
from msdata.errors import DataError
from msdata.loader.read import SampleReader
from msdata.topology import Topology

TWO_NODES = Topology(num_nodes=2, ranks_per_node=1, rank=0)


@pytest.fixture(params=caching.LAYOUTS)
def data(
    request: Any, packed: Callable[..., Path], tiny_source: Path, tmp_path: Path
) -> Iterator[Path]:
    """A data set that the test may alter."""
    made = packed(tiny_source, *packing.TINY_SHARDS, *request.param.split())
    yield Path(shutil.copytree(made, tmp_path / "data"))


@pytest.fixture(params=[1, 4])
def threads(request: Any) -> int:
    return int(request.param)


def make(split: Split, cache: Any, **options: Any) -> msdata.Loader:
    return msdata.Loader(split, caching.BATCH, cache=cache, verify=False, **options)


def train(data: Path) -> Split:
    return msdata.open(data).split("train")


def alter_in_storage(split: Split, samples: list[int]) -> None:
    """Flips a byte of each sample's record in its shard."""
    numbers = np.array(samples)
    offsets, shards = split.spans.offsets(numbers)[:, 0], split.spans.shards(numbers)
    for offset, shard in zip(offsets.tolist(), shards.tolist(), strict=True):
        with split.shard_paths[shard].open("r+b") as file:
            file.seek(offset + 3)
            found = file.read(1)[0]
            file.seek(offset + 3)
            file.write(bytes([found ^ 0x20]))


def hand_out(loader: msdata.Loader, expected: dict[str, int], num_epochs: int = 1) -> int:
    """Checks every sample that is handed out; how many there were."""
    count = 0
    for _ in range(num_epochs):
        for batch in loader:
            found = caching.digest_of(batch)
            assert {k: expected[k] for k in found} == found
            count += len(found)
    return count


def fail_once(monkeypatch: pytest.MonkeyPatch, split: Split, samples: set[int]) -> None:
    """Has the storage give these samples wrong when they are read for the first time."""
    left, lock, fill = set(samples), threading.Lock(), SampleReader.fill

    def wrong_once(self: SampleReader, filling: Any, start: int, stop: int) -> None:
        fill(self, filling, start, stop)
        for i in range(start, stop):
            with lock:
                is_first = int(filling.samples[i]) in left
                left.discard(int(filling.samples[i]))
            if is_first:
                filling.buffer.parts(i)[0][:1] += 1

    monkeypatch.setattr(SampleReader, "fill", wrong_once)


@pytest.mark.parametrize("warmup", ["background", "blocking"])
def test_what_is_corrupt_in_storage_is_an_error_in_the_first_epoch_already(
    data: Path, tmp_path: Path, threads: int, warmup: str
) -> None:
    split = train(data)
    expected = caching.digests(split)
    alter_in_storage(split, [3, 20, 21, len(split) - 1])
    with make(split, caching.config(tmp_path, warmup=warmup), threads=threads) as loader:
        for _ in range(3):
            with pytest.raises(DataError, match="is corrupt: CRC32C"):
                hand_out(loader, expected)
        assert loader.stats()["cache"]["local"]["refused"] >= 1


@pytest.mark.usefixtures("no_filler")
def test_what_storage_gave_wrong_once_is_read_again_and_cached(
    data: Path, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = train(data)
    expected = caching.digests(split)
    fail_once(monkeypatch, split, {0, 1, 7, 100, len(split) - 1})
    with make(split, caching.config(tmp_path), threads=threads) as loader:
        assert hand_out(loader, expected, 2) == 2 * len(split)
        assert loader.stats()["cache"]["local"]["refused"] == 5
        assert loader.stats()["cache"]["local"]["filled"] == len(split)


@pytest.fixture
def no_filler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msdata.cache.filler.Filler._fill_all", lambda self: None)


def filled_ssd(split: Split, tmp_path: Path, altered: list[int]) -> CacheConfig:
    """A cache that is an SSD tier alone, filled, with some samples altered on it."""
    config = caching.config(tmp_path, memory_gib=0.0, ssd_dir=tmp_path / "ssd", ssd_gib=1.0)
    with make(split, config) as loader:
        assert loader._cache.client is not None
        loader._cache.client.filler.wait()
        slots = loader._cache.client.tiers[SSD].slots
        assert slots.num_ready == len(split)
        for sample in altered:
            shard = split.spans.shards(np.array([sample]))
            slot = int(slots.slots(np.array([sample]), shard)[0])
            os.pwrite(slots.fd, b"rotten", slots.record_at(slot) + 7)
    return config


def test_what_is_corrupt_on_the_ssd_comes_from_storage_or_is_an_error(
    data: Path, tmp_path: Path, threads: int
) -> None:
    split = train(data)
    expected = caching.digests(split)
    config = filled_ssd(split, tmp_path, [4, 5, 90])
    with make(split, config, threads=threads) as loader:
        assert hand_out(loader, expected) == len(split)
        assert loader.stats()["cache"]["ssd"]["corrupt"] == 3
    config = filled_ssd(split, tmp_path, [4, 5, 90])
    alter_in_storage(split, [5])
    with (
        make(split, config, threads=threads) as loader,
        pytest.raises(DataError, match="is corrupt: CRC32C"),
    ):
        hand_out(loader, expected)


class Peers:
    """Node 1, which gives the records of a split, some of them altered; over either transport."""

    def __init__(self, split: Split, altered: set[int], config: CacheConfig) -> None:
        self.cached: CachedSplit = cached_split(split)
        self._read = record_reader(split)
        self._altered = altered
        self._config = config
        self._ends = ExitStack()

    def records(self, samples: Any) -> list[Any]:
        found = []
        for sample in samples.tolist():
            record = self._read(sample).copy()
            record[5] ^= 0x40 if sample in self._altered else 0
            found.append(record)
        return found

    def serve_zmq(self, *, is_encrypted: bool) -> None:
        folder = self._config.peers_dir
        assert folder is not None
        keys = job_keys(folder, make_keys)
        server = ZmqServer(self.records, keys, "127.0.0.1", is_encrypted=is_encrypted)
        self._ends.callback(server.close)
        announce(folder, peers_name(self._config, self.cached), 1, server.address)

    def serve_link(self, address: str) -> None:
        """As the service of a node does that reads its peers over MPI, into a staging area."""

        def read(nodes: Any, samples: Any, targets: Any) -> Iterator[Any]:
            for record, target in zip(self.records(samples), targets, strict=True):
                target[:] = record
                yield np.ones(1, bool)

        server = LinkServer(address, dict, read)
        is_over = threading.Event()

        def serve() -> None:
            while not is_over.is_set():
                server.serve(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        self._ends.callback(server.close)
        self._ends.callback(thread.join)
        self._ends.callback(is_over.set)

    def close(self) -> None:
        self._ends.close()


@pytest.mark.parametrize("transport", ["plain", "encrypted", "staging"])
def test_what_is_corrupt_at_a_peer_comes_from_storage_or_is_an_error(
    data: Path, tmp_path: Path, threads: int, transport: str
) -> None:
    split = train(data)
    expected = caching.digests(split)
    (folder := tmp_path / "peers").mkdir(mode=0o700)
    config = caching.config(
        tmp_path,
        memory_gib=caching.gib_of(split, 0.5),
        peers_dir=folder,
        service_wait_s=0.0,
    )
    peers = Peers(split, set(range(0, len(split), 3)), config)
    address = f"\0msdata-test-{os.getpid()}-{tmp_path.name}"
    if transport == "staging":
        peers.serve_link(address)
    else:
        peers.serve_zmq(is_encrypted=transport == "encrypted")
    try:
        with make(split, config, threads=threads, topology=TWO_NODES, remainder="short") as loader:
            client = loader._cache.client
            assert client is not None
            if transport == "staging":
                assert client._peers is not None
                client._peers.close()
                client._peers = LinkFetcher(address, split.schema.sample_nbytes)
            hand_out(loader, expected, 3)
            assert loader.stats()["cache"]["peers"]["failures"] == 0
            assert loader.stats()["cache"]["peers"]["corrupt"] > 0
            assert loader.stats()["totals"]["peer"]["samples"] > 0
            owned = np.isin(split.spans.shards(np.arange(len(split))), _shards_of(loader, 1))
            alter_in_storage(split, np.flatnonzero(owned)[::3].tolist())
            with pytest.raises(DataError, match="is corrupt: CRC32C"):
                hand_out(loader, expected, 3)
    finally:
        peers.close()


def _shards_of(loader: msdata.Loader, node: int) -> Any:
    assert loader.cache_owners is not None
    return np.flatnonzero(loader.cache_owners[0] == node)


def test_a_checked_loader_reads_what_is_corrupt_in_memory_again_or_fails(
    data: Path, tmp_path: Path, threads: int
) -> None:
    split = train(data)
    expected = caching.digests(split)
    with msdata.Loader(
        split, caching.BATCH, cache=caching.config(tmp_path), verify=True, threads=threads
    ) as loader:
        assert loader._cache.client is not None
        loader._cache.client.filler.wait()
        slots = loader._cache.client.tiers[LOCAL].slots
        os.pwrite(slots.fd, b"rotten", slots.record_at(9) + 11)
        assert hand_out(loader, expected) == len(split)
        os.pwrite(slots.fd, b"rotten", slots.record_at(9) + 11)
        alter_in_storage(split, list(range(len(split))))
        with pytest.raises(DataError, match="is corrupt: CRC32C"):
            hand_out(loader, expected)
