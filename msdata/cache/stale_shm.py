"""Removes the shared memory that killed MPI processes of this user left behind.

MPICH keeps a file of a few MB per node and run in `/dev/shm`, and removes it only at an orderly
end. The file has no lock, so `/proc` must tell whether a living process uses it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_SHM_DIR = Path("/dev/shm")
_PATTERN = "mpich_shm_*"
_PROC = Path("/proc")


def remove_dead_shared_memory(shm_dir: Path = _SHM_DIR, proc: Path = _PROC) -> list[Path]:
    """Removes MPICH's files of this user that no living process has open or mapped.

    Args:
        shm_dir: the folder for shared memory.
        proc: the mounted `/proc`.

    Returns:
        The removed files; empty if a process of this user cannot be inspected.
    """
    # List files before processes: a file that appears later belongs to a living process.
    found = [path for path in sorted(shm_dir.glob(_PATTERN)) if _is_own(path)]
    if not found:
        return []
    try:
        used = {name for process in _own_processes(proc) for name in _files_of(process)}
    except PermissionError:
        return []
    return _removed(path for path in found if str(path) not in used)


def remove_own_shared_memory(shm_dir: Path = _SHM_DIR, proc: Path = _PROC) -> list[Path]:
    """Removes the names of MPICH's files that this process has mapped; they stay mapped.

    Afterwards nothing remains in shared memory, however the process ends. Call it once all
    processes of the machine that share the files have mapped them.

    Args:
        shm_dir: the folder for shared memory.
        proc: the mounted `/proc`.

    Returns:
        The removed files.
    """
    mapped = [name for name in _files_of(proc / "self") if Path(name).match(_PATTERN)]
    return _removed(Path(name) for name in sorted(mapped) if Path(name).parent == shm_dir)


def _removed(paths: Iterable[Path]) -> list[Path]:
    """Removes files; returns those that it could remove."""
    removed = []
    for path in paths:
        with suppress(OSError):
            path.unlink()
            removed.append(path)
    return removed


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:
        return False


def _own_processes(proc: Path) -> Iterator[Path]:
    for entry in proc.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            # Process 1 never runs MPI, and may refuse inspection even by root.
            if entry.name.isdigit() and entry.name != "1" and _user_of(entry) == os.geteuid():
                yield entry


def _user_of(process: Path) -> int:
    # The folder of a process that refuses inspection belongs to root.
    fields = (process / "status").read_text().partition("\nUid:")[2].split()
    return int(fields[1]) if len(fields) > 1 else -1


def _files_of(process: Path) -> set[str]:
    """Names of the files that a process has mapped or open; empty if it has just ended.

    Raises:
        PermissionError: the process refuses inspection.
    """
    names: set[str] = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        # In this order: a file is mapped before its descriptor is closed.
        for link in (process / "fd").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                names.add(str(link.readlink()))
        for line in (process / "maps").read_text(errors="replace").splitlines():
            names.add(line[line.find("/") :] if "/" in line else "")
    return names
