"""Slow answers of the storage are hidden: many reads are in flight at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import packing
import pytest

from msdata.errors import SampleError, StorageError
from msdata.pack.planning import NUM_LOOKED_AT, infer_schema
from msdata.pack.prepare import Preparation
from msdata.pack.read_ahead import NUM_READERS, read_in_order, read_sample
from msdata.pack.shard_task import Rejection, ShardTask, pack_shard
from msdata.schema import Sample
from msdata.sources.pickles import PickleTree

_LATENCY_S = 0.005


class SlowTree(PickleTree):
    """Answers late, as a busy parallel file system does."""

    def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
        time.sleep(_LATENCY_S)
        return super().read(path, row, labels)


class Counter:
    """Counts; implements `Progress`."""

    def __init__(self) -> None:
        self.accepted = 0

    def accept(self, nbytes: int) -> None:
        self.accepted += 1

    def reject(self, rejection: Rejection) -> None:
        raise AssertionError(rejection.reason)


@pytest.mark.speed
def test_five_milliseconds_a_file_leave_a_thousand_files_a_second(
    tiny_source: Path, tmp_path: Path
) -> None:
    source = SlowTree(tiny_source)
    table = source.scan()
    locations = list(zip(table["path"].to_pylist(), table["row"].to_pylist(), strict=True)) * 4
    task = ShardTask(
        number=0,
        path=tmp_path / "shard-000000.tar",
        container="tar",
        chunked=False,
        schema=infer_schema(source, locations[:1])[0],
        preparation=Preparation(),
        sample_ids=[str(n) for n in range(len(locations))],
        locations=locations,
        labels=[{}] * len(locations),
        scalar_names={"exposure_s": "exposure_s"},
    )
    rates = []
    for _ in range(3):
        counter = Counter()
        start_s = time.perf_counter()
        pack_shard(task, source, counter).writer.abort()
        rates.append(counter.accepted / (time.perf_counter() - start_s))
    assert max(rates) > 1000, rates


def test_the_first_objects_are_looked_at_together(tiny_source: Path) -> None:
    source = SlowTree(tiny_source)
    at_work = []
    lock = threading.Lock()
    everybody = threading.Barrier(NUM_LOOKED_AT, timeout=30)

    class Counting(PickleTree):
        def read(self, path: str, row: int, labels: Mapping[str, Any] | None = None) -> Sample:
            with lock:
                at_work.append(path)
            # Passes only when all of them are being read at once.
            everybody.wait()
            return super().read(path, row, labels)

    table = source.scan().slice(0, NUM_LOOKED_AT)
    locations = list(zip(table["path"].to_pylist(), table["row"].to_pylist(), strict=True))
    infer_schema(Counting(tiny_source), locations)
    assert len(at_work) == NUM_LOOKED_AT


@pytest.mark.parametrize("run_length", [1, 7, 64, 200])
def test_results_come_in_order_whatever_the_readers_do(run_length: int) -> None:
    def read(number: int) -> int:
        time.sleep(0.001 * (number * 7 % 5))
        if number % 10 == 3:
            raise SampleError(f"bad {number}")
        return number

    outcomes = list(read_in_order(100, read, num_readers=8, run_length=run_length))
    assert [n for n, _ in outcomes] == list(range(100))
    for number, outcome in outcomes:
        assert str(outcome) == (f"bad {number}" if number % 10 == 3 else str(number))


def test_more_readers_start_only_while_the_processor_is_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def readers(read_one: Callable[[], object]) -> int:
        def read(number: int) -> str:
            read_one()
            return threading.current_thread().name

        return len({name for _, name in read_in_order(300, read)})

    def compute() -> None:
        end_s = time.thread_time() + 2e-4
        while time.thread_time() < end_s:
            pass

    assert readers(lambda: time.sleep(_LATENCY_S)) == NUM_READERS
    # On a machine with other work the wall clock runs on while this process computes.
    alone = SimpleNamespace(
        perf_counter=time.process_time, process_time=time.process_time, monotonic=time.monotonic
    )
    monkeypatch.setattr("msdata.pack.read_ahead.time", alone)
    assert readers(compute) <= 2


def test_memory_is_bounded_when_the_writer_is_slow() -> None:
    started = []
    outcomes = read_in_order(1000, started.append, num_readers=8)
    next(outcomes)
    time.sleep(0.2)
    assert len(started) < 150
    outcomes.close()
    time.sleep(0.1)
    assert len(started) < 150
    assert not [t for t in threading.enumerate() if t.name.startswith("read-")]


def test_an_error_of_the_file_system_ends_the_reading() -> None:
    def read(number: int) -> int:
        if number == 20:
            raise StorageError("cannot read: I/O error")
        return number

    for run_length in (1, 8):
        with pytest.raises(StorageError, match="I/O error"):
            list(read_in_order(100, read, run_length=run_length))


def test_one_file_that_is_gone_is_that_objects_fault_alone(tmp_path: Path) -> None:
    packing.write_object(tmp_path / "source" / "a.pkl", packing.tiny_object(1))
    source = PickleTree(tmp_path / "source")
    with pytest.raises(SampleError, match=r"b\.pkl: it does not exist"):
        read_sample(source, "b.pkl", -1)
    (tmp_path / "source").rename(tmp_path / "unmounted")
    with pytest.raises(StorageError, match=r"a\.pkl: it does not exist"):
        read_sample(source, "a.pkl", -1)
