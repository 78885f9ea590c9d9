"""The arena's file: names, locks, stale ones, half-written ones; and the memory budget."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import caching
import numpy as np
import packing
import pytest
from small_arena import RECORDS, SIZES, SPLIT, own

from msdata.cache.arena import Arena, arena_path, remove_stale_arenas
from msdata.cache.budget import free_memory, memory_budget
from msdata.cache.config import GIB, CacheConfig
from msdata.cache.shared_file import role
from msdata.cache.slot_file import CLAIMED, EMPTY, READY
from msdata.errors import StorageError, UsageError

KILLED = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
import small_arena as t
from msdata.cache.arena import Arena
from msdata.cache.config import CacheConfig
config = CacheConfig(shm_dir=Path(sys.argv[2]), job=sys.argv[3], memory_gib=1)
arena = Arena(config, t.SPLIT, 0, t.own)
arena.slots.publish(4, 7, int(t.SPLIT.checksums[7]), [t.RECORDS[7]])
print("there", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return caching.config(tmp_path, memory_gib=1)


@pytest.fixture
def arena(config: CacheConfig) -> Iterator[Arena]:
    arena = Arena(config, SPLIT, 0, own)
    yield arena
    arena.close()


def start_other(config: CacheConfig, job: str) -> subprocess.Popen[str]:
    """Another process with an arena that holds sample 7 in slot 4."""
    here = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, here, str(config.shm_dir), job],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=packing.environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n", process.communicate()
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_jobs_users_data_sets_splits_and_nodes_have_names_of_their_own(
    config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {
        arena_path(config, SPLIT, 0),
        arena_path(config, SPLIT, 1),
        arena_path(replace(config, node="a"), SPLIT, 0),
        arena_path(replace(config, job="other"), SPLIT, 0),
        arena_path(config, replace(SPLIT, fingerprint="e" * 16), 0),
        arena_path(config, replace(SPLIT, name="val"), 0),
    }
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    paths.add(arena_path(config, SPLIT, 0))
    assert len(paths) == 7
    assert all(p.parent == config.shm_dir for p in paths)


def test_a_job_name_with_slashes_stays_within_the_folder(config: CacheConfig) -> None:
    path = arena_path(replace(config, job="../../etc/x" * 40), SPLIT, 0)
    assert path.parent == config.shm_dir
    assert len(path.name) < 200


def test_an_arena_is_for_its_user_only(arena: Arena) -> None:
    assert arena.path.stat().st_mode & 0o777 == 0o600


def test_slots_are_those_of_the_shards_that_the_node_owns(arena: Arena) -> None:
    samples = np.arange(12)
    shards = np.repeat(np.arange(3), SIZES)
    assert arena.slots.slots(samples, shards).tolist() == [-1] * 3 + list(range(9))
    assert arena.slots.slots_of_shard(2) == (range(4, 9), 7)
    assert arena.slots.num_slots == 9


def test_a_slot_is_seen_by_others_when_it_is_whole_and_not_before(
    arena: Arena, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Arena(config, SPLIT, 0, own)
    slot, sample = np.array([0]), np.array([3])
    checksum = SPLIT.checksums[sample]
    with monkeypatch.context() as patch:
        patch.setattr(arena.slots, "set_state", lambda slot, state: None)
        arena.slots.publish(0, 3, int(checksum[0]), [RECORDS[3]])
        assert not other.slots.are_ready(slot, sample, checksum)[0]
    arena.slots.publish(0, 3, int(checksum[0]), [RECORDS[3][:20], RECORDS[3][20:]])
    assert other.slots.are_ready(slot, sample, checksum)[0]
    assert other.slots.record(0).tobytes() == RECORDS[3].tobytes()
    assert other.slots.num_ready == 1
    other.close()


def test_a_slot_with_another_sample_or_checksum_is_not_ready(arena: Arena) -> None:
    arena.slots.publish(0, 3, int(SPLIT.checksums[3]), [RECORDS[3]])
    slots, samples = np.array([0, 0, -1]), np.array([3, 4, 3])
    ready = arena.slots.are_ready(slots, samples, SPLIT.checksums[samples])
    assert ready.tolist() == [True, False, False]
    wrong = SPLIT.checksums[[3]] ^ np.uint32(1)
    assert not arena.slots.are_ready(slots[:1], samples[:1], wrong)[0]


def test_readers_cannot_write_into_the_map(arena: Arena) -> None:
    with pytest.raises(ValueError, match="read-only"):
        arena.slots.record(0)[:] = 0


def test_a_claimed_slot_is_not_ready(arena: Arena) -> None:
    arena.slots.set_state(2, CLAIMED)
    assert arena.slots.state(2) == CLAIMED
    arena.slots.set_state(2, EMPTY)
    assert arena.slots.num_ready == 0


def test_the_last_to_leave_removes_the_arena(config: CacheConfig) -> None:
    first, second = (Arena(config, SPLIT, 0, own) for _ in range(2))
    assert first.is_made_here
    assert not second.is_made_here
    first.close()
    assert second.path.exists()
    second.close()
    assert not list(caching.names_in(config.shm_dir))


def test_a_process_that_ends_without_closing_leaves_nothing(config: CacheConfig) -> None:
    process = start_other(config, "other")
    assert len(list(caching.names_in(config.shm_dir))) == 1
    process.communicate("end\n")
    assert process.returncode == 0
    assert not list(caching.names_in(config.shm_dir))


def test_a_forked_child_that_ends_takes_nothing_from_its_parent(arena: Arena) -> None:
    pid = os.fork()
    if not pid:
        arena.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert arena.path.exists()
    assert remove_stale_arenas(arena.path.parent, "third") == []


def test_the_arena_of_a_killed_job_is_removed_by_the_next_start_of_any_other(
    config: CacheConfig,
) -> None:
    process = start_other(config, "dead")
    assert remove_stale_arenas(config.shm_dir, "test") == []
    end(process)
    arena = Arena(config, SPLIT, 0, own)
    assert [p.name.split("-")[2] for p in arena.removed] == ["dead"]
    assert list(caching.names_in(config.shm_dir)) == [arena.path.name]
    arena.close()


def test_the_next_start_of_a_killed_job_reuses_its_content(config: CacheConfig) -> None:
    end(start_other(config, "test"))
    arena = Arena(config, SPLIT, 0, own)
    assert not arena.is_made_here
    assert arena.slots.num_ready == 1
    assert arena.slots.record(4).tobytes() == RECORDS[7].tobytes()
    arena.close()


def test_the_next_start_with_another_size_makes_the_arena_anew(config: CacheConfig) -> None:
    end(start_other(config, "test"))
    arena = Arena(replace(config, memory_gib=0.5), SPLIT, 0, own)
    assert arena.is_made_here
    assert arena.slots.num_ready == 0
    arena.close()


@pytest.mark.parametrize("content", [b"", b"msdatacache", b"msdatacache\0{", b"x" * 5000])
def test_an_arena_whose_maker_was_killed_half_way_is_made_anew(
    config: CacheConfig, content: bytes
) -> None:
    path = arena_path(config, SPLIT, 0)
    path.write_bytes(content)
    path.chmod(0o600)
    arena = Arena(config, SPLIT, 0, own)
    assert arena.is_made_here
    arena.close()


def test_a_name_that_others_may_open_is_refused(config: CacheConfig) -> None:
    path = arena_path(config, SPLIT, 0)
    path.write_bytes(b"")
    path.chmod(0o666)
    with pytest.raises(StorageError, match="others may open it"):
        Arena(config, SPLIT, 0, own)
    assert path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_another_users_file_of_that_name_is_refused_and_stays(config: CacheConfig) -> None:
    path = arena_path(config, SPLIT, 0)
    path.write_bytes(b"theirs")
    path.chmod(0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(StorageError, match="belongs to another user"):
        Arena(config, SPLIT, 0, own)
    assert remove_stale_arenas(config.shm_dir, "any") == []
    assert path.read_bytes() == b"theirs"


def test_a_link_in_place_of_the_arena_is_refused(config: CacheConfig, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    arena_path(config, SPLIT, 0).symlink_to(target)
    with pytest.raises(StorageError, match="is a symbolic link"):
        Arena(config, SPLIT, 0, own)
    assert target.read_bytes() == b"precious"


def test_an_arena_in_use_by_another_version_is_refused(arena: Arena, config: CacheConfig) -> None:
    with pytest.raises(StorageError, match="incompatible processes use it"):
        Arena(config, replace(SPLIT, record_nbytes=SPLIT.record_nbytes // 2), 0, own)
    assert arena.path.exists()


def test_an_arena_deleted_in_use_still_works_and_the_name_is_free_for_another(
    config: CacheConfig,
) -> None:
    first = Arena(config, SPLIT, 0, own)
    first.path.unlink()
    first.slots.publish(0, 3, int(SPLIT.checksums[3]), [RECORDS[3]])
    assert first.slots.state(0) == READY
    second = Arena(config, SPLIT, 0, own)
    assert second.slots.num_ready == 0
    first.close()
    assert second.path.exists()
    second.close()
    assert not list(caching.names_in(config.shm_dir))


def test_a_role_is_held_by_one_process_and_ends_with_it(arena: Arena, config: CacheConfig) -> None:
    other = Arena(config, SPLIT, 0, own)
    with role(arena.slots.fd, 3) as first, role(other.slots.fd, 3) as second:
        assert (first, second) == (True, False)
        with role(other.slots.fd, 4) as third:
            assert third
    with role(other.slots.fd, 3) as now:
        assert now
    other.close()


def test_looking_for_missing_slots_takes_no_memory(config: CacheConfig) -> None:
    sizes = np.array([1000, 1000, 1000])
    split = replace(
        SPLIT,
        record_nbytes=np.broadcast_to(1 << 16, 3000),
        shard_sizes=sizes,
        checksums=np.zeros(3000, np.uint32),
    )
    arena = Arena(config, split, 0, own)
    assert arena.slots.num_ready == 0
    arena.slots.are_ready(np.arange(2000), np.arange(1000, 3000), split.checksums[1000:])
    assert arena.path.stat().st_blocks * 512 < 1 << 20 < arena.path.stat().st_size
    arena.close()


def test_many_that_start_at_once_share_one_arena(config: CacheConfig) -> None:
    processes = [start_other(config, "test") for _ in range(3)]
    assert len(list(caching.names_in(config.shm_dir))) == 1
    for process in processes:
        process.communicate("end\n")
    assert not list(caching.names_in(config.shm_dir))


def cgroup(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


@pytest.mark.parametrize(
    ("line", "files"),
    [
        (
            "0::/slurm/job_1/step_0",
            {
                "slurm/job_1/step_0/memory.max": "max",
                "slurm/job_1/step_0/memory.current": 3000,
                "slurm/job_1/memory.max": 10000,
                "slurm/job_1/memory.current": 6000,
                "slurm/job_1/memory.stat": "inactive_file 1000\nactive_file 500\nshmem 700",
            },
        ),
        (
            "4:cpu,memory:/slurm/job_1",
            {
                "memory/slurm/job_1/memory.limit_in_bytes": 10000,
                "memory/slurm/job_1/memory.usage_in_bytes": 6000,
                "memory/slurm/job_1/memory.stat": "total_inactive_file 1000\ntotal_active_file 500",
                "memory/memory.limit_in_bytes": 1 << 62,
                "memory/memory.usage_in_bytes": 9000,
            },
        ),
        # In a container the path is the host's, the mount is the container's own.
        ("0::/kubepods/pod7", {"memory.max": 8000, "memory.current": 2500}),
    ],
)
def test_the_budget_is_what_the_cgroups_limit_leaves_but_for_droppable_file_cache(
    tmp_path: Path, line: str, files: dict[str, object]
) -> None:
    proc = cgroup(tmp_path / "proc", {"meminfo": "MemAvailable: 900000 kB", "self/cgroup": line})
    assert free_memory(cgroup(tmp_path / "cgroup", files), proc) == 5500


def test_without_limits_the_budget_is_what_the_machine_has_available(tmp_path: Path) -> None:
    proc = cgroup(tmp_path, {"meminfo": "MemAvailable: 900 kB", "self/cgroup": "0::/"})
    assert free_memory(tmp_path / "none", proc) == 900 * 1024


def test_auto_leaves_a_quarter_and_a_number_is_cut_to_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msdata.cache.budget.free_memory", lambda: 1000)
    assert memory_budget(None, tmp_path) == (750, 750)
    assert memory_budget(900, tmp_path) == (900, 900)
    assert memory_budget(4000, tmp_path) == (4000, 950)


@pytest.mark.parametrize(
    "options",
    [{"memory_gib": -1}, {"warmup": "never"}, {"ssd_gib": 1.0}, {"ssd_dir": Path("/x")}],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CacheConfig(**options)  # type: ignore[arg-type]


def test_a_gib_is_two_to_the_thirtieth() -> None:
    assert CacheConfig(memory_gib=0.5).memory_nbytes == GIB // 2
