"""The cache in the loader of one process: same batches, right counters, no fault gets through."""

from __future__ import annotations

import errno
import gc
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import caching
import loading
import numpy as np
import packing
import pytest

import msdata
from msdata.cache.arena import SSD_TIER, Arena
from msdata.cache.client import LOCAL, SSD
from msdata.cache.config import CacheConfig
from msdata.cache.filler import CLAIM_PATIENCE_S, STALL_S
from msdata.cache.shared_file import role
from msdata.cache.slot_file import READY, SlotFile
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from msdata.topology import Topology

SHARES = (0.25, 0.5, 1.0)


@pytest.fixture(params=caching.LAYOUTS)
def split(request: Any, packed: Callable[..., Path], tiny_source: Path) -> Split:
    return open_split(packed(tiny_source, *packing.TINY_SHARDS, *request.param.split()))


@pytest.fixture
def tar(packed: Callable[..., Path], tiny_source: Path) -> Split:
    return open_split(packed(tiny_source, *packing.TINY_SHARDS, "--format", "tar"))


def open_split(path: Path) -> Split:
    return msdata.open(path).split("train")


def make(split: Split, cache: Any, **options: Any) -> msdata.Loader:
    return msdata.Loader(split, caching.BATCH, **{"threads": 2, "cache": cache, **options})


def epochs(split: Split, cache: Any, count: int = 2, **options: Any) -> list[Any]:
    with make(split, cache, **options) as loader:
        return [caching.copies(loader) for _ in range(count)]


def wait_until_full(loader: msdata.Loader) -> None:
    """Waits until the filler has done what it can: nothing, where it is held."""
    deadline = time.monotonic() + 60
    while not loader.stats()["cache"]["filler"]["is_done"]:
        assert time.monotonic() < deadline, loader.stats()
        time.sleep(0.01)


def tier_samples(loader: msdata.Loader) -> dict[str, int]:
    return {name: count["samples"] for name, count in loader.stats()["tiers"].items()}


@contextmanager
def held_filler() -> Iterator[None]:
    """Keeps the fillers of this process from working."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msdata.cache.filler.Filler._fill_all", lambda self: None)
        yield


@pytest.fixture
def no_filler() -> Iterator[None]:
    with held_filler():
        yield


@pytest.fixture(autouse=True)
def impatient_filler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msdata.cache.filler.CLAIM_PATIENCE_S", 0.3)


def assert_said_once(log: pytest.LogCaptureFixture, words: str) -> None:
    said = [r.getMessage() for r in log.records if r.levelno >= logging.WARNING]
    assert len(said) == 1, said
    assert words in said[0]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("is_streaming", [True, False])
def test_batches_with_and_without_a_cache_are_equal_byte_for_byte(
    split: Split, tmp_path: Path, share: float, is_streaming: bool
) -> None:
    expected = epochs(split, None)
    config = caching.config(tmp_path, memory_gib=caching.gib_of(split, share))
    with make(split, config) as loader:
        loader._storage.is_streaming &= is_streaming
        for epoch in expected:
            caching.assert_same_batches(caching.copies(loader), epoch)
            wait_until_full(loader)


def test_samples_of_the_default_schema_are_equal_byte_for_byte(
    packed: Callable[..., Path], mantis_source: Path, tmp_path: Path
) -> None:
    split = open_split(packed(mantis_source, "--split", "1,0,0"))
    options = {"policy": "shuffle", "remainder": "pad", "columns": ["redshift", "ra"]}
    found = epochs(split, caching.config(tmp_path), 3, **options)
    for left, right in zip(found, epochs(split, None, 3, **options), strict=True):
        caching.assert_same_batches(left, right)


@pytest.mark.usefixtures("no_filler")
def test_what_ranks_read_goes_into_the_cache_without_any_filler(
    split: Split, tmp_path: Path
) -> None:
    with make(split, caching.config(tmp_path)) as loader:
        loading.drain(loader)
        assert tier_samples(loader) == {"local": 0, "ssd": 0, "peer": 0, "storage": len(split)}
        loading.drain(loader)
        assert tier_samples(loader) == {"local": len(split), "ssd": 0, "peer": 0, "storage": 0}
        assert loader.stats()["tiers"]["local"]["bytes"] == caching.split_nbytes(split)
        assert loader.stats()["tiers"]["local"]["seconds"] > 0


def test_the_filler_skips_what_ranks_have_read(tar: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path)
    with held_filler():
        first = make(tar, config)
        wait_until_full(first)
        batches = iter(first)
        for _ in range(5):
            next(batches)
        first._cancel()
        num_read = first.stats()["cache"]["local"]["filled"]
    assert 5 * caching.BATCH <= num_read < len(tar)
    with make(tar, config) as second:
        wait_until_full(second)
        filler = second.stats()["cache"]["filler"]
        assert filler["samples"] == len(tar) - num_read
        assert filler["bytes"] == filler["samples"] * tar.schema.sample_nbytes
    first.close()


def test_a_sample_is_read_from_storage_once_over_the_whole_job(tar: Split, tmp_path: Path) -> None:
    with make(tar, caching.config(tmp_path)) as loader:
        read = 0
        for _ in range(4):
            loading.drain(loader)
            read += tier_samples(loader)["storage"]
        wait_until_full(loader)
        read += loader.stats()["cache"]["filler"]["samples"]
    # A record that the filler has begun may be asked for at the same moment.
    assert len(tar) <= read <= len(tar) * 1.05 + 1


def test_stage_fills_the_cache_before_the_first_batch(split: Split, tmp_path: Path) -> None:
    with make(split, caching.config(tmp_path, warmup="blocking")) as loader:
        loading.drain(loader)
        assert tier_samples(loader)["local"] == len(split)
        assert loader.stats()["cache"]["filler"]["samples"] == len(split)


@pytest.mark.parametrize("share", SHARES)
def test_hits_are_the_cached_share_to_within_one_shard(
    tar: Split, tmp_path: Path, share: float
) -> None:
    with make(tar, caching.config(tmp_path, memory_gib=caching.gib_of(tar, share))) as loader:
        wait_until_full(loader)
        loading.drain(loader)
        hits = tier_samples(loader)["local"]
    assert share * len(tar) - tar.shard_sizes.max() < hits <= share * len(tar) + 1e-9


def test_auto_finds_the_nodes_memory_and_leaves_nothing_behind(tar: Split) -> None:
    with make(tar, "auto") as loader:
        made = set(Path("/dev/shm").glob(f"msdata-*-p{os.getpid()}-*"))
        assert made
        wait_until_full(loader)
        loading.drain(loader)
        assert tier_samples(loader)["local"] == len(tar)
    assert not any(path.exists() for path in made)
    assert loader.stats()["tiers"]["local"]["samples"] == len(tar)


def test_two_loaders_of_one_process_share_an_arena(tar: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path)
    with make(tar, config) as first, make(tar, config) as second:
        wait_until_full(first)
        loading.drain(second)
        assert tier_samples(second)["local"] == len(tar)
        assert len(list(caching.names_in(config.shm_dir))) == 1
    assert not list(caching.names_in(config.shm_dir))


def test_a_run_resumes_within_an_epoch_with_a_cache(tar: Split, tmp_path: Path) -> None:
    expected = epochs(tar, None, 1)[0]
    config = caching.config(tmp_path, memory_gib=caching.gib_of(tar, 0.5))
    with make(tar, config) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
    with make(tar, config) as loader:
        loader.load_state_dict(state)
        caching.assert_same_batches(caching.copies(loader), expected[3:])


# The SSD tier.


def ssd_config(split: Split, tmp_path: Path, **options: Any) -> CacheConfig:
    """A quarter in memory, half on SSD."""
    shares = {"memory_gib": caching.gib_of(split, 0.25), "ssd_gib": caching.gib_of(split, 0.5)}
    return caching.config(tmp_path, ssd_dir=tmp_path / "ssd", **shares, **options)


def test_an_ssd_tier_gives_the_same_batches_and_outlives_the_job(
    split: Split, tmp_path: Path
) -> None:
    expected = epochs(split, None)
    for job in ("first", "second"):
        with make(split, ssd_config(split, tmp_path, job=job)) as loader:
            filled_before = loader._cache.client.tiers[SSD].slots.num_ready
            wait_until_full(loader)
            for epoch in expected:
                caching.assert_same_batches(caching.copies(loader), epoch)
            samples = tier_samples(loader)
            stats = loader.stats()["cache"]
        assert samples["local"] == stats["local"]["slots"]
        assert samples["ssd"] == stats["ssd"]["slots"] > len(split) // 3
        assert sum(samples.values()) == len(split)
        if job == "second":
            assert filled_before == stats["ssd"]["slots"]
            assert stats["filler"]["samples"] == stats["local"]["slots"]
    assert len(list((tmp_path / "ssd").rglob("manifest.json"))) == 1


@pytest.mark.parametrize(
    ("memory", "ssd"), [(0.0, 1.1), (0.0, 0.5), (0.5, 0.25), (0.1, 0.7), (1.1, 0.2)]
)
def test_an_ssd_tier_of_other_capacities_gives_what_both_jobs_want(
    split: Split, tmp_path: Path, memory: float, ssd: float
) -> None:
    expected = epochs(split, None)
    with make(split, ssd_config(split, tmp_path, job="first")) as loader:
        wait_until_full(loader)
        first = loader._cache.client.owners[1] == SSD_TIER
    shares = {"memory_gib": caching.gib_of(split, memory), "ssd_gib": caching.gib_of(split, ssd)}
    config = caching.config(tmp_path, ssd_dir=tmp_path / "ssd", job="second", **shares)
    with held_filler(), make(split, config) as loader:
        slots = loader._cache.client.tiers[SSD].slots
        second = loader._cache.client.owners[1] == SSD_TIER
        assert slots.num_ready == split.shard_sizes[first & second].sum()
        assert slots.num_slots == split.shard_sizes[second].sum()
    with make(split, config) as loader:
        wait_until_full(loader)
        for epoch in expected:
            caching.assert_same_batches(caching.copies(loader), epoch)
        stats = loader.stats()
        assert stats["tiers"]["ssd"]["samples"] == slots.num_slots
        assert stats["cache"]["ssd"]["filled"] == stats["cache"]["ssd"]["slots"]
        assert stats["cache"]["ssd"]["corrupt"] == 0


def test_an_ssd_tier_whose_rearrangement_was_interrupted_is_made_anew(
    tar: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs(tar, ssd_config(tar, tmp_path, job="first"), 1)
    config = caching.config(tmp_path, memory_gib=0, ssd_dir=tmp_path / "ssd", ssd_gib=1.0)
    with monkeypatch.context() as patch:

        def die(*arguments: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr("msdata.cache.ssd.build", die)
        assert sum(len(b["sample_id"]) for b in epochs(tar, config, 1)[0]) == len(tar)
    with make(tar, config) as loader:
        wait_until_full(loader)
        caching.assert_same_batches(caching.copies(loader), epochs(tar, None, 1)[0])
        assert loader.stats()["cache"]["ssd"]["filled"] == len(tar)


def test_an_ssd_tier_of_an_older_version_of_the_data_is_not_used(
    packed: Callable[..., Path], tiny_source: Path, tar: Split, tmp_path: Path
) -> None:
    epochs(tar, ssd_config(tar, tmp_path), 1)
    newer = open_split(packed(tiny_source, *packing.TINY_SHARDS, "--seed", "5"))
    assert newer.dataset.manifest.fingerprint != tar.dataset.manifest.fingerprint
    found = epochs(newer, ssd_config(newer, tmp_path), 2)
    for left, right in zip(found, epochs(newer, None), strict=True):
        caching.assert_same_batches(left, right)


def test_records_altered_on_the_ssd_come_from_storage_and_are_counted(
    split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ssd_config(split, tmp_path)
    with make(split, config) as loader:
        wait_until_full(loader)
    records = next((tmp_path / "ssd").rglob("records"))
    with make(split, config) as loader:
        slots = loader._cache.client.tiers[SSD].slots
        kept = np.flatnonzero(slots.entries["state"] == READY)
        with records.open("r+b") as file:
            for slot in kept[[0, 5]].tolist():
                file.seek(slots.record_at(slot) + 7)
                file.write(b"rotten")
        caching.assert_same_batches(caching.copies(loader), epochs(split, None, 1)[0])
        assert loader.stats()["cache"]["ssd"]["corrupt"] == 2
        assert tier_samples(loader)["ssd"] == slots.num_slots - 2
        loading.drain(loader)
        assert tier_samples(loader)["ssd"] == slots.num_slots
    assert_said_once(caplog, "is corrupt")


# Policy `locality`.


def test_locality_deals_the_global_batches_of_shuffle_to_the_ranks(
    tar: Split, tmp_path: Path
) -> None:
    def batches(policy: str, rank: int) -> list[list[str]]:
        topology = Topology(num_nodes=2, ranks_per_node=2, rank=rank)
        config = caching.config(tmp_path, memory_gib=caching.gib_of(tar, 0.3))
        with make(tar, config, policy=policy, topology=topology, remainder="short") as loader:
            return [b["sample_id"].tolist() for b in loader]

    of_shuffle = [batches("shuffle", rank) for rank in range(4)]
    of_locality = [batches("locality", rank) for rank in range(4)]
    assert of_shuffle != of_locality
    for step in range(len(of_shuffle[0])):
        left = sorted(s for rank in of_shuffle for s in rank[step])
        assert left == sorted(s for rank in of_locality for s in rank[step])
        assert [len(r[step]) for r in of_shuffle] == [len(r[step]) for r in of_locality]


@pytest.mark.parametrize("last", ["drop", "pad", "short"])
def test_under_locality_a_rank_gets_what_the_forecast_replays(
    tar: Split, tmp_path: Path, last: str
) -> None:
    from msdata.plan.forecast import Job, assign_job, own_job
    from msdata.plan.ownership import equal_nodes

    topology = Topology(num_nodes=2, ranks_per_node=2, rank=3)
    job = Job(
        topology=topology,
        nodes=equal_nodes(2, memory_bytes=caching.split_nbytes(tar) // 3),
        shard_sizes=tar.shard_sizes,
        sample_bytes=tar.record_nbytes,
        batch_per_rank=caching.BATCH,
        policy="locality",
        last=last,
    )
    config = caching.config(tmp_path, memory_gib=caching.gib_of(tar, 1 / 3))
    with make(tar, config, policy="locality", topology=topology, remainder=last) as loader:
        for epoch in range(2):
            assigned = assign_job(job, own_job(job), epoch)
            ids = [b["sample_id"].tolist() for b in loader]
            expected = [mine[mine >= 0] for mine in assigned.samples[:, 3]]
            assert ids == [[tar.sample_id(int(s)) for s in step] for step in expected]


def test_locality_without_a_cache_is_refused(tar: Split) -> None:
    with pytest.raises(UsageError, match="give the loader one"):
        make(tar, None, policy="locality")


def test_locality_over_nodes_that_take_what_is_free_is_refused(tar: Split, tmp_path: Path) -> None:
    topology = Topology(num_nodes=2, ranks_per_node=1, rank=0)
    config = caching.config(tmp_path, service_wait_s=0.0)
    with pytest.raises(UsageError, match="memory_gib"):
        make(tar, config, policy="locality", topology=topology)
    assert not list(caching.names_in(config.shm_dir))


def test_an_unknown_cache_is_refused(tar: Split) -> None:
    with pytest.raises(UsageError, match="cache must be None, 'auto' or a CacheConfig"):
        make(tar, "yes")


# Faults.


def test_a_loader_that_cannot_be_made_leaves_no_arena(tar: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path)
    for options in ({"columns": ["none"]}, {"policy": "none"}, {"remainder": "none"}):
        with pytest.raises(UsageError):
            make(tar, config, **options)
        gc.collect()
        assert not list(caching.names_in(config.shm_dir))


def test_an_unreferenced_loader_leaves_the_arena(tar: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path)
    next(iter(make(tar, config)))
    gc.collect()
    assert packing.wait_for(lambda: not list(caching.names_in(config.shm_dir)))


def test_without_shared_memory_all_comes_from_storage(
    tar: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = epochs(tar, CacheConfig(shm_dir=tmp_path / "none", job="test"), 1)
    caching.assert_same_batches(found[0], epochs(tar, None, 1)[0])
    assert_said_once(caplog, "all samples come from storage")


def test_the_arena_deleted_under_way_changes_nothing(tar: Split, tmp_path: Path) -> None:
    expected = epochs(tar, None, 2)
    config = caching.config(tmp_path)
    with make(tar, config) as loader:
        batches = iter(loader)
        found = [{k: np.array(v) for k, v in next(batches).items()}]
        for name in caching.names_in(config.shm_dir):
            (config.shm_dir / name).unlink()
        found += [{k: np.array(v) for k, v in batch.items()} for batch in batches]
        caching.assert_same_batches(found, expected[0])
        wait_until_full(loader)
        caching.assert_same_batches(caching.copies(loader), expected[1])
        assert tier_samples(loader)["local"] == len(tar)


@pytest.mark.parametrize("is_streaming", [True, False])
def test_a_record_altered_in_memory_is_found_where_all_are_checked(
    split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_streaming: bool
) -> None:
    expected = epochs(split, None, 2)
    with make(split, caching.config(tmp_path), verify=True) as loader:
        loader._storage.is_streaming &= is_streaming
        wait_until_full(loader)
        slots = loader._cache.client.tiers[LOCAL].slots
        for slot in (3, 4, 50):
            os.pwrite(slots.fd, b"rotten", slots.record_at(slot) + 11)
        caching.assert_same_batches(caching.copies(loader), expected[0])
        assert loader.stats()["cache"]["local"]["corrupt"] == 3
        assert tier_samples(loader)["storage"] == 3
        caching.assert_same_batches(caching.copies(loader), expected[1])
        assert tier_samples(loader)["local"] == len(split)
    assert_said_once(caplog, "is corrupt")


def test_a_slot_whose_entry_is_altered_is_read_from_storage(tar: Split, tmp_path: Path) -> None:
    with make(tar, caching.config(tmp_path)) as loader:
        wait_until_full(loader)
        slots = loader._cache.client.tiers[LOCAL].slots
        os.pwrite(slots.fd, b"\x07", slots._entries_at + 3 * 16)
        caching.assert_same_batches(caching.copies(loader), epochs(tar, None, 1)[0])
        assert tier_samples(loader)["storage"] == 1


def test_shared_memory_that_is_full_gives_a_smaller_cache_and_says_so_once(
    tar: Split,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish, left, lock = SlotFile.publish, iter(range(40)), threading.Lock()

    def publish_until_full(*arguments: Any) -> None:
        # One at a time: all that came before the refusal are there when it is reported.
        with lock:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            publish(*arguments)

    monkeypatch.setattr(SlotFile, "publish", publish_until_full)
    found = epochs(tar, caching.config(tmp_path), 3)
    for left_epoch, right in zip(found, epochs(tar, None, 3), strict=True):
        caching.assert_same_batches(left_epoch, right)
    assert_said_once(caplog, "the cache keeps the 40 of")


def test_more_memory_than_is_free_gives_a_smaller_cache_and_says_so_once(
    tar: Split,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = caching.split_nbytes(tar) // 2
    with make(tar, None) as loader:
        others = loader.ring_nbytes + 64 * len(tar)
    monkeypatch.setattr("msdata.cache.budget.free_memory", lambda: int(most / 0.95) + 1 + others)
    with make(tar, caching.config(tmp_path, memory_gib=1.0)) as loader:
        wait_until_full(loader)
        caching.assert_same_batches(caching.copies(loader), epochs(tar, None, 1)[0])
        assert tier_samples(loader)["local"] == most // tar.schema.sample_nbytes
    assert_said_once(caplog, "the cache is smaller")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system of its own needs root")
def test_a_file_system_that_others_fill_gives_a_smaller_cache(
    tar: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = caching.config(tmp_path)
    size = caching.split_nbytes(tar) + (1 << 20)
    options = f"size={size // 4096 * 4096}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", config.shm_dir], check=True)
    try:
        with held_filler():
            loader = make(tar, config)
            wait_until_full(loader)
        with loader:
            free = os.statvfs(config.shm_dir).f_bavail * 4096
            (config.shm_dir / "others").write_bytes(bytes(free - caching.split_nbytes(tar) // 2))
            found = [caching.copies(loader) for _ in range(2)]
            assert 0 < loader.stats()["cache"]["local"]["filled"] < len(tar)
    finally:
        subprocess.run(["umount", "--lazy", config.shm_dir], check=True)
    for left, right in zip(found, epochs(tar, None), strict=True):
        caching.assert_same_batches(left, right)
    assert_said_once(caplog, "the disk is full")


def test_a_shard_altered_in_storage_is_not_cached_and_fails_as_without_a_cache(
    packed: Callable[..., Path], tiny_source: Path, tmp_path: Path
) -> None:
    data = packed(tiny_source, *packing.TINY_SHARDS, "--seed", "9")
    split = open_split(data)
    offset = int(split.spans.offsets(np.array([20]))[0, 0])
    shard = split.shard_paths[int(split.spans.shards(np.array([20]))[0])]
    content = bytearray(shard.read_bytes())
    content[offset + 3] ^= 0xFF
    shard.write_bytes(content)
    with make(split, caching.config(tmp_path)) as loader:
        wait_until_full(loader)
        with pytest.raises(DataError, match="is corrupt: CRC32C"):
            loading.drain(loader)
        assert loader.stats()["cache"]["local"]["filled"] == len(split) - 1
        assert loader.stats()["cache"]["local"]["refused"] >= 1
    with (
        make(split, caching.config(tmp_path), verify=True) as loader,
        pytest.raises(DataError, match="is corrupt: CRC32C"),
    ):
        loading.drain(loader)


def test_a_corrupt_record_delays_a_second_staged_loader_by_a_few_seconds_only(
    packed: Callable[..., Path], tiny_source: Path, tmp_path: Path
) -> None:
    split = open_split(packed(tiny_source, *packing.TINY_SHARDS, "--seed", "11"))
    shard = split.shard_paths[0]
    content = bytearray(shard.read_bytes())
    content[int(split.spans.offsets(np.array([0]))[0, 0])] ^= 0xFF
    shard.write_bytes(content)
    config = caching.config(tmp_path, warmup="blocking")
    with make(split, config) as first:
        with pytest.raises(DataError, match="is corrupt"):
            loading.drain(first)
        with make(split, config) as second:
            started_s = time.monotonic()
            with pytest.raises(DataError, match="is corrupt"):
                loading.drain(second)
            assert time.monotonic() - started_s < STALL_S - CLAIM_PATIENCE_S


def test_a_filler_that_cannot_read_a_shard_leaves_it_out(
    tar: Split,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import msdata.loader.node_cache

    made = msdata.loader.node_cache.record_reader

    def failing(split: Split) -> Callable[[int], Any]:
        read = made(split)

        def read_or_fail(sample: int) -> Any:
            if sample < split.shard_sizes[0]:
                raise DataError("the first shard is gone; run 'msdata verify'")
            return read(sample)

        return read_or_fail

    monkeypatch.setattr(msdata.loader.node_cache, "record_reader", failing)
    with make(tar, caching.config(tmp_path)) as loader:
        wait_until_full(loader)
        assert loader.stats()["cache"]["filler"]["failed_shards"] == 1
        assert loader.stats()["cache"]["local"]["filled"] == len(tar) - tar.shard_sizes[0]
        caching.assert_same_batches(caching.copies(loader), epochs(tar, None, 1)[0])
        assert loader.stats()["cache"]["local"]["filled"] == len(tar)
    assert_said_once(caplog, "which stays uncached")


def test_a_claim_of_a_killed_rank_is_taken_over(tar: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path)
    with held_filler():
        first = make(tar, config)
        wait_until_full(first)
        first._cache.client.claim(first._cache.client.locate(np.arange(30)))
    with make(tar, config) as second:
        wait_until_full(second)
        assert second.stats()["cache"]["local"]["filled"] == len(tar)
    first.close()


def test_a_filler_waits_while_another_process_fills(tar: Split, tmp_path: Path) -> None:
    config = caching.config(tmp_path)
    with held_filler():
        first = make(tar, config)
        wait_until_full(first)
    slots: SlotFile = first._cache.client.tiers[LOCAL].slots
    assert isinstance(first._cache.client._arena, Arena)
    with role(slots.fd, 0) as mine:
        assert mine
        with make(tar, config) as second:
            time.sleep(0.3)
            assert second.stats()["cache"]["local"]["filled"] == 0
            loading.drain(second)
            assert second.stats()["cache"]["local"]["filled"] == len(tar)
            wait_until_full(second)
    first.close()
