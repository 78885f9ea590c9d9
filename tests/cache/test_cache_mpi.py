"""Services under mpiexec and ranks beside them, all real processes on simulated nodes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import caching
import numpy as np
import packing
import pytest
from services import Services

import msdata
import msdata.loader.node_cache
from msdata.cache.config import GIB, CacheConfig
from msdata.cache.stale_shm import remove_dead_shared_memory
from msdata.cache.transport.link import PAUSE_S, describe_service, link_address
from msdata.cli import main
from msdata.cluster.probe import drop_from_cache
from msdata.dataset.dataset import Split
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
    data = packed(tiny_source, *packing.TINY_SHARDS, *caching.CODED.split(), "--split", "1,0,0")
    return msdata.open(data).split("train")


@pytest.fixture(scope="module")
def expected(split: Split) -> dict[str, int]:
    return caching.digests(split)


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


def job_of(
    split: Split, policy: str, memory: Sequence[int], ranks_per_node: int, ssd_nbytes: int = 0
) -> Job:
    """What `msdata plan` is told."""
    num_nodes = len(memory)
    return Job(
        topology=Topology(num_nodes=num_nodes, ranks_per_node=ranks_per_node),
        nodes=Nodes(
            memory_bytes=np.array(memory, np.int64),
            ssd_bytes=np.full(num_nodes, ssd_nbytes, np.int64),
            keys=np.arange(num_nodes, dtype=np.uint64),
        ),
        shard_sizes=split.shard_sizes,
        sample_bytes=split.record_nbytes,
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
        assert tiers_of(result) == count_tiers(alone, job, owners)[0][node].tolist()
    if epoch == 0:
        return  # the forecast of that one is of caches that fill meanwhile
    by_node = np.array([tiers_of(r) for r in results]).reshape(job.topology.num_nodes, -1, 4)
    predicted = forecast_epoch(job, owners, epoch).tier_samples
    assert by_node.sum(axis=1).tolist() == predicted.tolist()


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
    with Services(data, config.shm_dir, memory, "--warmup", "blocking") as services:
        for policy in ("shuffle", "locality", "block"):
            ranks = caching.start_ranks(data, config, NODES, RANKS_PER_NODE, policy=policy)
            job = job_of(split, policy, memory, RANKS_PER_NODE)
            for epoch in range(2):
                results = caching.run_epoch(ranks)
                assert caching.merged(results) == expected
                assert_as_forecast(split, job, epoch, results)
                hits = len(split) - total(results)["storage"]
                room = min(1, share) * len(split)
                assert room - NODES * split.shard_sizes.max() < hits <= room
            for rank in ranks:
                rank.end()
        services.terminate(0)
    assert not list(caching.names_in(config.shm_dir))


def start_epoch(ranks: Sequence[caching.Rank], num_steps: int) -> list[list[dict[str, Any]]]:
    """Starts an epoch, and waits until each rank has made some steps."""
    for rank in ranks:
        rank.start_epoch()
    return [[rank.read() for _ in range(num_steps)] for rank in ranks]


def end_epoch(
    ranks: Sequence[caching.Rank], begun: list[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The epoch's results, those of its first steps included."""
    results = [rank.end_epoch() for rank in ranks]
    for result, steps in zip(results, begun, strict=True):
        for step in steps:
            assert not result["digests"].keys() & step["digests"].keys()
            result["digests"] |= step["digests"]
    return results


def total(results: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Samples by tier over all ranks."""
    found = np.array([tiers_of(r) for r in results]).sum(axis=0).tolist()
    return dict(zip(("local", "ssd", "peer", "storage"), found, strict=True))


@pytest.mark.parametrize("policy", ["shuffle", "locality"])
def test_what_peers_keep_on_their_disks_comes_from_there(
    split: Split, expected: dict[str, int], config: CacheConfig, tmp_path: Path, policy: str
) -> None:
    memory = capacities(split, 0.3, (2, 1))
    ssd_gib = caching.gib_of(split, 0.2)
    options = ("--ssd-dir", str(tmp_path / "ssd"), "--ssd-gib", repr(ssd_gib))
    data = split.dataset.path
    job = job_of(split, policy, memory, 2, int(ssd_gib * GIB))
    with Services(data, config.shm_dir, memory, "--warmup", "blocking", *options):
        ranks = caching.start_ranks(data, config, 2, 2, policy=policy)
        for epoch in range(2):
            results = caching.run_epoch(ranks)
            assert caching.merged(results) == expected
            assert_as_forecast(split, job, epoch, results)
        assert total(results)["ssd"] > 0
        for rank in ranks:
            rank.end()


def assert_nameless(services: Services) -> None:
    """MPI's shared memory had no name while the services ran, so none is left however they end."""
    assert services.mpi_memory
    assert all(name.endswith(" (deleted)") for name in services.mpi_memory)


@pytest.mark.parametrize("killed", [(1,), (0, 1, 2)])
def test_ranks_go_on_when_services_are_killed_and_leave_nothing(
    split: Split, expected: dict[str, int], config: CacheConfig, killed: tuple[int, ...]
) -> None:
    memory = capacities(split, 1.1, (1, 1, 1))
    data = split.dataset.path
    with Services(data, config.shm_dir, memory, "--warmup", "blocking") as services:
        ranks = caching.start_ranks(data, config, 3, 1, step_s=0.05)
        before = caching.run_epoch(ranks)
        begun = start_epoch(ranks, 3)
        services.kill(*killed)
        after = end_epoch(ranks, begun)
        code, _ = services.wait()
        assert code != 0
    assert caching.merged(before) == caching.merged(after) == expected
    assert total(before)["storage"] == 0
    assert total(after)["storage"] > 0
    for result, earlier in zip(after, before, strict=True):
        # Its own node's memory stays with it.
        assert tiers_of(result)[0] > 0
        assert result["stats"]["wait_s"] < earlier["stats"]["wait_s"] + 5
        assert result["stats"]["cache"]["peers"]["failures"] > 0
        (warning,) = result["warnings"]
        assert "the cache service of this node does not answer" in warning
    again = caching.run_epoch(ranks)
    assert caching.merged(again) == expected
    assert total(again)["peer"] == 0
    assert total(again)["local"] > 0
    assert all(len(result["warnings"]) == 1 for result in again)
    for rank in ranks:
        rank.end()
    assert not list(caching.names_in(config.shm_dir))
    assert_nameless(services)


def test_the_job_of_a_killed_rank_resumes_from_memory(
    split: Split, expected: dict[str, int], config: CacheConfig
) -> None:
    memory = capacities(split, 1.1, (1, 1))
    data = split.dataset.path
    with Services(data, config.shm_dir, memory, "--warmup", "blocking"):
        ranks = caching.start_ranks(data, config, 2, 2, step_s=0.05)
        begun = start_epoch(ranks, 3)
        ranks[1].kill()
        # torchrun ends the others and restarts all, which resume after the last whole step.
        for rank in (ranks[0], *ranks[2:]):
            rank.kill()
        state = begun[0][-1]["state"]
        again = caching.start_ranks(data, config, 2, 2, state=state)
        results = caching.run_epoch(again)
        assert total(results)["storage"] == 0
        found = caching.merged(results)
        for steps in begun:
            for step in steps:
                assert not found.keys() & step["digests"].keys()
                found |= step["digests"]
        assert found == expected
        for rank in again:
            rank.end()


def test_services_that_are_started_again_take_up_the_arenas_in_use(
    split: Split, expected: dict[str, int], config: CacheConfig
) -> None:
    memory = capacities(split, 0.7, (3, 1, 2))
    data = split.dataset.path
    with Services(data, config.shm_dir, memory, "--warmup", "blocking") as services:
        ranks = caching.start_ranks(data, config, 3, 1, policy="shuffle")
        caching.run_epoch(ranks)
        services.kill(0, 1, 2)
        services.wait()
    assert caching.merged(caching.run_epoch(ranks)) == expected
    # Other sizes are asked for; what ranks use already stays as it is.
    with Services(data, config.shm_dir, capacities(split, 1, (1, 1, 1)), "--warmup", "blocking"):
        time.sleep(PAUSE_S + 0.5)
        # Requests of the first epoch find out that the services are back.
        for _ in range(2):
            results = caching.run_epoch(ranks)
            assert caching.merged(results) == expected
        assert_as_forecast(split, job_of(split, "shuffle", memory, 1), 3, results)
        for rank in ranks:
            rank.end()


def test_the_next_start_and_clean_remove_what_a_killed_job_left(
    split: Split, config: CacheConfig
) -> None:
    data = split.dataset.path
    folder = config.shm_dir
    memory = capacities(split, 1.1, (1, 1))
    for is_cleaned_by_hand in (False, True):
        services = Services(data, folder, memory)
        ranks = caching.start_ranks(data, config, 2, 1)
        caching.run_epoch(ranks)
        for rank in ranks:
            rank.kill()
        services.kill(0, 1)
        services.wait()
        left = set(caching.names_in(folder))
        assert len(left) == 2
        if is_cleaned_by_hand:
            command = [sys.executable, "-m", "msdata", "cache", "clean", "--shm-dir", str(folder)]
            (folder / "mpich_shm_of_a_dead_process_0").write_bytes(b"x")
            assert packing.run(command).stdout.count("removed") == 3
        else:
            with msdata.Loader(split, caching.BATCH, cache=replace(config, job="next")):
                assert not left & set(caching.names_in(folder))
        assert not list(folder.iterdir())
    remove_dead_shared_memory()


@pytest.mark.parametrize(
    ("num_nodes", "container"),
    [*((n, c) for n in (1, 2, 3, 4) for c in ("tar", "hdf5")), (3, "coded")],
)
def test_batches_of_any_number_of_nodes_are_those_without_a_cache_byte_for_byte(
    packed: Callable[..., Path],
    tiny_source: Path,
    config: CacheConfig,
    num_nodes: int,
    container: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A busy machine takes longer than a product should wait.
    patient = partial(msdata.loader.node_cache.LinkFetcher, timeout_s=60.0)
    monkeypatch.setattr("msdata.loader.node_cache.LinkFetcher", patient)
    coding = ("--quantize", "4", "--compress", "lz4") if container == "coded" else ()
    form = "tar" if coding else container
    data = packed(tiny_source, *packing.TINY_SHARDS, "--format", form, *coding)
    train = msdata.open(data).split("train")
    assert (len(set(train.record_nbytes.tolist())) > 1) == bool(coding)
    # A quarter of the cache would hold none of the four HDF5 shards; a third holds one.
    memory = capacities(train, 0.8, [2, 1, 2, 1][:num_nodes])
    found = dict.fromkeys(("local", "ssd", "peer", "storage"), 0)
    with Services(data, config.shm_dir, memory, "--warmup", "blocking"):
        for rank in range(num_nodes):
            options = {"topology": Topology(num_nodes=num_nodes, rank=rank), "threads": 2}
            with (
                msdata.Loader(train, caching.BATCH, cache=config, **options) as cached,
                msdata.Loader(train, caching.BATCH, **options) as plain,
            ):
                for _ in range(2):
                    caching.assert_same_batches(caching.copies(cached), caching.copies(plain))
                for name, count in cached.stats()["tiers"].items():
                    found[name] += count["samples"]
    assert min(found["local"], found["storage"]) > 0
    assert (found["peer"] > 0) == (num_nodes > 1)


def read_bytes(pid: int) -> int:
    """What the kernel has fetched from disks for a process."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def test_a_data_set_that_fits_is_read_from_storage_once_by_the_programs_and_the_kernels_count(
    packed: Callable[..., Path], mantis_source: Path, config: CacheConfig
) -> None:
    data = packed(mantis_source, "--split", "1,0,0", "--shard-size", "2MiB")
    train = msdata.open(data).split("train")
    for path in train.shard_paths:
        drop_from_cache(path)
    memory = capacities(train, 1.4, (1, 1))
    with Services(data, config.shm_dir, memory) as services:
        ranks = caching.start_ranks(data, config, 2, 1)
        before = sum(read_bytes(pid) for pid in services.pids)
        results = [caching.run_epoch(ranks) for _ in range(3)][-1]
        filled = [describe_service(link_address(path)) for path in services.arenas]
        by_kernel = sum(read_bytes(pid) for pid in services.pids)
        by_kernel += sum(read_bytes(rank.process.pid) for rank in ranks) - before
        for rank in ranks:
            rank.end()
    nbytes = caching.split_nbytes(train)
    read = sum(r["stats"]["totals"]["storage"]["bytes"] for r in results)
    read += sum(f["filled_samples"] * train.schema.sample_nbytes for f in filled if f)
    read += sum(r["stats"]["cache"]["filler"]["bytes"] for r in results)
    assert total(results)["storage"] == 0
    assert nbytes <= read <= 1.05 * nbytes
    # Programs start meanwhile; what they are made of has been read before, as a rule.
    assert by_kernel <= 1.05 * nbytes + (4 << 20), (by_kernel, nbytes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--memory-gib", "much"), "must be a size in GiB >= 0, got 'much'"),
        (("--memory-gib", "nan"), "must be a size in GiB >= 0, got 'nan'"),
        (("--ssd-gib", "1"), "needs both ssd_dir and ssd_gib, got None and 1.0"),
        (("--transport", "zmq"), "needs --peers-dir"),
        (("--nodes", "2"), "need --transport zmq"),
        (("--peers-dir", "x", "--nodes", "0"), "--nodes must be at least 1, got 0"),
        (("--split", "none"), "has no split 'none'"),
        (("--shm-dir", "/none"), "cannot keep a cache in /none: it does not exist"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    split: Split, options: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["cache", "serve", str(split.dataset.path), "--job", "odd", *options])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == (1 if "cannot" in says else 2)
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_services_fail_together_and_one_of_them_says_why(split: Split, tmp_path: Path) -> None:
    serve = [sys.executable, "-m", "msdata", "cache", "serve", str(split.dataset.path)]
    serve += ["--job", "test", "--memory-gib", "0.001", "--shm-dir"]
    launcher = [str(packing.mpiexec()), "-n", "1", *serve, str(tmp_path), ":", "-n", "2"]
    process = packing.run([*launcher, *serve, str(tmp_path / "none")])
    assert process.returncode == 1
    said = [line for line in process.stderr.splitlines() if line.startswith("msdata")]
    assert len(said) == 1, process.stderr
    assert "none: it does not exist" in said[0]
    assert not list(caching.names_in(tmp_path))


def test_a_second_service_of_the_same_job_is_refused(split: Split, config: CacheConfig) -> None:
    memory = capacities(split, 1, (1,))
    serve = [sys.executable, "-m", "msdata", "cache", "serve", str(split.dataset.path)]
    with Services(split.dataset.path, config.shm_dir, memory):
        process = packing.run([*serve, "--job", "test", "--shm-dir", str(config.shm_dir)])
        assert process.returncode == 1
        assert "another service of job test runs on this node" in process.stderr


@pytest.mark.parametrize("told", [(1,), (0, 1, 2)])
def test_services_end_together_when_one_or_all_are_told_to_and_leave_nothing(
    split: Split, config: CacheConfig, told: tuple[int, ...]
) -> None:
    memory = capacities(split, 1, (1, 1, 1))
    with Services(split.dataset.path, config.shm_dir, memory) as services:
        code, errors = services.terminate(*told)
    assert errors == "msdata cache: interrupted; arenas that ranks still use stay with them\n"
    assert code == 128 + 15
    assert not list(caching.names_in(config.shm_dir))
    assert_nameless(services)
