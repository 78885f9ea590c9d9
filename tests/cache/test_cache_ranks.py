"""Ranks as processes on one node: forecast = measured, and what remains when some are killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import caching
import loading
import packing
import pytest

import msdata
from msdata.dataset.dataset import Split
from msdata.topology import Topology


@pytest.fixture(params=["--format tar", caching.CODED])
def data(request: Any, packed: Callable[..., Path], tiny_source: Path) -> Path:
    return packed(tiny_source, *packing.TINY_SHARDS, *request.param.split())


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    yield
    assert not any(caching.end_idle_processes())


@pytest.fixture
def split(data: Path) -> Split:
    return msdata.open(data).split("train")


@pytest.fixture
def expected(split: Split) -> dict[str, int]:
    return caching.digests(split)


def tiers(results: list[dict[str, Any]]) -> dict[str, int]:
    """Samples by tier over all ranks."""
    names = results[0]["stats"]["tiers"]
    return {n: sum(r["stats"]["tiers"][n]["samples"] for r in results) for n in names}


def filled_from_storage(results: list[dict[str, Any]]) -> int:
    """Bytes that the ranks' fillers have read so far."""
    return sum(r["stats"]["cache"]["filler"]["bytes"] for r in results)


@pytest.mark.parametrize("policy", ["shuffle", "locality", "block"])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_what_three_ranks_read_from_each_tier_is_what_the_forecast_says(
    data: Path,
    split: Split,
    expected: dict[str, int],
    tmp_path: Path,
    policy: str,
    share: float,
) -> None:
    config = caching.config(tmp_path, memory_gib=caching.gib_of(split, share))
    assert config.memory_nbytes is not None
    ranks = caching.start_ranks(data, config, 1, 3, policy=policy)
    cold, hot, hotter = (caching.run_epoch(ranks) for _ in range(3))
    topology = Topology(ranks_per_node=3)
    for epoch, results in enumerate((cold, hot, hotter)):
        assert caching.merged(results) == expected
        predicted = caching.forecast(split, policy, config.memory_nbytes, topology, epoch)
        found = tiers(results)
        if epoch:
            assert list(found.values()) == predicted.tier_samples.sum(axis=0).tolist()
            continue
        # What the filler was first to read comes from memory already, and nothing comes twice,
        # but for a record that it was reading at that moment.
        assert sum(found.values()) == predicted.tier_samples.sum()
        read = sum(r["stats"]["tiers"]["storage"]["bytes"] for r in results)
        read += filled_from_storage(results)
        limit = predicted.storage_bytes.sum() + 0.05 * caching.split_nbytes(split)
        assert predicted.storage_bytes.sum() <= read <= limit
    for rank in ranks:
        rank.end()
    assert not list(caching.names_in(config.shm_dir))


def test_two_pretended_nodes_cache_what_they_own_and_read_the_rest_from_storage(
    data: Path, split: Split, expected: dict[str, int], tmp_path: Path
) -> None:
    config = caching.config(tmp_path, memory_gib=caching.gib_of(split, 0.4))
    assert config.memory_nbytes is not None
    ranks = caching.start_ranks(data, config, 2, 2, policy="locality")
    topology = Topology(num_nodes=2, ranks_per_node=2)
    caching.run_epoch(ranks)
    results = caching.run_epoch(ranks)
    assert len(list(caching.names_in(config.shm_dir))) == 2
    assert caching.merged(results) == expected
    predicted = caching.forecast(split, "locality", config.memory_nbytes, topology, 1)
    for node in range(2):
        local, ssd, peer, storage = predicted.tier_samples[node].tolist()
        found = tiers(results[2 * node : 2 * node + 2])
        assert (found["local"], found["ssd"]) == (local, ssd)
        # Without a service between the nodes, what a peer has comes from storage.
        assert found["storage"] == peer + storage
    for rank in ranks:
        rank.end()


def test_a_killed_rank_takes_nothing_from_the_others(
    data: Path, split: Split, expected: dict[str, int], tmp_path: Path
) -> None:
    config = caching.config(tmp_path)
    ranks = caching.start_ranks(data, config, 1, 3, step_s=0.02)
    for rank in ranks:
        rank.start_epoch()
    victim, *survivors = ranks
    seen = victim.read()["digests"]
    victim.kill()
    results = [rank.end_epoch() for rank in survivors]
    found = caching.merged(results)
    assert found.items() <= expected.items()
    assert not found.keys() & seen.keys()
    assert results[0]["stats"]["cache"]["local"]["filled"] == len(split)
    again = caching.run_epoch(survivors)
    assert caching.merged(again).items() <= expected.items()
    assert tiers(again)["storage"] == 0
    for rank in survivors:
        rank.end()
    assert not list(caching.names_in(config.shm_dir))


def test_when_the_process_that_fills_is_killed_another_takes_over(
    data: Path, split: Split, expected: dict[str, int], tmp_path: Path
) -> None:
    config = caching.config(tmp_path)
    # The first rank is the one that fills, slowly; the second has the arena from it.
    first = caching.Rank(data, Topology(), config, fill_s=0.05, settle=False)
    assert packing.wait_for(lambda: list(caching.names_in(config.shm_dir)))
    time.sleep(0.5)
    second = caching.Rank(data, Topology(), config)
    second.start_epoch()
    second.read()
    first.kill()
    results = second.end_epoch()
    assert results["digests"].items() <= expected.items()
    assert results["stats"]["cache"]["local"]["filled"] == len(split)
    second.start_epoch()
    assert second.end_epoch()["stats"]["tiers"]["local"]["samples"] == len(split)
    second.end()
    assert not list(caching.names_in(config.shm_dir))


def test_after_kill_9_of_all_the_same_job_resumes_and_another_cleans_up(
    data: Path, split: Split, tmp_path: Path
) -> None:
    config = caching.config(tmp_path)
    ranks = caching.start_ranks(data, config, 1, 2)
    caching.run_epoch(ranks)
    for rank in ranks:
        rank.kill()
    assert len(list(caching.names_in(config.shm_dir))) == 1
    with msdata.Loader(split, caching.BATCH, cache=config) as loader:
        loading.drain(loader)
        assert loader.stats()["tiers"]["local"]["samples"] == len(split)
    ranks = caching.start_ranks(data, config, 1, 1)
    caching.run_epoch(ranks)
    ranks[0].kill()
    other = caching.config(tmp_path, job="other")
    with msdata.Loader(split, caching.BATCH, cache=other):
        assert [n.split("-")[2] for n in caching.names_in(other.shm_dir)] == ["other"]
    assert not list(caching.names_in(other.shm_dir))


def test_two_jobs_on_one_node_keep_apart(
    data: Path, split: Split, expected: dict[str, int], tmp_path: Path
) -> None:
    jobs = [caching.config(tmp_path, job=name) for name in ("one", "two")]
    ranks = [caching.Rank(data, Topology(), config) for config in jobs]
    for result in caching.run_epoch(ranks):
        assert result["digests"] == expected
        assert result["stats"]["cache"]["local"]["filled"] == len(split)
    assert len(list(caching.names_in(jobs[0].shm_dir))) == 2
    ranks[0].kill()
    (result,) = caching.run_epoch(ranks[1:])
    assert result["digests"] == expected
    ranks[1].end()
    names = list(caching.names_in(jobs[0].shm_dir))
    assert [n.split("-")[2] for n in names] == ["one"]


def test_all_ranks_fill_at_once_in_stage_mode(
    data: Path, split: Split, expected: dict[str, int], tmp_path: Path
) -> None:
    config = caching.config(tmp_path, warmup="blocking")
    ranks = caching.start_ranks(data, config, 1, 2)
    results = caching.run_epoch(ranks)
    assert caching.merged(results) == expected
    assert tiers(results)["local"] == len(split)
    assert filled_from_storage(results) == caching.split_nbytes(split)
    for rank in ranks:
        rank.end()
