"""Reads objects ahead of the one writer, in threads, and hands them over in order.

A parallel file system answers slowly however fast it streams, so many reads must be in flight.
"""

from __future__ import annotations

import errno
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from msdata.errors import SampleError, StorageError
from msdata.schema import Sample
from msdata.sources.source import Source

# Each of 32 readers may wait 10 ms for a file, and a process still gets 3,200 files/s.
NUM_READERS = 32
# Runs of objects that may be ahead of the writer; bounds the memory.
_WINDOW = 2 * NUM_READERS
# Two threads keep the interpreter busy as long as the files are in memory.
_FIRST_READERS = 2
# A process that computes less than this share of an interval this long waits for the storage.
_BUSY_SHARE = 0.7
_PATIENCE_S = 0.002
# Errors of one file; other errors concern the file system and stop the run.
_OF_ONE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENXIO)
_JOIN_S = 2.0
_T = TypeVar("_T")


def read_sample(
    source: Source, path: str, row: int, labels: Mapping[str, Any] | None = None
) -> Sample:
    """Reads one object; an error of its file alone makes the object unusable.

    Args:
        source: the source that holds it.
        path: as `Source.scan` lists it.
        row: row in that file.
        labels: the object's row in the catalog.

    Raises:
        SampleError: this object is unusable.
        StorageError: the file system refused, or the whole source has disappeared.
    """
    try:
        return source.read(path, row, labels)
    except StorageError as error:
        # A source that was unmounted would otherwise end as a data set without samples.
        if error.errno in _OF_ONE_FILE and _holds_anything(source.root):
            raise SampleError(str(error)) from error
        raise


def _holds_anything(root: Path) -> bool:
    """Whether a folder exists and has entries; an unmounted disk leaves an empty one."""
    try:
        with os.scandir(root) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def read_in_order(
    count: int, read: Callable[[int], _T], *, num_readers: int = NUM_READERS, run_length: int = 1
) -> Iterator[tuple[int, _T | SampleError]]:
    """Calls `read(0) ... read(count - 1)` in threads and yields what they return, in order.

    Args:
        count: number of calls.
        read: safe to call from many threads.
        num_readers: maximum number of threads; all but the first few start only while the storage
            answers slowly.
        run_length: objects that a thread reads before it hands them over: handing over a small
            object costs as much as reading it.

    Yields:
        The number and the result of `read`; a `SampleError` is yielded, other errors are raised.
    """
    readers = _Readers(count, read, num_readers=num_readers, run_length=run_length)
    try:
        for start in range(0, count, run_length):
            for number, outcome in enumerate(readers.run_from(start), start):
                if isinstance(outcome, BaseException) and not isinstance(outcome, SampleError):
                    raise outcome
                yield number, outcome
            readers.room.release()
    finally:
        readers.stop()


class _Readers:
    """Threads that read runs of objects ahead; more of them while the processor is idle.

    Threads that wait for the storage cost nothing, but those that compete for the interpreter cost
    half as much again as reading a small object from memory.
    """

    def __init__(
        self, count: int, read: Callable[[int], Any], *, num_readers: int, run_length: int
    ) -> None:
        self._count, self._read, self._run_length = count, read, run_length
        self._most = min(num_readers, -(-count // run_length))
        self._starts = itertools.count(0, run_length)
        self.room = threading.Semaphore(max(_WINDOW, num_readers))
        self._done: queue.SimpleQueue[tuple[int, list[Any]]] = queue.SimpleQueue()
        self._early: dict[int, list[Any]] = {}
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._hire(_FIRST_READERS)
        self._looked_s = time.perf_counter()
        self._worked_s = time.process_time()

    def _hire(self, num_readers: int) -> None:
        for number in range(len(self._threads), min(num_readers, self._most)):
            thread = threading.Thread(target=self._serve, name=f"read-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self) -> None:
        while not self._stopped.is_set():
            self.room.acquire()
            start = next(self._starts)
            if start >= self._count:
                return
            run: list[Any] = []
            for number in range(start, min(start + self._run_length, self._count)):
                if self._stopped.is_set():
                    return
                try:
                    run.append(self._read(number))
                except BaseException as error:  # handed to the consumer, which raises it
                    run.append(error)
            self._done.put((start, run))

    def run_from(self, start: int) -> list[Any]:
        """The outcomes of the run that begins with object `start`, when they are available."""
        while start not in self._early:
            with suppress(queue.Empty):
                found, run = self._done.get(timeout=_PATIENCE_S)
                self._early[found] = run
            if len(self._threads) < self._most:
                self._look()
        return self._early.pop(start)

    def _look(self) -> None:
        """Doubles the readers if the processor was mostly idle since the last look."""
        now_s = time.perf_counter()
        if now_s - self._looked_s < _PATIENCE_S:
            return
        worked_s = time.process_time()
        if worked_s - self._worked_s < _BUSY_SHARE * (now_s - self._looked_s):
            self._hire(2 * len(self._threads))
        self._looked_s, self._worked_s = now_s, worked_s

    def stop(self) -> None:
        """Ends the threads, waiting for those that the storage answers."""
        self._stopped.set()
        for _ in self._threads:
            self.room.release()
        # A thread inside a C++ library must not meet the end of the interpreter; one that the
        # storage does not answer must not hold up the end forever.
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
