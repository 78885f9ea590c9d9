"""The stream of aligned blocks that shards are written in."""

import errno
import fcntl
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.shards import block_writer
from msdata.shards.block_writer import BlockWriter
from msdata.shards.shard import pwrite_all

RECORD = np.random.default_rng(0).bytes(600_000)


def written(path: Path, offset: int, buffers: list[bytes]) -> bytes:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    writer = BlockWriter(fd, offset)
    try:
        for buffer in buffers:
            writer.append([buffer])
        writer.flush()
    finally:
        writer.close()
        os.close(fd)
    return path.read_bytes()[offset:]


@given(
    offset=st.integers(0, 5000) | st.sampled_from([4096, 8192]),
    sizes=st.lists(st.integers(0, 30_000), max_size=40),
    pages=st.sampled_from([1, 3]),
)
def test_a_stream_is_the_buffers_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, offset: int, sizes: list[int], pages: int
) -> None:
    buffers = [np.random.default_rng(i).bytes(size) for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_writer, "_ALIGNMENT", 4096 * pages)
        patch.setattr(block_writer, "_BLOCK", 2 * 4096 * pages)
        patch.setattr(block_writer, "_spare", deque())
        path = tmp_path_factory.mktemp("stream") / "file"
        assert written(path, offset, buffers) == b"".join(buffers)


def test_what_is_appended_may_change_at_once(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        writer = BlockWriter(file.fileno())
        buffer = np.arange(3 << 20, dtype=np.uint8)
        for i in range(6):
            buffer[:] = i
            writer.append([buffer.data])
        writer.flush()
        writer.close()
    found = np.fromfile(tmp_path / "file", np.uint8).reshape(6, -1)
    assert (found == np.arange(6, dtype=np.uint8)[:, None]).all()


def test_all_writes_but_the_first_and_the_last_are_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def note(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append((offset, sum(b.nbytes for b in buffers)))
        return pwrite_all(fd, buffers, offset)

    monkeypatch.setattr(block_writer, "pwrite_all", note)
    written(tmp_path / "file", 8192, [RECORD] * 60)
    calls.sort()
    assert len(calls) > 3
    for offset, nbytes in calls[1:-2]:
        assert offset % (2 << 20) == 0
        assert nbytes % (2 << 20) == 0
    assert sum(nbytes for _, nbytes in calls) == 60 * len(RECORD)


def test_a_stream_closed_twice_gives_its_memory_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_writer, "_spare", deque())
    with (tmp_path / "file").open("w+b") as file:
        writer = BlockWriter(file.fileno())
        writer.close()
        writer.close()
    assert len(block_writer._spare) == 1


def test_a_file_system_that_refuses_direct_writes_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def refuse(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if _is_direct(fd):
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite_all(fd, buffers, offset)

    monkeypatch.setattr(block_writer, "pwrite_all", refuse)
    assert written(tmp_path / "file", 0, [RECORD] * 30) == RECORD * 30
    assert refused or not _takes_direct(tmp_path)


def test_a_file_that_cannot_be_opened_past_the_cache_is_written_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_writer, "_direct_fd", lambda fd: -1)
    assert written(tmp_path / "file", 0, [RECORD] * 30) == RECORD * 30


@pytest.mark.parametrize("num_records", [15, 60])
def test_a_full_disk_is_reported_whichever_block_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_records: int
) -> None:
    def full(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(block_writer, "pwrite_all", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "file", 0, [RECORD] * num_records)


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def _takes_direct(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True
