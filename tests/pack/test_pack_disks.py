"""Packing onto real file systems that fill up, and under limits of the size of files."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import packing
import pytest
import small_disk

Packed = Callable[..., Path]
ONE_SHARD = ("--split", "1,0,0", "--shard-size", "64MiB", "--jobs", "1")


@pytest.mark.parametrize(
    ("kind", "num_free", "options"),
    [
        ("tmpfs", 21, ("--format", "hdf5")),
        ("ext4", 22, ()),
        ("ext4", 17, ("--shard-size", "6MiB", "--jobs", "2")),
    ],
)
def test_a_disk_that_fills_up_is_one_sentence_and_resume_completes(
    mantis_source: Path,
    packed: Packed,
    tmp_path: Path,
    kind: str,
    num_free: int,
    options: tuple[str, ...],
) -> None:
    options = (*ONE_SHARD, *options)
    with small_disk.mounted(tmp_path / "disk", kind, 48) as disk:
        ballast, out = disk / "ballast", disk / "out"
        small_disk.leave_free(ballast, num_free << 20)
        process = packing.pack(mantis_source, out, *options)
        packing.assert_sentence(process, code=1, says=["cannot write", "the disk is full"])
        assert not list(out.rglob("shard-*.partial"))
        ballast.unlink()
        resumed = packing.pack(mantis_source, out, *options, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        packing.assert_same(out, packed(mantis_source, *options))


def _limited(command: list[str], nbytes: int) -> subprocess.CompletedProcess[str]:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (nbytes, nbytes))
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=packing.TIMEOUT_S,
        env=packing.environment(),
        preexec_fn=limit,
    )


@pytest.mark.parametrize(
    ("options", "small_mib", "large_mib"),
    [
        (("--format", "tar"), 13, 32),
        (("--format", "hdf5"), 13, 32),
        (("--format", "hdf5", "--quantize", "4", "--compress", "lz4"), 3, 6),
    ],
)
def test_a_limit_of_the_size_of_files_stops_only_larger_ones(
    options: tuple[str, ...],
    small_mib: int,
    large_mib: int,
    mantis_source: Path,
    packed: Packed,
    tmp_path: Path,
) -> None:
    options = (*ONE_SHARD, *options)
    out = tmp_path / "out"
    command = packing.pack_command(mantis_source, out, *options)
    process = _limited(command, small_mib << 20)
    packing.assert_sentence(process, code=1, says=["cannot write", "'ulimit -f'", "smaller files"])
    assert not list(out.rglob("shard-*.partial"))
    process = _limited([*command, "--resume"], large_mib << 20)
    assert process.returncode == 0, process.stderr
    packing.assert_same(out, packed(mantis_source, *options))
