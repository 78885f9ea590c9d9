"""HDF5 shards on disks that are full, and on file systems without locks: h5py touches neither."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import packing
import pytest
import small_disk

from msdata.dataset.hdf5 import Hdf5ShardWriter
from msdata.dataset.shard import Record
from msdata.errors import StorageError
from msdata.schema import Schema, Survey

ARRAYS = (
    Survey(name="image", shape=(3, 8, 8), dtype="float32", bands=("g", "r", "i")),
    Survey(name="numbers", shape=(5,), dtype="float32", bands=()),
)
SCHEMA = Schema(name="test", arrays=ARRAYS)
WRITTEN, REFUSED = 3, 4


def write(path: Path, *, chunked: bool) -> int:
    """Writes a shard of 236 KB of pixels and about 70 KB of the rest; says what became of it."""
    writer = Hdf5ShardWriter(path, SCHEMA, max_samples=300, chunked=chunked)
    try:
        for i in range(300):
            arrays = tuple(np.full(a.shape, i, np.float32) for a in ARRAYS)
            metadata = {"redshift": 0.1 * i, "text": "x" * 200}
            writer.append(Record(sample_id=f"s{i}", arrays=arrays, crc32c=0, metadata=metadata))
        writer.finish()
    except StorageError as error:
        writer.abort()
        assert "the disk is full" in str(error)
        return REFUSED
    return WRITTEN


def exit_of(work: Callable[[], int]) -> int:
    """How a process ends that does this: its code, or less than 0 for a signal."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("chunked", [False, True])
def test_no_free_space_whatever_ends_the_process(tmp_path: Path, chunked: bool) -> None:
    ends = []
    with small_disk.mounted(tmp_path / "disk", "tmpfs", 4) as disk:
        for num_kib in range(200, 340, 4):
            small_disk.leave_free(disk / "ballast", num_kib << 10)
            ends.append(exit_of(lambda: write(disk / "shard.h5", chunked=chunked)))
            found = [path.name for path in disk.iterdir() if path.name != "ballast"]
            assert found == (["shard.h5"] if ends[-1] == WRITTEN else [])
            for path in disk.iterdir():
                path.unlink()
    # What does not fit is refused up to a size, and written from there on.
    assert ends == sorted(ends, reverse=True)
    assert set(ends) == {WRITTEN, REFUSED}


NO_LOCKS = """
#include <errno.h>
int flock(int fd, int operation) { errno = %s; return -1; }
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_takes_hdf5_shards(
    packed: Callable[..., Path], tiny_source: Path, tmp_path: Path, number: int
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("taking flock away needs a C compiler")
    (source := tmp_path / "no_locks.c").write_text(NO_LOCKS % number)
    shim = tmp_path / "no_locks.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, source], check=True)
    environment = {**packing.environment(), "LD_PRELOAD": str(shim)}
    options = (*packing.TINY_SHARDS, "--format", "hdf5")
    out = tmp_path / "out"
    for command in (
        packing.pack_command(tiny_source, out, *options, "--jobs", "2"),
        [sys.executable, "-m", "msdata", "verify", str(out)],
        packing.pack_command(tiny_source, out, *options, "--resume"),
    ):
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=packing.TIMEOUT_S
        )
        assert process.returncode == 0, process.stderr
    packing.assert_same(out, packed(tiny_source, *options))
