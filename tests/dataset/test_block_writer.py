"""The stream of aligned blocks that shards are written in."""

import errno
import fcntl
import itertools
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import packing
import pytest
import small_disk
from hypothesis import given
from hypothesis import strategies as st

from msdata.dataset import block_writer
from msdata.dataset.block_writer import BlockWriter, _blocks

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
        patch.setattr(block_writer, "_blocks", block_writer._Blocks())
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
    real = os.pwritev

    def note(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append((offset, sum(b.nbytes for b in buffers)))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", note)
    written(tmp_path / "file", 8192, [RECORD] * 60)
    calls.sort()
    assert len(calls) > 3
    for offset, nbytes in calls[1:-2]:
        assert offset % (2 << 20) == 0
        assert nbytes % (2 << 20) == 0
    assert sum(nbytes for _, nbytes in calls) == 60 * len(RECORD)


def test_the_last_stream_to_close_gives_the_memory_back_to_the_system(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        one, other = BlockWriter(file.fileno()), BlockWriter(file.fileno(), 1 << 30)
        one.append([RECORD] * 50)
        one.close()
        one.close()
        assert len(_blocks._spare) == len({id(b) for b in _blocks._spare}) > 0
        other.close()
    assert not _blocks._spare
    assert _blocks._num_streams == 0


class Interrupting:
    """An `os.pwritev` that is held up, or fails, at some call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, error: OSError | None) -> None:
        self._real = os.pwritev
        self._left, self._error = number, error
        self.reached, self.go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(os, "pwritev", self)

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            if self._error is not None:
                raise self._error
            assert self.go_on.wait(60)
        return self._real(fd, buffers, offset)


def assert_streams_are_sound(folder: Path) -> None:
    """Two streams that are written in turns do not get into each other's memory."""
    assert len({id(b) for b in _blocks._spare}) == len(_blocks._spare) > 0
    with (folder / "a").open("w+b") as a, (folder / "b").open("w+b") as b:
        writers = [BlockWriter(a.fileno()), BlockWriter(b.fileno())]
        for _ in range(40):
            for letter, writer in zip((b"a", b"b"), writers, strict=True):
                writer.append([letter * 600_000])
        for writer in writers:
            writer.flush()
            writer.close()
    for letter in ("a", "b"):
        assert (folder / letter).read_bytes() == letter.encode() * 600_000 * 40


@pytest.mark.parametrize("number", [1, 2, 3])
def test_after_a_failed_stream_the_next_ones_are_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with (tmp_path / "other").open("w+b") as other:
        # Keeps the memory of the failed one in use.
        open_meanwhile = BlockWriter(other.fileno())
        with monkeypatch.context() as patch:
            Interrupting(patch, number, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(OSError, match="No space left"):
                written(tmp_path / "file", 0, [RECORD] * 60)
        assert_streams_are_sound(tmp_path)
        open_meanwhile.close()


def test_an_abort_waits_for_the_write_under_way_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    writer = BlockWriter(fd)
    held_up = Interrupting(monkeypatch, 1, None)
    writer.append([bytes(8 << 20)])
    assert held_up.reached.wait(60)
    aborting = threading.Thread(target=writer.close)
    aborting.start()
    aborting.join(0.2)
    # Else the file's number, closed next, might be another file's that this write hits.
    assert aborting.is_alive()
    held_up.go_on.set()
    aborting.join(60)
    assert not aborting.is_alive()
    os.close(fd)
    assert (tmp_path / "file").stat().st_size == 8 << 20


def test_an_interrupted_stream_leaves_the_next_ones_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "other").open("w+b") as other:
        open_meanwhile = BlockWriter(other.fileno())

        def interrupt(self: BlockWriter) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(BlockWriter, "_wait_for_one", interrupt)
            with pytest.raises(KeyboardInterrupt):
                written(tmp_path / "file", 0, [RECORD] * 60)
        assert_streams_are_sound(tmp_path)
        open_meanwhile.close()


_FORKED = """
import os, sys
from pathlib import Path
from msdata.dataset.block_writer import BlockWriter

folder = Path(sys.argv[1])
files = {name: (folder / name).open("w+b") for name in ("first", "parent", "child")}
first, second = (BlockWriter(files[n].fileno()) for n in ("first", "parent"))
first.append([b"f" * 1000])
second.close()  # its block is spare
pid = os.fork()
name = "parent" if pid else "child"
writer = BlockWriter(files[name].fileno())
writer.append([name.encode() * 1000])
if not pid:
    first.append([b"c" * 1000])
    writer.flush()
    os._exit(0)
os.waitpid(pid, 0)
for stream in (first, writer):
    stream.flush()
    stream.close()
"""


def test_a_forked_process_writes_into_memory_of_its_own(tmp_path: Path) -> None:
    process = packing.run([sys.executable, "-c", _FORKED, str(tmp_path)])
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "first").read_bytes() == b"f" * 1000
    assert (tmp_path / "parent").read_bytes() == b"parent" * 1000
    assert (tmp_path / "child").read_bytes() == b"child" * 1000


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_direct_writes_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    refused: list[int] = []
    real = os.pwritev

    def refuse(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if _is_direct(fd):
            refused.append(offset)
            raise OSError(refusal, os.strerror(refusal))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", refuse)
    assert written(tmp_path / "file", 0, [RECORD] * 30) == RECORD * 30
    assert refused or not _takes_direct(tmp_path)


def test_a_file_system_that_wants_a_larger_alignment_gets_the_rest_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, direct = 1 << 20, []
    real = os.pwritev

    def choose(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        nbytes = sum(b.nbytes for b in buffers)
        if _is_direct(fd):
            if offset % wanted or nbytes % wanted:
                raise OSError(errno.EINVAL, "Invalid argument")
            direct.append(nbytes)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", choose)
    for offset in (0, 64 << 10):
        assert written(tmp_path / "file", offset, [RECORD] * 60) == RECORD * 60
    assert sum(direct) >= 48 << 20 or not _takes_direct(tmp_path)


@pytest.mark.parametrize("short", [4096, 12288, 512, 1])
def test_short_writes_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    real, calls = os.pwritev, itertools.count()

    def write_little(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if next(calls) % 2:
            return real(fd, buffers, offset)
        # A direct write of odd length is refused, so what it would have left is written otherwise.
        return os.pwrite(plain, bytes(memoryview(buffers[0])[:short]), offset)

    path = tmp_path / "file"
    plain = os.open(path, os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(os, "pwritev", write_little)
    assert written(path, 0, [RECORD] * 30) == RECORD * 30
    os.close(plain)


def test_advice_that_a_file_system_does_not_take_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    assert written(tmp_path / "file", 0, [RECORD] * 30) == RECORD * 30


def test_a_file_that_cannot_be_opened_past_the_cache_is_written_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_writer, "_direct_fd", lambda fd: -1)
    assert written(tmp_path / "file", 0, [RECORD] * 30) == RECORD * 30


@pytest.mark.parametrize("page", [4096, 65536])
def test_streams_of_one_file_are_sound_beside_each_other_on_pages_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(block_writer, "_DIRECT_ALIGNMENT", page)
    size = 9_000_001
    places = [4096 + i * (size + -size % 4096) for i in range(3)]
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    writers = [BlockWriter(fd, place) for place in places]
    for start in range(0, size, 600_000):
        for number, writer in enumerate(writers):
            writer.append([bytes([number + 1]) * min(600_000, size - start)])
    for writer in writers:
        writer.flush()
        writer.close()
    for number, place in enumerate(places):
        assert os.pread(fd, size, place) == bytes([number + 1]) * size
    os.close(fd)


@pytest.mark.parametrize("kind", small_disk.KINDS)
def test_a_full_disk_is_reported_whichever_block_meets_it(tmp_path: Path, kind: str) -> None:
    with small_disk.mounted(tmp_path / "disk", kind, 20) as disk:
        for num_free in (1, 5, 9, 13, 17):
            path, ballast = disk / "file", disk / "ballast"
            small_disk.leave_free(ballast, num_free << 20)
            with pytest.raises(OSError) as caught:
                written(path, 0, [RECORD] * 60)
            assert caught.value.errno == errno.ENOSPC
            path.unlink()
            ballast.unlink()
        assert written(disk / "file", 0, [RECORD] * 20) == RECORD * 20


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def _takes_direct(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True
