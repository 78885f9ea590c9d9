"""Three nodes without MPI, services and ranks as processes, some of which are killed or cut off.

Whatever happens: every sample comes once per epoch, no process ends in error, a rank waits for a
time limit once per lost node at most, the other nodes still serve each other, the fault is counted,
and logged once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import caching
import packing
import pytest

import msdata
from msdata.cache.config import CacheConfig
from msdata.dataset.dataset import Split
from msdata.topology import Topology

NODES = 3
# Longer than any load makes an epoch: a rank that waits so long hangs.
HANGS_S = 60.0
SERVICES = ("msdata", "cache", "serve")


@pytest.fixture
def split(packed: Callable[..., Path], tiny_source: Path) -> Split:
    options = (*packing.TINY_SHARDS, "--format", "tar", "--split", "1,0,0")
    return msdata.open(packed(tiny_source, *options)).split("train")


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    yield
    assert not any(caching.end_idle_processes())


class Job:
    """A rank and a service on each of three simulated nodes, which hold all data together."""

    def __init__(self, split: Split, tmp_path: Path, stack: contextlib.ExitStack) -> None:
        self.split = split
        self._stack = stack
        self.configs = [
            CacheConfig(
                memory_gib=caching.gib_of(split, 1.2 / NODES),
                job="test",
                shm_dir=tmp_path / f"shm{node}",
                peers_dir=tmp_path / "job",
                warmup="blocking",
            )
            for node in range(NODES)
        ]
        for config in self.configs:
            config.shm_dir.mkdir()
        self.services: list[subprocess.Popen[str]] = []
        self.ranks: list[caching.Rank] = []

    def start(self, prefixes: Sequence[Sequence[str]], hosts: Sequence[str]) -> None:
        """Brings up all nodes, each behind a command prefix of its own."""
        self._prefixes, self._hosts = prefixes, hosts
        self.services = [self.service(node) for node in range(NODES)]
        announced = self.configs[0].peers_dir
        assert announced is not None
        assert packing.wait_for(
            lambda: len(list(announced.glob("*-n?.json"))) == NODES, self.services[0]
        )
        self.ranks = [self.rank(node) for node in range(NODES)]

    def rank(self, node: int) -> caching.Rank:
        rank = caching.Rank(
            self.split.dataset.path,
            Topology(num_nodes=NODES, rank=node),
            self.configs[node],
            prefix=self._prefixes[node],
            policy="shuffle",
            step_s=0.05,
            prefetch=1,
            pause_s=0.5,
        )
        self._stack.callback(lambda: None if rank.has_ended else rank.kill())
        return rank

    def service(self, node: int) -> subprocess.Popen[str]:
        config = self.configs[node]
        options = ("--peers-dir", config.peers_dir, "--shm-dir", config.shm_dir, "--job", "test")
        options = (*options, "--nodes", NODES, "--memory-gib", repr(config.memory_gib))
        words = [sys.executable, "-m", *SERVICES, self.split.dataset.path, *options]
        words += ["--warmup", "blocking", "--host", self._hosts[node]]
        environ = packing.environment(SLURMD_NODENAME=f"node{node}")
        service = packing.start([str(w) for w in (*self._prefixes[node], *words)], environ)
        self._stack.callback(service.communicate)
        self._stack.callback(packing.kill_group, service)
        return service

    def epoch(self, fault: Callable[[], Any] | None = None) -> list[dict[str, Any]]:
        """An epoch of all ranks; the fault happens when each has had two batches."""
        first: list[dict[str, int]] = []
        for rank in self.ranks:
            rank.start_epoch()
        if fault is not None:
            for rank in self.ranks:
                first.append(rank.read()["digests"] | rank.read()["digests"])
            fault()
        results = []
        for i, rank in enumerate(self.ranks):
            result = rank.end_epoch()
            if first:
                assert not result["digests"].keys() & first[i].keys()
                result["digests"] |= first[i]
            results.append(result)
        return results

    def first_epoch_without_storage(self) -> list[dict[str, Any]]:
        """Epochs until nodes have found each other again; gives the last."""
        deadline_s = time.monotonic() + packing.TIMEOUT_S
        while sum(samples(results := self.epoch(), "storage")):
            assert time.monotonic() < deadline_s
        return results

    def end(self) -> None:
        """Ends ranks, then services; nothing is left in shared memory."""
        for rank in self.ranks:
            rank.end()
        for service in self.services:
            if service.poll() is None:
                service.send_signal(signal.SIGTERM)
                service.wait(30)
        assert not [p for c in self.configs for p in c.shm_dir.iterdir()]


@pytest.fixture
def job(split: Split, tmp_path: Path) -> Iterator[Job]:
    with contextlib.ExitStack() as stack:
        yield Job(split, tmp_path, stack)


@pytest.fixture
def local_job(job: Job) -> Job:
    job.start([()] * NODES, ["127.0.0.1"] * NODES)
    return job


@pytest.fixture
def expected(split: Split) -> dict[str, int]:
    return caching.digests(split)


def samples(results: Sequence[dict[str, Any]], tier: str) -> list[int]:
    return [r["stats"]["tiers"][tier]["samples"] for r in results]


def failures(results: Sequence[dict[str, Any]]) -> list[int]:
    return [r["stats"]["cache"]["peers"]["failures"] for r in results]


def assert_little_is_lost(results: Sequence[Any]) -> None:
    """No rank waited for a node that is down a second time; counted, as clocks depend on load."""
    assert max(failures(results)) < NODES
    assert all(result["stats"]["wait_s"] < HANGS_S for result in results)


def assert_warned_once(results: Sequence[dict[str, Any]], ranks: Sequence[int]) -> None:
    for i in ranks:
        (warning,) = results[i]["warnings"]
        assert "does not answer" in warning
        assert "come from storage until it does" in warning


def test_a_service_that_is_killed_costs_little_and_the_others_serve_each_other(
    local_job: Job, expected: dict[str, int]
) -> None:
    job = local_job
    before = job.epoch()
    assert caching.merged(before) == expected
    assert sum(samples(before, "storage")) == 0
    during = job.epoch(lambda: packing.kill_group(job.services[0]))
    assert caching.merged(during) == expected
    assert_little_is_lost(during)
    after = job.epoch()
    assert caching.merged(after) == expected
    assert_warned_once(after, [1, 2])
    assert after[0]["warnings"] == []
    assert failures(after) == [0, 1, 1]
    # Its own ranks have the arena still, and those of the others reach all but it.
    assert samples(after, "storage")[0] == 0
    assert all(n > 0 for n in samples(after, "peer"))
    assert all(n > 0 for n in samples(after, "storage")[1:])
    job.services[0] = job.service(0)
    assert caching.merged(job.first_epoch_without_storage()) == expected
    job.end()


def test_when_all_services_are_killed_ranks_go_on_with_their_own_memory(
    local_job: Job, split: Split, expected: dict[str, int]
) -> None:
    job = local_job
    job.epoch()

    def kill_all() -> None:
        for service in job.services:
            packing.kill_group(service)

    during = job.epoch(kill_all)
    assert caching.merged(during) == expected
    assert_little_is_lost(during)
    after = job.epoch()
    assert caching.merged(after) == expected
    memory = job.configs[0].memory_nbytes
    assert memory is not None
    predicted = caching.forecast(
        split, "shuffle", memory, Topology(num_nodes=NODES), 2
    ).tier_samples
    assert samples(after, "local") == predicted[:, 0].tolist()
    assert samples(after, "storage") == predicted[:, 2].tolist()
    assert failures(after) == [2, 2, 2]
    assert_warned_once(after, range(NODES))
    job.end()


def test_the_node_of_a_killed_rank_still_serves_and_keeps_its_memory_for_the_next(
    local_job: Job, expected: dict[str, int]
) -> None:
    job = local_job
    job.epoch()
    for rank in job.ranks:
        rank.start_epoch()
    seen = [rank.read()["digests"] | rank.read()["digests"] for rank in job.ranks]
    job.ranks[1].kill()
    survivors = [job.ranks[0].end_epoch(), job.ranks[2].end_epoch()]
    found = caching.merged(survivors) | seen[0] | seen[2]
    of_victim = expected.keys() - found.keys()
    assert of_victim >= seen[1].keys()
    assert found.items() <= expected.items()
    assert_little_is_lost(survivors)
    for result in survivors:
        assert (result["warnings"], failures([result])) == ([], [0])
        assert samples([result], "storage") == [0]
    # The job is restarted: all ranks, over services that have kept everything.
    job.ranks[0].kill()
    job.ranks[2].kill()
    job.ranks = [job.rank(node) for node in range(NODES)]
    again = job.epoch()
    assert caching.merged(again) == expected
    assert sum(samples(again, "storage")) == 0
    job.end()


def test_after_kill_9_of_everything_the_next_start_cleans_up(local_job: Job, split: Split) -> None:
    job = local_job
    job.epoch()
    for rank in job.ranks:
        rank.kill()
    for service in job.services:
        packing.kill_group(service)
        service.wait(30)
    for config in job.configs:
        assert len(list(caching.names_in(config.shm_dir))) == 1
        with msdata.Loader(split, cache=replace(config, job="next", peers_dir=None)):
            assert all("-next-" in name for name in caching.names_in(config.shm_dir))
        assert not list(config.shm_dir.iterdir())


# Nodes of their own network.


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Network:
    """A switch and three hosts, as network namespaces; cables can be pulled and put back."""

    def __init__(self) -> None:
        self._names = [f"msdata{os.getpid()}-{i}" for i in range(NODES + 1)]
        self.switch, *self.hosts = self._names
        self.addresses = [f"10.77.0.{node + 1}" for node in range(NODES)]

    def make(self) -> None:
        for name in self._names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for node, host in enumerate(self.hosts):
            end = ("peer", "name", "eth0", "netns", host)
            ip("-n", self.switch, "link", "add", f"port{node}", "type", "veth", *end)
            ip("-n", self.switch, "link", "set", f"port{node}", "master", "br0", "up")
            ip("-n", host, "addr", "add", f"{self.addresses[node]}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")

    def cut(self, node: int) -> None:
        """Frames of a host are lost in the switch: no end sees a fault, as with a dead switch."""
        ip("-n", self.switch, "link", "set", f"port{node}", "nomaster")

    def restore(self, node: int) -> None:
        ip("-n", self.switch, "link", "set", f"port{node}", "master", "br0")

    def remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.make()
    except (OSError, subprocess.CalledProcessError) as error:
        network.remove()
        reason = getattr(error, "stderr", "") or str(error)
        pytest.skip(f"network namespaces need root and iproute2: {reason.strip()}")
    yield network
    network.remove()


def test_a_node_whose_link_is_cut_costs_little_and_is_used_again_when_it_is_restored(
    job: Job, network: Network, expected: dict[str, int]
) -> None:
    job.start([("ip", "netns", "exec", host) for host in network.hosts], network.addresses)
    before = job.epoch()
    assert caching.merged(before) == expected
    assert sum(samples(before, "storage")) == 0
    during = job.epoch(lambda: network.cut(0))
    assert caching.merged(during) == expected
    assert_little_is_lost(during)
    after = job.epoch()
    assert caching.merged(after) == expected
    # The node that is cut off reaches no other, the others each other.
    assert samples(after, "peer")[0] == 0
    assert samples(after, "storage")[0] > 0
    assert all(n > 0 for n in samples(after, "peer")[1:])
    assert failures(after)[0] == 2
    assert failures(after)[1:] == [1, 1]
    assert_warned_once(after, range(NODES))
    # Trying the lost nodes again costs the ranks nothing.
    assert failures(after) == failures(during)
    network.restore(0)
    assert caching.merged(job.first_epoch_without_storage()) == expected
    job.end()
