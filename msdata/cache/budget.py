"""Computes how much memory a node can give to the cache.

Both shared memory and the file cache count towards the job's cgroup, but the kernel can drop the
file cache. Free memory is therefore the limit minus the usage plus the droppable file cache, for
every cgroup from this process's up to the root, and never more than the machine or `/dev/shm` has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Share of the free memory that "auto" takes. The rest is for the ranks, which have hardly started
# when the first of them asks, and for the file cache that reading needs.
AUTO_SHARE = 0.75
# Share of the free memory that an explicit size may take: a larger cache would get the job killed.
_MOST = 0.95
_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def memory_budget(
    asked_nbytes: int | None, shm_dir: Path, reserved_nbytes: int = 0
) -> tuple[int, int]:
    """Bytes of shared memory to plan with, and bytes that may really be filled.

    Args:
        asked_nbytes: the size that the user gave; None for "auto".
        shm_dir: the folder for shared memory.
        reserved_nbytes: memory that the node's ranks will need for batches and indices.

    Returns:
        (planned, most): equal for "auto"; `most` is below `planned` if the asked size does not fit.

    Raises:
        OSError: `shm_dir` does not exist.
    """
    file_system = os.statvfs(shm_dir)
    in_shm = int(_MOST * file_system.f_bavail * file_system.f_frsize)
    free = free_memory()
    most = min(in_shm, int(_MOST * max(0, free - reserved_nbytes)))
    if asked_nbytes is None:
        planned = min(most, int(AUTO_SHARE * free))
        return planned, planned
    return asked_nbytes, min(asked_nbytes, most)


def free_memory(cgroups: Path = _CGROUPS, proc: Path = _PROC) -> int:
    """Bytes that this process can still allocate within the machine's and its cgroups' limits.

    Args:
        cgroups: where cgroups are mounted, v2 or v1.
        proc: where `meminfo` and `self/cgroup` are.
    """
    available = _fields(proc / "meminfo").get("MemAvailable:", 0) * 1024
    rooms = [_room(folder) for folder in _own_cgroups(cgroups, proc)]
    return max(0, min([available, *(room for room in rooms if room is not None)]))


def _own_cgroups(cgroups: Path, proc: Path) -> Iterator[Path]:
    """The folders of this process's memory cgroup and its parents."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots = [cgroups, cgroups / "unified"]
        elif "memory" in controllers.split(","):
            roots = [cgroups / "memory"]
        else:
            continue
        parts = Path(path).parts[1:]
        for root in roots:
            # In a container the path may be the host's; then the mount is this process's cgroup.
            for depth in range(len(parts), -1, -1):
                yield root.joinpath(*parts[:depth])


def _room(cgroup: Path) -> int | None:
    """Bytes left in one cgroup; None if it sets no limit."""
    for limit_name, usage_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, usage = _number(cgroup / limit_name), _number(cgroup / usage_name)
        if limit is not None and usage is not None:
            stat = _fields(cgroup / "memory.stat")
            droppable = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
            return max(0, limit - max(0, usage - droppable))
    return None


def _number(path: Path) -> int | None:
    """The number in a file; None if the file is missing or contains "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
