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
        self.services = caching.start_services(split, self.configs)
        self.loaders = [self.loader(node) for node in range(NODES)]

    def loader(self, node: int) -> msdata.Loader:
        return msdata.Loader(
            self.split,
            caching.BATCH,
            policy=self.policy,
            topology=Topology(num_nodes=NODES, ranks_per_node=1, rank=node),
            # The services tell ranks sizes and folder.
            cache=replace(self.configs[node], memory_gib=None, peers_dir=None),
            threads=1,
        )

    def service(self, node: int, **options: Any) -> caching.PeerService:
        """A service in place of one that has ended."""
        config = replace(self.configs[node], **options)
        return caching.PeerService(self.split, config, node, NODES).wait()

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
    left = sorted(p.name.partition("-")[0] for p in (tmp_path / "job").iterdir())
    assert left == ["key.json", "node0", "node1", "node2"]


def test_coded_records_of_different_lengths_travel_between_nodes(
    packed: Callable[..., Path], tiny_source: Path, tmp_path: Path
) -> None:
    options = (*packing.TINY_SHARDS, "--quantize", "4", "--compress", "lz4")
    split = msdata.open(packed(tiny_source, *options)).split("train")
    assert len(set(split.record_nbytes.tolist())) > 1
    with Cluster(split, tmp_path, 1.2, "shuffle") as cluster:
        found, tiers = cluster.epoch()
        served = [s.service.stats()["served"] for s in cluster.services]
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
    cluster.services.pop(0).close()
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


def test_a_service_that_comes_back_gives_what_it_offered_before(
    cluster: Cluster, expected: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.epoch()
    owners = cluster.loaders[0].cache_owners
    cluster.services.pop(0).close()
    cluster.loaders.pop(0).close()
    assert not list(caching.names_in(cluster.configs[0].shm_dir))
    cluster.services.insert(0, cluster.service(0, memory_gib=0.0))
    assert "keeps the 0.00 GiB that its service offered to the others before" in caplog.text
    cluster.loaders.insert(0, cluster.loader(0))
    again = cluster.loaders[0].cache_owners
    assert owners is not None
    assert again is not None
    assert [o.tolist() for o in again] == [o.tolist() for o in owners]
    cluster.loaders[0].set_epoch(1)
    assert cluster.epoch()[0] == expected


def test_a_service_whose_folder_is_lost_takes_up_the_arena_in_use_or_says_why_not(
    cluster: Cluster, expected: dict[str, int]
) -> None:
    cluster.epoch()
    folder = cluster.configs[0].peers_dir
    assert folder is not None
    for service in cluster.services:
        service.close()
    for path in folder.iterdir():
        path.unlink()
    cluster.services = caching.start_services(
        cluster.split, [replace(c, memory_gib=0.0) for c in cluster.configs]
    )
    assert cluster.epoch()[0] == expected
    cluster.services.pop(2).close()
    for path in folder.glob("*.offer.json"):
        if path.name.startswith("node0"):
            path.write_text('["node0", [1, 0, null]]')
    with pytest.raises(AssertionError, match="use arenas of earlier services that disagree"):
        cluster.service(2)


def test_offers_of_more_nodes_than_serve_are_refused(cluster: Cluster) -> None:
    cluster.services.pop(2).close()
    with pytest.raises(AssertionError, match="has offers of 3 nodes, got --nodes 2"):
        caching.PeerService(cluster.split, cluster.configs[2], 2, 2).wait()


def test_a_rank_that_starts_while_its_service_is_gone_uses_its_arena(
    cluster: Cluster, split: Split, expected: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.epoch()
    topology = Topology(num_nodes=NODES, rank=0)
    config = replace(cluster.configs[0], service_wait_s=0.0, memory_gib=9.0)
    options = {"policy": "locality", "topology": topology, "threads": 1}
    with msdata.Loader(split, caching.BATCH, cache=config, **options) as rank:
        assert "keeps 0.00 GiB, CacheConfig asks for memory_gib=9.00" in caplog.text
        cluster.services.pop(0).close()
        with msdata.Loader(split, caching.BATCH, cache=config, **options) as late:
            rank.set_epoch(1)
            late.set_epoch(1)
            caching.assert_same_batches(caching.copies(rank), caching.copies(late))
            assert late.stats()["tiers"]["storage"]["samples"] == 0
        lonely = replace(config, job="other")
        with pytest.raises(UsageError, match="cache service, which knows them, was not found"):
            msdata.Loader(split, caching.BATCH, cache=lonely, **options)


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_service_counts_what_it_gives_and_writes_it_for_the_collector(
    cluster: Cluster, tmp_path: Path, is_encrypted: bool
) -> None:
    cluster.services.pop(0).close()
    config = replace(cluster.configs[0], metrics_dir=tmp_path / "metrics")
    made = caching.PeerService(cluster.split, config, 0, NODES, is_encrypted=is_encrypted).wait()
    cluster.services.append(made)
    cluster.epoch()
    service = made.service
    given = service.stats()["served"]
    asked = [r.stats()["tiers"]["peer"] for r in cluster.loaders[1:]]
    assert 0 < given["samples"] <= sum(a["samples"] for a in asked)
    assert 0 < given["bytes"] <= sum(a["bytes"] for a in asked)
    lengths = cluster.split.record_nbytes
    assert lengths.min() <= given["bytes"] / given["samples"] <= lengths.max()
    service._metrics_due_s = 0.0
    service._write_metrics()
    (path,) = (tmp_path / "metrics").iterdir()
    assert path.name == "msdata-test-train-service0.prom"
    labels = '{run="test",split="train",node="0"}'
    assert f"\nmsdata_served_samples_total{labels} {given['samples']}\n" in path.read_text()
    made.close()
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

    for module in (msdata.loader.node_cache, caching):
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
    config = caching.config(tmp_path)
    data = split.dataset.path
    options = ("--peers-dir", peers, "--shm-dir", config.shm_dir, "--job", "test", "--nodes", 2)
    serve = command("serve", data, *options, "--host", "127.0.0.1", "--memory-gib", share)
    services = [
        packing.start([*serve, "--warmup", "blocking"], packing.environment(SLURMD_NODENAME=name))
        for name in ("one", "two")
    ]
    for service in services:
        assert packing.wait_for(lambda: len(list(peers.glob("*-n?.json"))) == 2, service)
    ranks = caching.start_ranks(data, config, 2, 1, policy="shuffle")
    results = caching.run_epoch(ranks)
    assert caching.merged(results) == expected
    assert [r["stats"]["tiers"]["storage"]["samples"] for r in results] == [0, 0]
    assert all(r["stats"]["tiers"]["peer"]["samples"] > 0 for r in results)
    for service in services:
        service.kill()
        service.communicate()
    assert caching.merged(caching.run_epoch(ranks)) == expected
    assert len(list(caching.names_in(config.shm_dir))) == 2
    for rank in ranks:
        rank.end()
    assert not list(caching.names_in(config.shm_dir))
    assert not any(caching.end_idle_processes())


def test_the_command_ends_on_sigterm_and_leaves_nothing(split: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path, service_wait_s=60.0)
    options = ("--peers-dir", tmp_path / "job", "--shm-dir", config.shm_dir, "--job", "test")
    service = packing.start(command("serve", split.dataset.path, *options, "--memory-gib", 1))
    with msdata.Loader(split, caching.BATCH, cache=config):
        assert service.stdout is not None
        assert service.stdout.readline() == "node 0: 1.00 GiB of memory\n"
        assert service.stdout.readline() == "serving 1 nodes of job test\n"
    assert len(list(caching.names_in(config.shm_dir))) == 1
    service.terminate()
    _, errors = service.communicate(timeout=30)
    assert service.returncode == 128 + 15
    assert len(errors.splitlines()) == 1
    assert not list(caching.names_in(config.shm_dir))
    assert [p.name for p in (tmp_path / "job").glob("*") if "offer" not in p.name] == ["key.json"]


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
