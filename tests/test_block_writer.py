"""The stream of aligned blocks that shards are written in."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.shards import block_writer
from msdata.shards.block_writer import BlockWriter


def written(path: Path, offset: int, buffers: list[bytes]) -> bytes:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        writer = BlockWriter(fd, offset)
        for buffer in buffers:
            writer.append([buffer])
        writer.flush()
    finally:
        os.close(fd)
    return path.read_bytes()[offset:]


@given(
    offset=st.integers(0, 5000),
    sizes=st.lists(st.integers(0, 3000), max_size=40),
    block=st.sampled_from([512, 4096]),
)
def test_a_stream_is_the_buffers_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, offset: int, sizes: list[int], block: int
) -> None:
    buffers = [np.random.default_rng(i).bytes(size) for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_writer, "_ALIGNMENT", block)
        patch.setattr(block_writer, "_BLOCK", 2 * block)
        patch.setattr(block_writer, "_MAX_BUFFERS", 8)
        path = tmp_path_factory.mktemp("stream") / "file"
        assert written(path, offset, buffers) == b"".join(buffers)


def test_all_writes_but_the_first_and_the_last_are_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def note(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append((offset, sum(b.nbytes for b in buffers)))
        return os.pwritev(fd, buffers, offset)

    monkeypatch.setattr(block_writer, "pwrite_all", note)
    record = bytes(600_000)
    written(tmp_path / "file", 8192, [record] * 60)
    assert len(calls) > 3
    for offset, nbytes in calls[1:-1]:
        assert offset % (2 << 20) == 0
        assert nbytes % (2 << 20) == 0
    assert sum(nbytes for _, nbytes in calls) == 60 * len(record)


def test_many_tiny_buffers_are_joined_before_the_kernel_refuses_them(tmp_path: Path) -> None:
    buffers = [bytes([i % 251]) * 3 for i in range(5000)]
    assert written(tmp_path / "file", 0, buffers) == b"".join(buffers)
