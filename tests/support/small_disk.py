"""Small file systems of their own, for tests of full disks; where root may mount."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KINDS = ("tmpfs", "ext4")


@contextmanager
def mounted(folder: Path, kind: str, num_mib: int) -> Iterator[Path]:
    """A file system of so many MiB; skips the test where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_mib}m", "none", str(folder)]
    else:
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("there is no mkfs.ext4")
        image = folder.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(num_mib << 20)
        # Without a journal and without blocks that only root gets: all of it is for files.
        options = ["-q", "-m", "0", "-O", "^has_journal", str(image)]
        subprocess.run(["mkfs.ext4", *options], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image), str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"root may not mount a {kind} here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def leave_free(ballast: Path, nbytes: int) -> None:
    """Fills a file system but for so many bytes."""
    found = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - nbytes)
