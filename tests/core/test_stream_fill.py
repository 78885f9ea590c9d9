"""The C module copies what NumPy would, and stops at what is not in memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msdata.core import _stream_fill, checksum
from msdata.core.checksum import crc32c

FILE_NBYTES = 3 << 20
# Around a cache line, a page, what is read directly, and the buffer that larger rows go through.
SIZES = (1, 63, 64, 65, 4095, 4097, 65535, 65536, 65537, 393215, 393216, 393217, 1_000_003)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory):
    path: Path = tmp_path_factory.mktemp("stream") / "shard"
    content = np.random.default_rng(2).integers(0, 256, FILE_NBYTES, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    fd = os.open(path, os.O_RDONLY)
    yield fd, content
    os.close(fd)


def warm(fd: int) -> None:
    assert len(os.pread(fd, FILE_NBYTES, 0)) == FILE_NBYTES


def rows_of(rows: list[tuple[int, int, int, int]]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 4)


@pytest.mark.parametrize("nbytes", SIZES)
def test_bytes_of_any_length_come_at_any_alignment(shard, nbytes: int) -> None:
    fd, content = shard
    warm(fd)
    room = np.zeros(nbytes + 400, np.uint8)
    for target in (0, 1, 17, 63, 64, 100):
        for offset in (0, 1, 511, 4096, FILE_NBYTES - nbytes):
            room[:] = 0xAA
            table = rows_of([(fd, offset, nbytes, room.ctypes.data + 128 + target)])
            assert _stream_fill.fill(table, 0, 1) == 1
            start = 128 + target
            assert np.array_equal(room[start : start + nbytes], content[offset : offset + nbytes])
            # Nothing before, nothing after.
            assert (room[:start] == 0xAA).all()
            assert (room[start + nbytes :] == 0xAA).all()


def test_random_tables_are_filled_as_numpy_would(shard) -> None:
    fd, content = shard
    warm(fd)
    random = np.random.default_rng(3)
    for _ in range(20):
        sizes = random.integers(0, 60_000, 12)
        offsets = random.integers(0, FILE_NBYTES - sizes)
        starts = np.cumsum(sizes + random.integers(0, 90, 12)) - sizes
        room = np.zeros(int(starts[-1] + sizes[-1]), np.uint8)
        wanted = room.copy()
        for offset, size, start in zip(offsets, sizes, starts, strict=True):
            wanted[start : start + size] = content[offset : offset + size]
        columns = (np.full(12, fd), offsets, sizes, room.ctypes.data + starts)
        table = np.ascontiguousarray(np.stack(columns, axis=1).astype(np.int64))
        # In two calls, as two threads would.
        assert _stream_fill.fill(table, 5, 12) == 12
        assert _stream_fill.fill(table, 0, 5) == 5
        assert np.array_equal(room, wanted)


def test_only_the_rows_asked_for_are_filled(shard) -> None:
    fd, content = shard
    warm(fd)
    room = np.zeros((4, 1000), np.uint8)
    table = rows_of([(fd, 1000 * i, 1000, room[i].ctypes.data) for i in range(4)])
    assert _stream_fill.fill(table, 1, 3) == 3
    assert not room[[0, 3]].any()
    assert np.array_equal(room[1:3].reshape(-1), content[1000:3000])


def test_no_rows_are_done_at_once() -> None:
    assert _stream_fill.fill(rows_of([]), 0, 0) == 0
    assert _stream_fill.fill(rows_of([(-1, 0, 10, 0)] * 3), 2, 2) == 2


@pytest.mark.parametrize("nbytes", [1000, 500_000])
def test_a_cold_file_stops_at_the_first_row_that_is_not_in_memory(shard, nbytes: int) -> None:
    fd, content = shard
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    offsets = (0, 1 << 20, 2 << 20)
    room = np.zeros((3, nbytes), np.uint8)
    table = rows_of([(fd, o, nbytes, r.ctypes.data) for o, r in zip(offsets, room, strict=True)])
    assert _stream_fill.fill(table, 0, 3) == 0
    # No read-ahead: only what is asked for comes into memory.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, nbytes, 0)
    assert _stream_fill.fill(table, 0, 3) == 1
    assert np.array_equal(room[0], content[:nbytes])
    warm(fd)
    assert _stream_fill.fill(table, 1, 3) == 3
    assert np.array_equal(room[2], content[2 << 20 : (2 << 20) + nbytes])


def test_a_row_beyond_the_files_end_or_of_a_closed_file_is_not_done(shard) -> None:
    fd, _ = shard
    warm(fd)
    room = np.zeros(1000, np.uint8)
    for row in (
        (fd, FILE_NBYTES - 999, 1000, room.ctypes.data),
        (fd, FILE_NBYTES + 5000, 1000, room.ctypes.data),
        (fd, -4096, 1000, room.ctypes.data),
        (1 << 20, 0, 1000, room.ctypes.data),
        (-1, 0, 1000, room.ctypes.data),
    ):
        assert _stream_fill.fill(rows_of([row]), 0, 1) == 0


@pytest.mark.parametrize(
    ("first", "stop"),
    [(-1, 1), (0, 4), (2, 1), (0, sys.maxsize), (0, 2**59), (sys.maxsize, sys.maxsize)],
)
def test_rows_outside_the_table_are_refused(first: int, stop: int) -> None:
    with pytest.raises(IndexError, match="are not in the table"):
        _stream_fill.fill(rows_of([(-1, 0, 1, 0)] * 3), first, stop)


def test_what_is_no_table_is_refused() -> None:
    table = rows_of([(-1, 0, 1, 0)] * 4)
    for arguments in ((None, 0, 1), (table[::2], 0, 1), (table, 0), (table, 0, 1.5)):
        with pytest.raises((TypeError, ValueError, BufferError)):
            _stream_fill.fill(*arguments)


needs_folding = pytest.mark.skipif(
    not hasattr(_stream_fill, "copy_crc32c"), reason="this CPU has no VPCLMULQDQ with AVX-512"
)


@needs_folding
@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 1500), max_size=5), st.integers(0, 64), st.integers(0, 2**32 - 1))
def test_a_copy_with_its_checksum_is_the_copy_and_the_checksum(
    sizes: list[int], offset: int, seed: int
) -> None:
    nbytes = sum(sizes)
    random = np.random.default_rng(seed)
    source = random.integers(0, 256, nbytes + 64, dtype=np.uint8)[offset:][:nbytes]
    rooms = [np.full(size + 200, 0xAA, np.uint8) for size in sizes]
    starts = random.integers(0, 130, len(sizes)).tolist()
    targets = [r[at : at + n] for r, at, n in zip(rooms, starts, sizes, strict=True)]
    assert _stream_fill.copy_crc32c(source[:nbytes], targets) == crc32c(source[:nbytes])
    assert b"".join(t.tobytes() for t in targets) == source.tobytes()
    for room, at, size in zip(rooms, starts, sizes, strict=True):
        assert (room[:at] == 0xAA).all()
        assert (room[at + size :] == 0xAA).all()


@needs_folding
def test_every_flipped_bit_of_a_large_record_changes_its_checksum() -> None:
    record = np.random.default_rng(5).integers(0, 256, 594_384, dtype=np.uint8)
    target = np.zeros_like(record)
    sound = _stream_fill.copy_crc32c(record, [target])
    for place in np.random.default_rng(6).integers(0, 8 * len(record), 300).tolist():
        record[place // 8] ^= 1 << place % 8
        found = _stream_fill.copy_crc32c(record, [target])
        assert found != sound
        assert found == crc32c(record)
        record[place // 8] ^= 1 << place % 8


@needs_folding
def test_a_copy_that_does_not_fit_or_could_not_be_written_is_refused() -> None:
    record, target = np.zeros(10, np.uint8), np.full(10, 1, np.uint8)
    frozen = target.copy()
    frozen.setflags(write=False)
    for source, targets, error in (
        (record, [target[:9]], ValueError),
        (record, [target, target], ValueError),
        (record, [frozen], ValueError),
        (record, 3, TypeError),
        (record, [target[:0]] * 65, ValueError),
        (record[::2], [target[:5]], ValueError),
    ):
        with pytest.raises(error):
            _stream_fill.copy_crc32c(source, targets)
    assert (target == 1).all()


def test_without_the_c_module_a_checked_copy_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    record = np.arange(100, dtype=np.uint8)
    for function in (checksum._copy_crc32c, None):
        monkeypatch.setattr(checksum, "_copy_crc32c", function)
        target = np.zeros(100, np.uint8)
        pieces = [target[:30], target[30:30], target[30:]]
        assert checksum.copy_crc32c(record, pieces) == crc32c(record)
        assert (target == record).all()
        assert checksum.copy_crc32c(record[1:], pieces) is None


@pytest.mark.parametrize(
    ("column", "value"), [(0, -1), (0, 2**32 + 3), (1, -1), (1, 2**63 - 8), (2, -1), (2, -(2**63))]
)
def test_a_row_that_no_file_can_have_is_left_undone(shard, column: int, value: int) -> None:
    fd, _ = shard
    warm(fd)
    target = np.full(64, 7, np.uint8)
    table = rows_of([(fd, 0, 64, target.ctypes.data)])
    table[0, column] = value
    assert _stream_fill.fill(table, 0, 1) == 0
    assert (target == 7).all()


def test_a_table_that_is_not_aligned_is_refused() -> None:
    raw = np.zeros(40, np.uint8)
    offset = 1 if raw.ctypes.data % 8 == 0 else 0
    with pytest.raises(ValueError, match="must be aligned to 8 bytes"):
        _stream_fill.fill(raw[offset : offset + 32], 0, 1)
