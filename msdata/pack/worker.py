"""A worker process of `msdata pack`: takes shard tasks from a pipe, gives results back.

Started by `pool.py` as a fresh interpreter: a fork of a process that has threads or MPI may hang.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from msdata.errors import MsdataError
from msdata.pack.shard_task import Rejection, ShardTask, run_tasks
from msdata.sources.detect import detect_source
from msdata.sources.fits_options import FitsOptions

# Counters of a worker in the shared file: samples, bytes, rejected.
NUM_COUNTERS = 3
# How long after a finalizer swallowed the end it is asked for again.
_END_AGAIN_S = 0.01


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
    """Counts objects, and ends the process when its parent has ended."""

    def __init__(self, counters: Any, send: Callable[[Any], None]) -> None:
        self._counters = counters
        self._send = send
        self._parent = os.getppid()

    def accept(self, nbytes: int) -> None:
        """Counts one sample of `nbytes` bytes."""
        self._check_parent()
        self._counters[0] += 1
        self._counters[1] += nbytes

    def reject(self, rejection: Rejection) -> None:
        """Counts an unusable object and tells the parent why it is."""
        self._check_parent()
        self._counters[2] += 1
        self._send(rejection)

    def _check_parent(self) -> None:
        if os.getppid() != self._parent:
            # An orphan has no parent to note what it finishes.
            raise SystemExit(1)


def main() -> None:
    """Serves tasks until the pipe closes; `WorkerPool` makes the arguments."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGALRM, _end)
    # The command's stdout may be read by a program: what a library prints here is not part of it.
    os.dup2(2, 1)
    sys.unraisablehook = _end_again
    # What is made per object has no cycles; the modules' millions of objects need no second look.
    gc.freeze()
    gc.disable()
    exit_code = 1
    try:
        _serve()
        exit_code = 0
    except SystemExit as error:
        exit_code = int(error.code or 0)
    except (BrokenPipeError, ConnectionResetError):
        # The parent has ended.
        exit_code = 1
    finally:
        sys.stderr.flush()
        # Do not wait for readers that the storage does not answer.
        os._exit(exit_code)


def _serve() -> None:
    pipe_fd, counters_fd, number, num_workers = (int(a) for a in sys.argv[1:5])
    connection = Connection(pipe_fd)
    counters = SharedCounters(counters_fd, num_workers)
    said = json.loads(sys.argv[6])
    fits = None if said is None else FitsOptions.from_json(said)
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
        source = detect_source(Path(sys.argv[5]), fits)
        run_tasks(tasks(), source, _WorkerProgress(counters.values[number], send), deliver=send)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # handed to the parent, which raises it
        if not isinstance(error, MsdataError):
            error.add_note("in a pack worker:\n" + traceback.format_exc())
        send(error)


def _end(number: int, frame: Any) -> None:
    """Ends in good order: an exception removes the unfinished shard on its way out."""
    # A second one, from the parent after the batch system's, must not interrupt the removing.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signal.SIGTERM)


def _end_again(unraisable: Any) -> None:
    """Asks again where the signal came inside a finalizer, which swallows exceptions."""
    if isinstance(unraisable.exc_value, SystemExit):
        signal.setitimer(signal.ITIMER_REAL, _END_AGAIN_S)
    else:
        sys.__unraisablehook__(unraisable)


def _receive(connection: Connection) -> ShardTask | None:
    try:
        task: ShardTask | None = connection.recv()
    except (EOFError, ConnectionResetError):
        sys.exit(1)
    return task
