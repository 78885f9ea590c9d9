"""What crosses the network under `locality`, by the counters of services and ranks that run.

Few bytes a sample and many samples: the share that moves is a mean over hundreds of batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import caching
import packing
import pytest
import raw_dataset
from services import Services

import msdata
from msdata.cache.config import GIB, CacheConfig
from msdata.dataset.dataset import Split
from msdata.schema import Schema, Survey
from msdata.topology import Topology

NODES, BATCH = 4, 64
SCHEMA = Schema(name="small", arrays=(Survey(name="image", shape=(4, 4), dtype="<f4"),))
# Sixteen of the same size a node: that shares are unequal is not what is measured.
SHARD_SIZES = (640,) * 16 * NODES
EPOCHS = 2


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("raw") / "data"
    raw_dataset.write_raw(folder, SCHEMA, SHARD_SIZES, has_checksums=True)
    return msdata.open(folder).split("train")


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    yield
    assert not any(caching.end_idle_processes())


def assert_as_the_square_root_says(split: Split, tiers: Sequence[dict[str, int]]) -> None:
    """All samples came, none from storage, and of all as many from peers as predicted."""
    read = {name: sum(t[name] for t in tiers) for name in tiers[0]}
    assert sum(read.values()) == EPOCHS * len(split)
    assert read["storage"] == read["ssd"] == 0
    expected = math.sqrt((1 - 1 / NODES) / (2 * math.pi * BATCH))
    assert read["peer"] / (EPOCHS * len(split)) == pytest.approx(expected, rel=0.05)


def samples_by_tier(stats: dict[str, Any]) -> dict[str, int]:
    return {name: count["samples"] for name, count in stats["tiers"].items()}


@pytest.mark.mpi
@pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py")
def test_services_under_mpi_move_as_much_as_the_square_root_says(
    split: Split, tmp_path: Path
) -> None:
    memory = [int(1.1 * caching.split_nbytes(split) / NODES)] * NODES
    data, config = split.dataset.path, caching.config(tmp_path)
    with Services(data, config.shm_dir, memory, "--warmup", "blocking"):
        ranks = caching.start_ranks(data, config, NODES, 1, policy="locality", batch_size=BATCH)
        results = [result for _ in range(EPOCHS) for result in caching.run_epoch(ranks)]
        for rank in ranks:
            rank.end()
    assert_as_the_square_root_says(split, [samples_by_tier(r["stats"]) for r in results])


def test_services_without_mpi_give_out_as_much_as_the_square_root_says(
    split: Split, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        memory_nbytes = int(1.1 * caching.split_nbytes(split) / NODES)
        services, loaders = nodes(
            stack, split, tmp_path, (NODES, memory_nbytes), batch=BATCH, policy="locality"
        )
        tiers = []
        for _ in range(EPOCHS):
            for loader in loaders:
                assert sum(len(batch["sample_id"]) for batch in loader) == len(split) // NODES
                tiers.append(samples_by_tier(loader.stats()))
        served = [s.service.stats()["served"] for s in services]
    assert_as_the_square_root_says(split, tiers)
    given = sum(one["samples"] for one in served)
    # What is fetched ahead for the epoch after the last is given out, too, and not yet counted.
    ahead = given - sum(t["peer"] for t in tiers)
    assert 0 <= ahead < 0.2 * given
    assert sum(one["bytes"] for one in served) == given * SCHEMA.sample_nbytes


def nodes(
    stack: ExitStack,
    split: Split,
    tmp_path: Path,
    sizes: tuple[int, int],
    *,
    batch: int = caching.BATCH,
    **options: Any,
) -> tuple[list[caching.PeerService], list[msdata.Loader]]:
    """A service and a loader on each node, whose memory is full; `sizes`: nodes, bytes of each."""
    num_nodes, memory_nbytes = sizes
    configs = []
    for node in range(num_nodes):
        (folder := tmp_path / f"shm{node}").mkdir(parents=True)
        told = {"job": "test", "shm_dir": folder, "peers_dir": tmp_path / "job"}
        size = memory_nbytes / GIB
        configs.append(CacheConfig(memory_gib=size, warmup="blocking", **told))
    services = caching.start_services(split, configs)
    loaders = []
    for service in services:
        stack.callback(service.close)
    for node, config in enumerate(configs):
        topology = Topology(num_nodes=num_nodes, rank=node)
        loaders.append(
            msdata.Loader(split, batch, topology=topology, cache=config, threads=1, **options)
        )
        stack.callback(loaders[-1].close)
    for loader in loaders:
        loader._cache.client.filler.wait()
    return services, loaders


def run_nodes(
    split: Split, tmp_path: Path, num_nodes: int, memory_nbytes: int, epoch: int
) -> tuple[list[dict[str, dict[str, int]]], list[dict[str, int]]]:
    """Tiers of each node's only rank in an epoch, and what their services gave in all epochs."""
    with ExitStack() as stack:
        services, loaders = nodes(stack, split, tmp_path, (num_nodes, memory_nbytes), prefetch=1)
        tiers = []
        for loader in loaders:
            loader.set_epoch(epoch)
            for batch in loader:
                assert len(batch["sample_id"])
            tiers.append(loader.stats()["tiers"])
        return tiers, [s.service.stats()["served"] for s in services]


def test_memory_for_a_fifth_of_the_floats_holds_all_codes_and_less_crosses_the_network(
    packed: Callable[..., Path], mantis_source: Path, tmp_path: Path
) -> None:
    num_nodes, epoch, found = 2, 1, {}
    plain_nbytes = 0
    for name, options in (("plain", ()), ("coded", ("--quantize", "4", "--compress", "lz4"))):
        data = packed(mantis_source, "--split", "1,0,0", "--shard-size", "256KiB", *options)
        split = msdata.open(data).split("train")
        plain_nbytes = plain_nbytes or caching.split_nbytes(split)
        memory_nbytes = plain_nbytes // 5 // num_nodes
        topology = Topology(num_nodes=num_nodes)
        wanted = caching.forecast(split, "shuffle", memory_nbytes, topology, epoch)
        tiers, served = run_nodes(split, tmp_path / name, num_nodes, memory_nbytes, epoch)
        for node, by_tier in enumerate(tiers):
            assert [t["samples"] for t in by_tier.values()] == wanted.tier_samples[node].tolist()
            assert [t["bytes"] for t in by_tier.values()] == wanted.tier_bytes[node].tolist()
        found[name] = wanted
        assert sum(s["bytes"] for s in served) >= wanted.tier_bytes[:, 2].sum()
    ratio = plain_nbytes / caching.split_nbytes(split)
    assert ratio > 5
    assert found["coded"].shares[3] == 0
    assert found["plain"].shares[3] == pytest.approx(0.8, abs=0.08)
    per_peer_read = [f.tier_bytes[:, 2].sum() / f.tier_samples[:, 2].sum() for f in found.values()]
    assert per_peer_read[0] / per_peer_read[1] == pytest.approx(ratio, rel=0.1)
    cold = [f.storage_bytes.sum() + f.tier_bytes[:, :3].sum() for f in found.values()]
    assert cold[0] / cold[1] == pytest.approx(ratio, rel=0.05)
