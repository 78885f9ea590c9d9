"""A loader under faults: one sentence each, no hang, no crash, and nothing left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import loading
import packing
import pytest
import raw_dataset

import msdata
import msdata.dataset.coding
import msdata.loader.read
from msdata.errors import DataError, UsageError
from msdata.schema import Schema, Survey

Packed = Callable[..., Path]

SMALL_SCHEMA = Schema(name="small", arrays=(Survey(name="image", shape=(5, 7)),))

# Truncates all shards to a third while they are loaded; prints what the loop ran into.
TRUNCATING_PROGRAM = """
import os, sys, msdata, msdata.loader.read
from msdata.errors import DataError
if sys.argv[2] == "reading":
    msdata.loader.read._stream_fill = None
split = msdata.open(sys.argv[1]).split("train")
loader = msdata.Loader(split, 4, prefetch=1, threads=2)
for _ in range(3):
    try:
        for step, batch in enumerate(loader):
            if step == 1:
                for path in split.shard_paths:
                    os.truncate(path, path.stat().st_size // 3)
        print("no error")
    except DataError as error:
        print(error)
loader.close()
"""

# Loads an epoch with few files allowed to be open; prints how many were.
FEW_FILES_PROGRAM = """
import os, resource, sys, msdata, msdata.loader.read
split = msdata.open(sys.argv[1]).split("train")
if sys.argv[2] == "reading":
    msdata.loader.read._stream_fill = None
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
ids, most = [], 0
with msdata.Loader(split, 128, threads=4, policy=sys.argv[3]) as loader:
    for batch in loader:
        ids += batch["sample_id"].tolist()
        most = max(most, len(os.listdir("/proc/self/fd")))
assert sorted(ids) == [f"{n:07d}" for n in range(300)]
print(len(split.shards), most)
"""


@pytest.fixture(params=["streaming", "reading"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reading":
        monkeypatch.setattr(msdata.loader.read, "_stream_fill", None)
        monkeypatch.setattr(msdata.dataset.coding, "_coding", None)
    return request.param


@pytest.fixture(params=loading.LAYOUTS)
def folder(
    request: pytest.FixtureRequest, tiny_source: Path, packed: Packed, tmp_path: Path
) -> Path:
    """A data set of one's own, to be damaged."""
    source = packed(tiny_source, *loading.options_of(request.param))
    return Path(shutil.copytree(source, tmp_path / "data"))


@pytest.fixture
def split(tiny_source: Path, packed: Packed):
    return loading.open_train(packed(tiny_source, *loading.options_of("tar")))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert packing.wait_for(lambda: not loader_threads())


def loader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("msdata-")]


def assert_one_sentence(error: BaseException, *words: str) -> None:
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error), error


def test_a_missing_shard_is_named_when_the_loader_is_made(folder: Path) -> None:
    split = loading.open_train(folder)
    split.shard_paths[2].unlink()
    with pytest.raises(DataError) as caught:
        msdata.Loader(split)
    assert_one_sentence(caught.value, str(split.shard_paths[2]), "is missing; run 'msdata verify")


@pytest.mark.parametrize(("change", "says"), [(-700, "was truncated"), (9, "was altered")])
def test_a_shard_of_another_size_is_named_when_the_loader_is_made(folder, change, says) -> None:
    split = loading.open_train(folder)
    path = split.shard_paths[1]
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(DataError) as caught:
        msdata.Loader(split)
    assert_one_sentence(caught.value, str(path), f"{abs(change)} bytes", says)


def run_program(program: str, *arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=packing.environment(),
    )
    assert found.returncode == 0, (found.returncode, found.stderr)
    assert found.stderr == ""
    return found.stdout


@pytest.mark.parametrize("way", ["streaming", "reading"])
@pytest.mark.parametrize("layout", loading.LAYOUTS)
def test_a_shard_truncated_while_it_is_loaded_is_named(
    layout: str, way: str, mantis_source: Path, packed: Packed, tmp_path: Path
) -> None:
    # Large enough to be in large folios: what crashes a process that has mapped them.
    source = packed(mantis_source, *loading.LAYOUTS[layout], *loading.ALL_IN_TRAIN)
    folder = Path(shutil.copytree(source, tmp_path / "data"))
    lines = run_program(TRUNCATING_PROGRAM, str(folder), way).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(
            r"/.*/train/shard-\d+\.(tar|h5) (ended while it was read, at byte \d+: it was "
            r"truncated|is \d+ bytes short of its index: it was truncated); run 'msdata verify "
            rf"--repair {folder}'",
            line,
        ), line


def test_altered_bytes_are_found_where_asked_and_the_sample_named(folder, mode) -> None:
    split = loading.open_train(folder)
    row = split.table(["sample_id", "shard", "offset_spectrum"]).slice(123, 1).to_pylist()[0]
    path = split.shard_paths[row["shard"]]
    with path.open("r+b") as file:
        file.seek(row["offset_spectrum"] + 5)
        byte = file.read(1)
        file.seek(row["offset_spectrum"] + 5)
        file.write(bytes([byte[0] ^ 4]))
    # A chunk of Blosc that no longer decodes is found whether asked for or not.
    is_found_anyway = any(c.compress != "none" for c in split.codings)
    if not is_found_anyway:
        with msdata.Loader(split, 16) as loader:
            assert len(loading.run_epoch(loader)) == len(loader)
    loader = msdata.Loader(split, 16, verify=not is_found_anyway)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            loading.run_epoch(loader)
        assert_one_sentence(
            caught.value, str(path), f"sample {row['sample_id']} is corrupt", "msdata verify"
        )
    loader.close()


def test_a_shard_that_is_away_for_a_while_costs_no_buffer(folder, mode) -> None:
    split = loading.open_train(folder)
    path = split.shard_paths[0]
    with msdata.Loader(split, 8) as loader:
        path.rename(folder / "away")
        ring = loader.ring_nbytes
        for _ in range(10):
            with pytest.raises(DataError, match="is missing"):
                loading.run_epoch(loader)
        assert loader.ring_nbytes == ring
        (folder / "away").rename(path)
        loader.set_epoch(0)
        assert len(loading.ids_of(loading.run_epoch(loader))) == len(split)


def test_whatever_fails_in_a_thread_is_raised_in_the_loop(split, monkeypatch) -> None:
    loader = msdata.Loader(split, 16, threads=3)
    sound = loader._reader.fill
    calls = []

    def fill(filling, start, stop):
        calls.append(start)
        if len(calls) == 8:
            raise MemoryError("no room")
        sound(filling, start, stop)

    monkeypatch.setattr(loader._reader, "fill", fill)
    with pytest.raises(MemoryError, match="no room"):
        loading.run_epoch(loader)
    assert len(loading.ids_of(loading.run_epoch(loader))) == len(split)
    loader.close()


def test_an_error_in_the_users_loop_leaves_nothing_hanging(split) -> None:
    def use() -> None:
        loader = msdata.Loader(split, 4)
        for step, _ in enumerate(loader):
            if step == 2:
                raise KeyError("the user's own")

    with pytest.raises(KeyError, match="own"):
        use()


def test_an_option_refused_leaves_no_thread(split) -> None:
    with pytest.raises(UsageError):
        msdata.Loader(split, columns=["colour"])
    assert not loader_threads()


def test_loaders_without_references_give_back_threads_files_and_memory(folder: Path) -> None:
    def resident_kib() -> int:
        text = Path("/proc/self/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1])

    def abandon() -> None:
        split = loading.open_train(folder)
        loader = msdata.Loader(split, 64, threads=2)
        next(iter(loader))

    def num_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    abandon()
    assert packing.wait_for(lambda: not loader_threads())
    files, size = num_files(), resident_kib()
    for _ in range(20):
        abandon()
    gc.collect()
    assert packing.wait_for(lambda: not loader_threads())
    assert num_files() <= files
    # Twenty rings of seven buffers would be 280 MiB.
    assert resident_kib() < size + (100 << 10)
    assert str(folder) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("way", ["streaming", "reading"])
@pytest.mark.parametrize("policy", ["shuffle", "block"])
def test_more_shards_than_files_that_may_be_open(way: str, policy: str, tmp_path: Path) -> None:
    folder = raw_dataset.write_raw(tmp_path / "data", SMALL_SCHEMA, [1, 2] * 100)
    num_shards, most = map(int, run_program(FEW_FILES_PROGRAM, str(folder), way, policy).split())
    assert num_shards == 200
    assert most < 64


def ids_in_child(path: Path, queue) -> None:
    with msdata.Loader(loading.open_train(path), 32) as loader:
        queue.put(loading.ids_of(loading.run_epoch(loader)))


def ids_of_inherited_split(split, queue) -> None:
    with msdata.Loader(split, 32) as loader:
        queue.put(loading.ids_of(loading.run_epoch(loader)))


def use_inherited_loader(loader, queue) -> None:
    found = []
    for use in (lambda: next(iter(loader)), lambda: loader.load_state_dict(loader.state_dict())):
        try:
            use()
        except UsageError as error:
            found.append(str(error))
    loader.close()
    queue.put(found)


@pytest.fixture
def forked() -> Callable[..., object]:
    context = multiprocessing.get_context("fork")

    def run(function: Callable[..., None], argument: object) -> object:
        queue = context.SimpleQueue()
        child = context.Process(target=function, args=(argument, queue))
        child.start()
        child.join(60)
        if child.is_alive():
            child.kill()
            pytest.fail("the forked child hung")
        assert child.exitcode == 0
        return queue.get()

    return run


def test_a_forked_child_makes_its_own_loader(split, forked) -> None:
    with msdata.Loader(split, 32) as loader:
        running = iter(loader)
        first = loading.kept(next(running))
        for function, argument in (
            (ids_in_child, split.dataset.path),
            (ids_of_inherited_split, split),
        ):
            ids = forked(function, argument)
            assert ids[:32] == first["sample_id"].tolist()
            assert len(set(ids)) == len(split)
        assert 32 + len(loading.ids_of([loading.kept(b) for b in running])) == len(split)


def test_a_loader_from_before_a_fork_says_so_instead_of_hanging(split, forked) -> None:
    with msdata.Loader(split, 32) as loader:
        next(iter(loader))
        found = forked(use_inherited_loader, loader)
        assert len(found) == 2
        for sentence in found:
            assert "cannot use a loader after a fork" in sentence
        assert len(loading.run_epoch(loader)) == len(loader)


def test_a_cold_shard_is_read_and_counted(folder: Path, mode) -> None:
    split = loading.open_train(folder)
    for path in split.shard_paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with msdata.Loader(split, 32) as loader:
        for batch in loader:
            loading.assert_true_to_source(batch)
        del batch
        assert 0 < loader.stats()["cold_samples"] <= len(split)
        started = time.perf_counter()
        loading.run_epoch(loader)
        assert time.perf_counter() - started < 30
