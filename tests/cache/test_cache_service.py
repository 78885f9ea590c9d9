"""Nodes that serve each other: simulated ones on this machine, with an arena and a service each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import caching
import numpy as np
import packing
import pytest

import msdata
import msdata.loader.node_cache
from msdata.cache.client import LOCAL
from msdata.cache.config import CacheConfig
from msdata.cache.split import cached_split, record_reader
from msdata.cache.zmq_service import ZmqService
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from msdata.plan.ownership import equal_nodes, own_shards
from msdata.topology import Topology

NODES = 3


@pytest.fixture
def split(packed: Callable[..., Path], tiny_source: Path) -> Split:
    data = packed(tiny_source, *packing.TINY_SHARDS, *caching.CODED.split())
    return msdata.open(data).split("train")


class Cluster:
    """Simulated nodes of one rank each, all in this process, with a service each."""

    def __init__(self, split: Split, tmp_path: Path, share: float, policy: str) -> None:
        self.split = split
        self.configs = []
        for node in range(NODES):
            folder = tmp_path / f"shm{node}"
            folder.mkdir()
            self.configs.append(
                CacheConfig(
                    memory_gib=caching.gib_of(split, share / NODES),
                    job="test",
                    shm_dir=folder,
                    peers_dir=tmp_path / "job",
                    warmup="blocking",
                )
            )
        self.policy = policy
        self.loaders = [self.loader(node) for node in range(NODES)]
        self.services = [self.service(config) for config in self.configs]

    def loader(self, node: int) -> msdata.Loader:
        return msdata.Loader(
            self.split,
            caching.BATCH,
            policy=self.policy,
            topology=Topology(num_nodes=NODES, ranks_per_node=1, rank=node),
            cache=self.configs[node],
            threads=1,
        )

    def service(self, config: CacheConfig) -> ZmqService:
        service = ZmqService(
            replace(config, memory_gib=None),
            cached_split(self.split),
            lambda: record_reader(self.split),
            "127.0.0.1",
        )
        service.look()
        return service

    def epoch(self) -> tuple[dict[str, int], list[dict[str, int]]]:
        """Digests of all samples, and samples by tier of each node."""
        for loader in self.loaders:
            loader._cache.client.filler.wait()
        found: dict[str, int] = {}
        for loader in self.loaders:
            for batch in loader:
                digests = caching.digest_of(batch)
                assert not found.keys() & digests.keys()
                found |= digests
        tiers = [loader.stats()["tiers"] for loader in self.loaders]
        return found, [{n: c["samples"] for n, c in t.items()} for t in tiers]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for user in (*self.services, *self.loaders):
                stack.callback(user.close)


@pytest.fixture
def expected(split: Split) -> dict[str, int]:
    return caching.digests(split)


@pytest.fixture
def cluster(split: Split, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(split, tmp_path, 1.2, "locality") as cluster:
        yield cluster


@pytest.mark.parametrize("policy", ["shuffle", "locality", "block"])
@pytest.mark.parametrize("share", [0.5, 1.2])
def test_samples_of_each_tier_on_each_node_are_what_the_forecast_says(
    split: Split, expected: dict[str, int], tmp_path: Path, policy: str, share: float
) -> None:
    topology = Topology(num_nodes=NODES, ranks_per_node=1)
    with Cluster(split, tmp_path, share, policy) as cluster:
        memory = cluster.configs[0].memory_nbytes
        assert memory is not None
        for epoch in range(2):
            found, tiers = cluster.epoch()
            assert found == expected
            if epoch:
                predicted = caching.forecast(split, policy, memory, topology, epoch)
                assert [list(t.values()) for t in tiers] == predicted.tier_samples.tolist()
            assert sum(t["peer"] for t in tiers) > 0
    for config in cluster.configs:
        assert not list(caching.names_in(config.shm_dir))
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["key.json"]


def test_coded_records_of_different_lengths_travel_between_nodes(
    packed: Callable[..., Path], tiny_source: Path, tmp_path: Path
) -> None:
    options = (*packing.TINY_SHARDS, "--quantize", "4", "--compress", "lz4")
    split = msdata.open(packed(tiny_source, *options)).split("train")
    assert len(set(split.record_nbytes.tolist())) > 1
    with Cluster(split, tmp_path, 1.2, "shuffle") as cluster:
        found, tiers = cluster.epoch()
        served = [stats["served"] for s in cluster.services for stats in s.stats().values()]
    assert found == caching.digests(split)
    assert sum(t["storage"] for t in tiers) == 0
    given = sum(one["samples"] for one in served)
    assert given >= sum(t["peer"] for t in tiers) > 0
    # Coded bytes are sent.
    assert sum(one["bytes"] for one in served) < given * split.schema.sample_nbytes / 2


def test_a_service_that_ends_means_storage_and_the_others_go_on(
    cluster: Cluster, expected: dict[str, int]
) -> None:
    _, before = cluster.epoch()
    cluster.services[0].close()
    for loader in cluster.loaders:
        loader._cache.client._peers._timeout_s = 0.2
    found, after = cluster.epoch()
    assert found == expected
    assert sum(t["storage"] for t in before) == 0
    assert sum(t["storage"] for t in after) > 0
    assert sum(t["peer"] for t in after) > 0


def test_a_peers_record_that_is_altered_comes_from_storage(
    cluster: Cluster, expected: dict[str, int]
) -> None:
    cluster.epoch()
    slots = cluster.loaders[0]._cache.client.tiers[LOCAL].slots
    # Only records for other nodes are checked; the test restores the bytes for the node's own rank.
    sound = [slots.record(slot).tobytes() for slot in range(slots.num_slots)]
    for slot in range(slots.num_slots):
        os.pwrite(slots.fd, b"rotten", slots.record_at(slot))
    peers = cluster.loaders[1:]
    found: dict[str, int] = {}
    for loader in peers:
        for batch in loader:
            found |= caching.digest_of(batch)
    assert found.items() <= expected.items()
    assert sum(loader.stats()["tiers"]["storage"]["samples"] for loader in peers) > 0
    for slot, record in enumerate(sound):
        os.pwrite(slots.fd, record, slots.record_at(slot))


def test_an_arena_outlives_its_ranks_in_the_service_and_is_found_full(
    cluster: Cluster, split: Split
) -> None:
    cluster.epoch()
    cluster.loaders[0].close()
    config = cluster.configs[0]
    assert len(list(caching.names_in(config.shm_dir))) == 1
    cluster.loaders[0] = cluster.loader(0)
    cluster.loaders[0].set_epoch(1)
    local = cluster.loaders[0].stats()["cache"]
    assert local["local"]["filled"] == local["local"]["slots"]
    cluster.epoch()
    assert cluster.loaders[0].stats()["cache"]["filler"]["samples"] == 0


def test_a_service_leaves_an_arena_whose_name_is_gone_and_joins_the_next(
    cluster: Cluster,
) -> None:
    service, config = cluster.services[0], cluster.configs[0]
    (name,) = caching.names_in(config.shm_dir)
    cluster.loaders[0].close()
    (config.shm_dir / name).unlink()
    service.look()
    assert service.stats() == {}
    assert not list((config.peers_dir or Path()).glob("*-n0.json"))
    cluster.loaders[0] = cluster.loader(0)
    service.look()
    assert service.stats().keys() == {0}


def test_a_service_that_cannot_be_announced_says_so_once_and_tries_again(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    config = cluster.configs[0]
    assert config.peers_dir is not None
    (announcement,) = config.peers_dir.glob("*-n0.json")
    cluster.services.pop(0).close()
    announcement.mkdir()
    service = cluster.service(config)
    cluster.services.append(service)
    service.look()
    assert service.stats() == {}
    (said,) = [r.message for r in caplog.records if "cannot serve" in r.message]
    assert "cannot write" in said
    announcement.rmdir()
    service.look()
    assert service.stats().keys() == {0}
    assert announcement.is_file()


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_service_counts_what_it_gives_and_writes_it_for_the_collector(
    cluster: Cluster, tmp_path: Path, is_encrypted: bool
) -> None:
    cluster.services.pop(0).close()
    service = ZmqService(
        replace(cluster.configs[0], memory_gib=None, metrics_dir=tmp_path / "metrics"),
        cached_split(cluster.split),
        lambda: record_reader(cluster.split),
        "127.0.0.1",
        is_encrypted=is_encrypted,
    )
    cluster.services.append(service)
    service.look()
    cluster.epoch()
    given = service.stats()[0]["served"]
    asked = [r.stats()["tiers"]["peer"] for r in cluster.loaders[1:]]
    assert 0 < given["samples"] <= sum(a["samples"] for a in asked)
    assert 0 < given["bytes"] <= sum(a["bytes"] for a in asked)
    lengths = cluster.split.record_nbytes
    assert lengths.min() <= given["bytes"] / given["samples"] <= lengths.max()
    service.write_metrics()
    (path,) = (tmp_path / "metrics").iterdir()
    assert path.name == "msdata-test-train-service0.prom"
    labels = '{run="test",split="train",node="0"}'
    assert f"\nmsdata_served_samples_total{labels} {given['samples']}\n" in path.read_text()
    service.close()
    assert not path.exists()


def test_without_services_all_that_peers_hold_comes_from_storage(
    split: Split, expected: dict[str, int], tmp_path: Path
) -> None:
    with Cluster(split, tmp_path, 1.2, "shuffle") as cluster:
        for service in cluster.services:
            service.close()
        found, tiers = cluster.epoch()
        assert found == expected
        assert sum(t["peer"] for t in tiers) == 0
        assert sum(t["storage"] for t in tiers) > 0


def test_a_shard_that_one_node_cannot_read_is_left_out_there_and_others_read_it(
    split: Split,
    expected: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    owners = own_shards(
        split.shard_record_nbytes,
        equal_nodes(NODES, memory_bytes=int(caching.split_nbytes(split) * 1.2 / NODES)),
    ).owner_of_shard
    shard = int(np.flatnonzero(owners == 0)[0])
    first = int(split.shard_sizes[:shard].sum())
    bad = range(first, first + int(split.shard_sizes[shard]))
    made = msdata.loader.node_cache.record_reader

    def failing(split: Split) -> Callable[[int], Any]:
        read = made(split)

        def read_or_fail(sample: int) -> Any:
            # Only its owner's fillers come here with it.
            if sample in bad:
                raise DataError("shard-000000.tar: the storage reported an I/O error")
            return read(sample)

        return read_or_fail

    for module in (msdata.loader.node_cache, sys.modules[__name__]):
        monkeypatch.setattr(module, "record_reader", failing)
    with Cluster(split, tmp_path, 1.2, "shuffle") as cluster:
        found, tiers = cluster.epoch()
        assert found == expected
        others = [t["storage"] for t in tiers[1:]]
        assert 0 < sum(others) <= len(bad)
        assert sum(t["peer"] for t in tiers) > 0
        # What its own ranks could read all the same is in the cache now.
        _, later = cluster.epoch()
        assert sum(t["storage"] for t in later) < sum(t["storage"] for t in tiers)
    assert len([r for r in caplog.records if "which stays uncached" in r.getMessage()]) == 2


def test_a_service_without_a_folder_to_be_found_in_is_refused(split: Split, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder that all nodes see"):
        ZmqService(caching.config(tmp_path), cached_split(split), lambda: record_reader(split))


def test_a_key_that_others_may_read_leaves_the_run_without_peers(
    split: Split, expected: dict[str, int], tmp_path: Path, caplog: Any
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "key.json").write_text('["a", "b"]')
    (folder / "key.json").chmod(0o644)
    config = caching.config(tmp_path, peers_dir=folder)
    with msdata.Loader(split, caching.BATCH, cache=config) as loader:
        found: dict[str, int] = {}
        for batch in loader:
            found |= caching.digest_of(batch)
    assert found == expected
    assert "others may open it" in caplog.text


# The command.


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "msdata", "cache", *map(str, words)]


def test_the_command_serves_the_ranks_of_two_pretended_nodes(
    split: Split, expected: dict[str, int], tmp_path: Path
) -> None:
    share = caching.gib_of(split, 0.6)
    peers = tmp_path / "job"
    config = caching.config(tmp_path, memory_gib=share, peers_dir=peers, warmup="blocking")
    data = split.dataset.path
    ranks = caching.start_ranks(data, config, 2, 1, policy="shuffle")
    options = ("--peers-dir", peers, "--shm-dir", config.shm_dir, "--job", "test")
    service = packing.start(command("serve", data, *options, "--host", "127.0.0.1"))
    assert packing.wait_for(lambda: len(list(peers.glob("*-n?.json"))) == 2, service)
    results = caching.run_epoch(ranks)
    assert caching.merged(results) == expected
    assert [r["stats"]["tiers"]["storage"]["samples"] for r in results] == [0, 0]
    assert all(r["stats"]["tiers"]["peer"]["samples"] > 0 for r in results)
    service.kill()
    service.communicate()
    assert caching.merged(caching.run_epoch(ranks)) == expected
    assert len(list(caching.names_in(config.shm_dir))) == 2
    for rank in ranks:
        rank.end()
    assert not list(caching.names_in(config.shm_dir))
    assert not any(caching.end_idle_processes())


def test_the_command_ends_on_sigterm_and_leaves_nothing(split: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path, warmup="blocking", memory_gib=1.0)
    options = ("--peers-dir", tmp_path / "job", "--shm-dir", config.shm_dir, "--job", "test")
    with msdata.Loader(split, caching.BATCH, cache=config):
        service = packing.start(command("serve", split.dataset.path, *options))
        assert service.stdout is not None
        assert service.stdout.readline() == "serving node 0 of job test\n"
    assert len(list(caching.names_in(config.shm_dir))) == 1
    service.terminate()
    _, errors = service.communicate(timeout=30)
    assert service.returncode == 128 + 15
    assert len(errors.splitlines()) == 1
    assert not list(caching.names_in(config.shm_dir))
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["key.json"]


def test_status_shows_arenas_and_clean_removes_those_of_dead_jobs(
    split: Split, tmp_path: Path
) -> None:
    folder = caching.config(tmp_path).shm_dir
    dead = caching.Rank(split.dataset.path, Topology(), caching.config(tmp_path, job="dead"))
    caching.run_epoch([dead])
    dead.kill()
    assert not packing.run(command("status", "--shm-dir", tmp_path)).stdout.startswith("msdata")
    process = packing.run(command("status", "--json", "--shm-dir", folder))
    (found,) = json.loads(process.stdout)
    assert (found["filled"], found["is_used"]) == (len(split), False)
    assert "left by a dead job" in packing.run(command("status", "--shm-dir", folder)).stdout
    living = caching.Rank(split.dataset.path, Topology(), caching.config(tmp_path, job="dead"))
    caching.run_epoch([living])
    assert packing.run(command("clean", "--shm-dir", folder)).stdout == ""
    assert "in use" in packing.run(command("status", "--shm-dir", folder)).stdout
    living.kill()
    process = packing.run(command("clean", "--shm-dir", folder))
    assert process.returncode == 0
    assert process.stdout == f"removed {folder / found['name']}\n"
