"""Services under mpiexec and ranks beside them, all real processes on pretended nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import caching
import numpy as np
import packing
import pytest
from services import Services

import msdata
from msdata.cache.config import CacheConfig
from msdata.dataset import Split
from msdata.plan.forecast import Job, assign_job, count_tiers, forecast_epoch, own_job
from msdata.plan.ownership import Nodes
from msdata.topology import Topology

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not packing.mpiexec().exists(), reason="pip install mpich mpi4py"),
]
NODES, RANKS_PER_NODE = 4, 2


@pytest.fixture(scope="module")
def split(packed: Callable[..., Path], tiny_source: Path) -> Split:
    data = packed(tiny_source, *packing.TINY_SHARDS, "--format", "tar", "--split", "1,0,0")
    return msdata.open(data).split("train")


@pytest.fixture(scope="module")
def expected(split: Split) -> dict[str, int]:
    """Checksums of all samples, read without a cache."""
    with msdata.Loader(split, caching.BATCH) as loader:
        digests: dict[str, int] = {}
        for batch in loader:
            digests |= caching.digest_of(batch)
    return digests


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    yield
    assert not any(caching.end_idle_processes())


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    """What a rank is told: nothing but the job."""
    return caching.config(tmp_path)


def capacities(split: Split, share: float, weights: Sequence[float]) -> list[int]:
    """Bytes of each node, whose sum is a share of the data."""
    total = share * caching.split_nbytes(split)
    return [int(total * w / sum(weights)) for w in weights]


def job_of(split: Split, policy: str, memory: Sequence[int], ranks_per_node: int) -> Job:
    """What `msdata plan` is told."""
    num_nodes = len(memory)
    return Job(
        topology=Topology(num_nodes=num_nodes, ranks_per_node=ranks_per_node),
        nodes=Nodes(
            memory_bytes=np.array(memory, np.int64),
            ssd_bytes=np.zeros(num_nodes, np.int64),
            keys=np.arange(num_nodes, dtype=np.uint64),
        ),
        shard_sizes=split.shard_sizes,
        sample_bytes=split.schema.sample_nbytes,
        batch_per_rank=caching.BATCH,
        policy=policy,
        last="short",
    )


def tiers_of(result: dict[str, Any]) -> list[int]:
    return [count["samples"] for count in result["stats"]["tiers"].values()]


def assert_as_forecast(split: Split, job: Job, epoch: int, results: list[dict[str, Any]]) -> None:
    """Every rank had the samples of the plan, from the tiers of the plan."""
    owners = own_job(job)
    assigned = assign_job(job, owners, epoch).samples
    for rank, result in enumerate(results):
        mine = assigned[:, rank]
        ids = {split.sample_id(int(s)) for s in mine[mine >= 0]}
        assert result["digests"].keys() == {str(i) for i in ids}
        node = rank // job.topology.ranks_per_node
        # One rank's samples as if it were all that its node reads.
        alone = np.full_like(assigned, -1)
        alone[:, rank] = mine
        assert tiers_of(result) == count_tiers(alone, job, owners)[node].tolist()
    if epoch == 0:
        return  # the forecast of that one is of caches that fill meanwhile
    by_node = np.array([tiers_of(r) for r in results]).reshape(job.topology.num_nodes, -1, 4)
    foretold = forecast_epoch(job, owners, epoch).tier_samples
    assert by_node.sum(axis=1).tolist() == foretold.tolist()


@pytest.mark.parametrize(
    ("share", "weights"),
    [(0.25, (1, 1, 1, 1)), (0.5, (4, 1, 2, 1)), (1.1, (1, 1, 1, 1)), (1.2, (1, 5, 1, 3))],
)
def test_what_each_rank_reads_from_each_tier_is_what_the_forecast_says(
    split: Split,
    expected: dict[str, int],
    config: CacheConfig,
    share: float,
    weights: Sequence[float],
) -> None:
    memory = capacities(split, share, weights)
    data = split.dataset.path
    with Services(data, config.shm_dir, memory, "--fill", "stage") as services:
        for policy in ("shuffle", "locality", "block"):
            ranks = caching.start_ranks(data, config, NODES, RANKS_PER_NODE, policy=policy)
            job = job_of(split, policy, memory, RANKS_PER_NODE)
            for epoch in range(2):
                results = caching.run_epoch(ranks)
                assert caching.merged(results) == expected
                assert_as_forecast(split, job, epoch, results)
            for rank in ranks:
                rank.end()
        _, errors = services.terminate()
        assert errors.count("interrupted") == 1
    assert not list(caching.names_in(config.shm_dir))
