"""Shared memory of killed MPI processes is removed; that of living ones stays."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from msdata.cache.stale_shm import remove_dead_shared_memory, remove_own_shared_memory

HOLD = """
import mmap, sys
file = open(sys.argv[1], "r+b")
if sys.argv[2] == "mapped":
    area = mmap.mmap(file.fileno(), 4096)
    file.close()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("use", ["mapped", "open"])
def test_files_are_removed_when_the_last_process_that_uses_them_has_died(
    tmp_path: Path, use: str
) -> None:
    used, unused, other = (tmp_path / n for n in ("mpich_shm_a_0", "mpich_shm_b_0", "other_0"))
    for path in (used, unused, other):
        path.write_bytes(bytes(mmap.PAGESIZE))
    command = [sys.executable, "-c", HOLD, str(used), use]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert remove_dead_shared_memory(tmp_path) == [unused]
        assert used.exists()
        process.kill()
    assert remove_dead_shared_memory(tmp_path) == [used]
    assert list(tmp_path.iterdir()) == [other]


def process_folder(proc: Path, number: int, uid: int) -> Path:
    folder = proc / str(number)
    (folder / "fd").mkdir(parents=True)
    (folder / "maps").write_text("")
    (folder / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    return folder


def test_nothing_is_removed_while_a_process_of_the_user_is_closed_to_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shm, proc = tmp_path / "shm", tmp_path / "proc"
    shm.mkdir()
    (shm / "mpich_shm_a_0").write_bytes(b"x")
    closed = process_folder(proc, 7, os.geteuid())
    iterdir = Path.iterdir

    def refuse(path: Path) -> Any:
        if path == closed / "fd":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert remove_dead_shared_memory(shm, proc) == []
    closed.rename(proc / "8")
    (proc / "8" / "status").write_text("Name:\tx\nUid:\t1\t4242\t1\t1\n")
    process_folder(proc, 9, os.geteuid())
    assert remove_dead_shared_memory(shm, proc) == [shm / "mpich_shm_a_0"]


def test_only_names_of_what_this_process_has_mapped_are_removed(tmp_path: Path) -> None:
    mapped, foreign, other = (tmp_path / n for n in ("mpich_shm_a_0", "mpich_shm_b_0", "other_0"))
    for path in (mapped, foreign, other):
        path.write_bytes(bytes(mmap.PAGESIZE))
    with mapped.open("r+b") as a, other.open("r+b") as b:
        areas = [mmap.mmap(file.fileno(), mmap.PAGESIZE) for file in (a, b)]
    assert remove_own_shared_memory(tmp_path) == [mapped]
    areas[0][:3] = b"yes"
    assert areas[0][:3] == b"yes"
    assert sorted(tmp_path.iterdir()) == [foreign, other]
    for area in areas:
        area.close()
