"""Files appear whole, under unpredictable names, and never through a link."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import packing
import pytest

from msdata.cli import main
from msdata.core.files import open_known, remove_leftovers, storage_error, whole_file, write_whole
from msdata.errors import StorageError

MINE = b"the user's own"
# Writes one of two contents over and over, as fast as it can.
WRITER = """
import sys
from pathlib import Path
from msdata.core.files import write_whole
for _ in range(150):
    write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)
"""
# Says when half of its file is written, and waits to be killed.
KILLED = """
import sys
from pathlib import Path
from msdata.core.files import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half_written(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=packing.environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=packing.TIMEOUT_S)


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "X"
    victim.write_bytes(MINE)
    (tmp_path / "X.partial").symlink_to(victim)
    write_whole(path, b"new")
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", MINE)
    # Nor is one that somebody guessed.
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / "X.000000000000.partial").symlink_to(victim)
    with pytest.raises(StorageError, match=r"cannot write .*X"):
        write_whole(path, b"newer")
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", MINE)


def test_commands_write_past_links_that_wait_for_them(tiny_source, packed, tmp_path, capsys):
    data = Path(shutil.copytree(packed(tiny_source), tmp_path / "data"))
    victim = tmp_path / "victim"
    victim.write_bytes(MINE)
    files = ("CARD.md", "croissant.json", "SHA256SUMS", "statistics.json")
    for name in files:
        (data / f"{name}.partial").symlink_to(victim)
    (tmp_path / "sheet.png.partial").symlink_to(victim)
    (tmp_path / "plan.png.partial").symlink_to(victim)
    assert main(["card", str(data), "--sums", "--quiet"]) == 0
    assert main(["stats", str(data), "--quiet"]) == 0
    assert main(["sheet", str(data), str(tmp_path / "sheet.png")]) == 0
    figure = ["--figure", str(tmp_path / "plan.png")]
    assert (
        main(
            ["plan", str(data), "--nodes", "2", "--memory-gib", "1", *figure, "--policy", "shuffle"]
        )
        == 0
    )
    assert victim.read_bytes() == MINE
    assert all((data / name).is_file() and not (data / name).is_symlink() for name in files)


def test_two_writers_at_once_each_leave_a_whole_file(tmp_path):
    path = tmp_path / "X"
    write_whole(path, b"a" * 100_000)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), c], env=packing.environment())
        for c in "ab"
    ]
    num_looks = 0
    while any(w.poll() is None for w in writers):
        content = path.read_bytes()
        assert content in (b"a" * 100_000, b"b" * 100_000)
        num_looks += 1
    assert num_looks
    assert [w.returncode for w in writers] == [0, 0]
    assert names(tmp_path) == ["X"]


def test_what_a_killed_writer_left_is_removed_by_the_next_and_a_living_one_is_let_be(tmp_path):
    path = tmp_path / "X"
    dead, alive = half_written(path), half_written(path)
    assert len(list(tmp_path.iterdir())) == 2
    ended(dead)
    write_whole(path, b"new")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ["", ".partial"]
    ended(alive)
    write_whole(path, b"newer")
    assert names(tmp_path) == ["X"]


def test_only_our_own_regular_files_of_that_form_are_leftovers(tmp_path):
    (tmp_path / "kept").write_bytes(MINE)
    kept = ["X.partial.txt", "X.0123.partially", ".partial"]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "X.0123456789ab.partial").symlink_to(tmp_path / "kept")
    (tmp_path / "Y.0123456789ab.partial").mkdir()
    os.mkfifo(tmp_path / "Z.0123456789ab.partial")
    before = names(tmp_path)
    (tmp_path / "X.partial").write_bytes(b"of an earlier version")
    (tmp_path / "X.ba9876543210.partial").write_bytes(b"")
    remove_leftovers(tmp_path, "Y")
    assert len(names(tmp_path)) == len(before) + 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("kind", ["link", "hard link", "FIFO"])
def test_a_lock_or_journal_is_opened_only_where_nothing_leads_elsewhere(kind, tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "lock"
    victim.write_bytes(MINE)
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "hard link":
        path.hardlink_to(victim)
    else:
        os.mkfifo(path)
    with pytest.raises(OSError, match="symbolic links") as caught:
        open_known(path)
    assert "cannot write" in str(storage_error("write", path, caught.value))
    assert "its content would go elsewhere" in str(storage_error("write", path, caught.value))
    assert victim.read_bytes() == MINE


def test_a_file_that_fails_half_way_leaves_the_former_one(tmp_path):
    path = tmp_path / "X"
    write_whole(path, b"old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["X"]
