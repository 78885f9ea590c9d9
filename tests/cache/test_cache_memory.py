"""Memory of a node: the cache, the batches and the indices of its ranks fit into it together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import caching
import numpy as np
import packing
import pytest
import raw_dataset

import msdata
from msdata.cache.budget import memory_budget
from msdata.cache.config import GIB
from msdata.dataset.dataset import Split
from msdata.loader.node_cache import _warn_of_too_little
from msdata.schema import MANTIS_SHRIMP
from msdata.topology import Topology

LIMIT_NBYTES = 500 << 20
# 475 MB of samples, in batches whose ring takes 147 MB.
SHARD_SIZES = (200,) * 4
CGROUPS = Path("/sys/fs/cgroup")

EPOCHS = """
import json, os, sys
open(sys.argv[3], "w").write(str(os.getpid()))
import msdata
split = msdata.open(sys.argv[1]).split("train")
cache = msdata.CacheConfig(memory_gib=1.0, shm_dir=sys.argv[2], job="test", warmup="blocking")
with msdata.Loader(split, 32, threads=2, cache=cache) as loader:
    count = sum(len(batch["sample_id"]) for _ in range(2) for batch in loader)
    print(json.dumps({"count": count, "filled": loader.stats()["cache"]["local"]["filled"]}))
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """The file that a process writes its number into, to be limited from then on."""
    is_v1 = (CGROUPS / "memory").is_dir()
    folder = (CGROUPS / "memory" if is_v1 else CGROUPS) / f"msdata-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if is_v1 else "memory.max"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(LIMIT_NBYTES))
    except OSError as error:
        pytest.skip(f"no cgroup with a limit of memory can be made here: {error}")
    try:
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


def test_a_cache_that_is_asked_for_more_than_there_is_leaves_room_for_the_batches(
    cgroup: Path, tmp_path: Path
) -> None:
    data = raw_dataset.write_raw(tmp_path / "data", MANTIS_SHRIMP, SHARD_SIZES, has_checksums=True)
    shm = Path(tempfile.mkdtemp(prefix="msdata-test-", dir="/dev/shm"))
    try:
        process = subprocess.run(
            [sys.executable, "-c", EPOCHS, str(data), str(shm), str(cgroup)],
            capture_output=True,
            text=True,
            timeout=120,
            env=packing.environment(),
        )
    finally:
        shutil.rmtree(shm)
        shutil.rmtree(data)
    assert process.returncode == 0, process.stderr
    assert "memory_gib asks for 1.00 GiB, but shared memory and cgroup have" in process.stderr
    assert "besides 0.14 GiB for batches and indices" in process.stderr
    found = json.loads(process.stdout)
    assert found["count"] == 2 * sum(SHARD_SIZES)
    assert 0 < found["filled"] < sum(SHARD_SIZES)


@pytest.fixture
def split(packed: Callable[..., Path], tiny_source: Path) -> Split:
    return msdata.open(packed(tiny_source, *packing.TINY_SHARDS)).split("train")


@pytest.mark.parametrize("ranks_per_node", [1, 4])
def test_all_ranks_of_the_node_count(split: Split, tmp_path: Path, ranks_per_node: int) -> None:
    topology = Topology(num_nodes=1, ranks_per_node=ranks_per_node, rank=0)
    config = caching.config(tmp_path, reserved_nbytes=1000)
    with msdata.Loader(split, 8, cache=config, topology=topology) as loader:
        assert loader._cache.client is not None
        rank_nbytes = loader.ring_nbytes + 64 * len(split)
        reserved = loader._cache.client.config.reserved_nbytes
        assert reserved == 1000 + ranks_per_node * rank_nbytes


def test_what_ranks_know_of_coded_records_is_reserved_too(
    packed: Callable[..., Path], tiny_source: Path, tmp_path: Path
) -> None:
    data = packed(tiny_source, *packing.TINY_SHARDS, *caching.CODED.split())
    split = msdata.open(data).split("train")
    with msdata.Loader(split, 8, cache=caching.config(tmp_path)) as loader:
        client = loader._cache.client
        assert client is not None
        known = [split.record_nbytes, split.array_nbytes, split.steps("image")]
        known += [client.split.starts._starts, np.empty((len(split), 2), np.int64)]
        nbytes = sum(a.nbytes for a in known) // len(split)
        reserved = client.config.reserved_nbytes - loader.ring_nbytes
        assert 64 + nbytes <= reserved / len(split) <= 64 + 1.1 * nbytes


def test_what_is_reserved_is_taken_from_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msdata.cache.budget.free_memory", lambda: 1000)
    assert memory_budget(4000, tmp_path, 600) == (4000, 380)
    assert memory_budget(300, tmp_path, 600) == (300, 300)
    assert memory_budget(None, tmp_path, 600) == (380, 380)
    assert memory_budget(None, tmp_path, 100) == (750, 750)
    assert memory_budget(4000, tmp_path, 5000) == (4000, 0)


def test_ranks_say_that_a_services_arena_leaves_too_little(
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("msdata.cache.filler.Filler._fill_all", lambda self: None)
    with msdata.Loader(split, 8, cache=caching.config(tmp_path)) as loader:
        client = loader._cache.client
        assert client is not None
        missing = caching.split_nbytes(split)
        monkeypatch.setattr("msdata.loader.node_cache.free_memory", lambda: 2 * GIB + missing)
        _warn_of_too_little(client, 2 * GIB)
        assert not caplog.records
        _warn_of_too_little(client, 2 * GIB + 1)
    assert "2.00 GiB are free" in caplog.text
    assert "batches and indices of this node's ranks 2.00 GiB" in caplog.text
