"""Reads objects ahead of the one writer, in threads, and hands them over in order.

A parallel file system answers slowly however fast it streams, so many reads must be under way.
"""

from __future__ import annotations

import errno
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from msdata.errors import SampleError, StorageError
from msdata.schema import Sample
from msdata.sources.source import Source

# Each of 32 readers may wait 10 ms for a file, and a process still gets 3,200 files/s. Without any
# waiting 4, 16 and 32 readers are equally fast.
NUM_READERS = 32
# Objects that may be ahead of the writer; bounds the memory.
_WINDOW = 2 * NUM_READERS
# What the operating system says of one file; other errors are the file system's and stop the run.
_OF_ONE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENXIO)
_JOIN_S = 2.0
_T = TypeVar("_T")


def read_sample(
    source: Source, path: str, row: int, labels: Mapping[str, Any] | None = None
) -> Sample:
    """Reads one object; what the system says of its file alone makes the object unusable.

    Args:
        source: where it is.
        path: as `Source.scan` lists it.
        row: as there.
        labels: the object's row of the catalogue.

    Raises:
        SampleError: this object is unusable.
        StorageError: the file system refused, or the whole source has gone.
    """
    try:
        return source.read(path, row, labels)
    except StorageError as error:
        # A source that was unmounted would otherwise end as a data set without samples.
        if error.errno in _OF_ONE_FILE and source.root.is_dir():
            raise SampleError(str(error)) from error
        raise


def read_in_order(
    count: int, read: Callable[[int], _T], *, num_readers: int = NUM_READERS
) -> Iterator[tuple[int, _T | SampleError]]:
    """Calls `read(0) ... read(count - 1)` in threads and yields what they return, in order.

    Args:
        count: how many there are.
        read: safe to call from many threads.
        num_readers: threads.

    Yields:
        The number and what `read` gave; a `SampleError` is yielded too, other errors are raised.
    """
    numbers = itertools.count()
    room = threading.Semaphore(max(_WINDOW, num_readers))
    done: queue.SimpleQueue[tuple[int, _T | BaseException]] = queue.SimpleQueue()
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            room.acquire()
            number = next(numbers)
            if number >= count or stopped.is_set():
                return
            try:
                done.put((number, read(number)))
            except BaseException as error:  # handed to the consumer, which raises it
                done.put((number, error))

    readers = [
        threading.Thread(target=serve, name=f"read-{i}", daemon=True)
        for i in range(min(num_readers, count))
    ]
    for reader in readers:
        reader.start()
    early: dict[int, _T | BaseException] = {}
    try:
        for wanted in range(count):
            while wanted not in early:
                number, outcome = done.get()
                early[number] = outcome
            result = early.pop(wanted)
            if isinstance(result, BaseException) and not isinstance(result, SampleError):
                raise result
            yield wanted, result
            room.release()
    finally:
        stopped.set()
        for _ in readers:
            room.release()
        # A thread inside a C++ library must not meet the end of the interpreter; one that the
        # storage does not answer must not hold up the end for ever.
        deadline = time.monotonic() + _JOIN_S
        for reader in readers:
            reader.join(max(0.0, deadline - time.monotonic()))
