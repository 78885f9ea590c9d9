"""A worker process of `msdata pack`: takes shard tasks from a pipe, gives results back.

Started by `pool.py` as a fresh interpreter: a fork of a process that has threads or MPI may hang.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from msdata.pack.shard_task import ShardTask, run_tasks
from msdata.sources.detect import detect_source

# Counters of a worker in the shared file: samples, bytes, rejected.
NUM_COUNTERS = 3


class SharedCounters:
    """Counters in shared memory: one row a worker, written by that worker alone.

    Args:
        fd: file of at least `num_workers * NUM_COUNTERS * 8` bytes.
        num_workers: rows.
    """

    def __init__(self, fd: int, num_workers: int) -> None:
        self._map = mmap.mmap(fd, num_workers * NUM_COUNTERS * 8)
        self.values = np.frombuffer(self._map, np.int64).reshape(num_workers, NUM_COUNTERS)


class _WorkerProgress:
    """Counts objects, and ends the process when its parent is gone."""

    def __init__(self, counters: Any) -> None:
        self._counters = counters
        self._parent = os.getppid()

    def __call__(self, *, nbytes: int, is_rejected: bool) -> None:
        if os.getppid() != self._parent:
            # An orphan would write on while a resumed pack writes the same shard.
            os._exit(1)
        self._counters[0] += not is_rejected
        self._counters[1] += nbytes
        self._counters[2] += is_rejected


def main() -> None:
    """Serves tasks until the pipe closes; `WorkerPool` makes the arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe_fd, counters_fd, number, num_workers = (int(a) for a in sys.argv[1:5])
    connection = Connection(pipe_fd)
    counters = SharedCounters(counters_fd, num_workers)
    progress = _WorkerProgress(counters.values[number])
    source = detect_source(Path(sys.argv[5]))
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            connection.send(message)

    def tasks() -> Iterator[ShardTask]:
        while (task := _receive(connection)) is not None:
            yield task
            # Asks for the next task while this one is flushed.
            send(None)

    try:
        run_tasks(tasks(), source, progress, deliver=send)
    except Exception as error:  # handed to the parent, which raises it
        send(error)


def _receive(connection: Connection) -> ShardTask | None:
    try:
        task: ShardTask | None = connection.recv()
    except EOFError:
        os._exit(1)
    return task


if __name__ == "__main__":
    main()
