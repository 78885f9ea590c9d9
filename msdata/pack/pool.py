"""Worker processes on this node: started at once, fed with tasks, watched.

Each is a fresh interpreter on a pipe. They start while the parent still lists the objects.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from msdata.core.files import TEMPORARY_SUFFIX
from msdata.errors import MsdataError
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import Rejection, ShardResult, ShardTask
from msdata.pack.worker import NUM_COUNTERS, SharedCounters

_TICK_S = 0.2
# Time for a worker to remove its unfinished shard when the run fails.
_GRACE_S = 5.0
# Buffers of 0.6 MB come and go by the thousand. Unless it is told otherwise, glibc gives each back
# to the kernel, which clears the pages of the next one: a third of a pack's system time. Nothing
# here needs OpenBLAS, whose threads would only spin.
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "OPENBLAS_NUM_THREADS": "1",
}
# `-P` and a path at the end: a file in the current folder that is named like a module of Python's
# must not be imported in its place. Imports leave hardly any garbage, and looking for it takes a
# tenth of their time.
_BOOTSTRAP = (
    "import gc, sys; gc.disable(); sys.path.append(sys.argv.pop(1)); "
    "import msdata.pack.worker as w; w.main()"
)


class Watcher(Protocol):
    """Watches the workers."""

    def tick(self) -> None:
        """Called several times a second; may raise to stop the work."""

    def reject(self, rejection: Rejection) -> None:
        """Told of each unusable object; may raise to stop the work."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    is_idle: bool = True
    is_done: bool = False
    # Shards that it was given and has not reported, by the task's number.
    unfinished: dict[int, Path] = field(default_factory=dict)


class WorkerPool:
    """A context manager that owns the worker processes.

    Args:
        num_workers: processes to start.
        settings: settings of the pack; each worker opens the source itself.
        lock_fd: the folder's lock, which each worker keeps for as long as it lives.
    """

    def __init__(self, num_workers: int, settings: PackSettings, lock_fd: int) -> None:
        self._settings = settings
        self._num_workers = num_workers
        self._lock_fd = lock_fd
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool:
        counters_fd = os.memfd_create("msdata-pack-counters")
        # A signal's mask is inherited: Ctrl-C reaches all processes of the terminal, but only the
        # parent is to act on it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            os.ftruncate(counters_fd, self._num_workers * NUM_COUNTERS * 8)
            self.counters = SharedCounters(counters_fd, self._num_workers).values
            for number in range(self._num_workers):
                self._workers.append(self._start(number, counters_fd))
        except OSError as error:
            self._stop_all()
            raise MsdataError(
                f"cannot start {self._num_workers} worker processes of {sys.executable}: "
                f"{error.strerror}; give a smaller --jobs, or check the permissions of that "
                "file"
            ) from error
        finally:
            os.close(counters_fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def _start(self, number: int, counters_fd: int) -> _Worker:
        fits = self._settings.fits
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                *(sys.executable, "-P", "-c", _BOOTSTRAP, str(Path(__file__).parents[2])),
                *(str(theirs.fileno()), str(counters_fd), str(number), str(self._num_workers)),
                str(self._settings.source),
                json.dumps(None if fits is None else fits.to_json()),
            ]
            process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(), counters_fd, self._lock_fd),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
            )
        return _Worker(process=process, connection=Connection(ours.detach()))

    def run(self, tasks: Iterator[ShardTask], watcher: Watcher) -> Iterator[ShardResult]:
        """Hands out tasks in order and yields results as they come.

        Args:
            tasks: drawn one by one as workers ask.
            watcher: told of progress and rejected objects.

        Yields:
            One result per task.

        Raises:
            MsdataError: a worker failed, or died.
        """
        pending = True
        while not all(w.is_done for w in self._workers):
            for worker in self._workers:
                if worker.is_idle and not worker.is_done:
                    task = next(tasks, None) if pending else None
                    pending = task is not None
                    if task is not None:
                        worker.unfinished[task.number] = task.path
                    _send(worker, task)
                    worker.is_idle, worker.is_done = False, task is None
            watcher.tick()
            yield from self._collect(watcher)
        while any(not w.connection.closed for w in self._workers):
            watcher.tick()
            yield from self._collect(watcher)

    def _collect(self, watcher: Watcher) -> Iterator[ShardResult]:
        by_connection = {w.connection: w for w in self._workers if not w.connection.closed}
        for ready in wait(list(by_connection), _TICK_S):
            worker = by_connection[ready]  # type: ignore[index]
            message = _receive(worker)
            if isinstance(message, Exception):
                raise message
            if isinstance(message, ShardResult):
                worker.unfinished.pop(message.number, None)
                yield message
            elif isinstance(message, Rejection):
                watcher.reject(message)
            elif not worker.is_done:
                worker.is_idle = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            for worker in self._workers:
                worker.connection.close()
                worker.process.wait()
        else:
            self._stop_all()

    def _stop_all(self) -> None:
        """Asks the workers to remove unfinished shards; kills those that do not end."""
        try:
            for worker in self._workers:
                worker.process.terminate()
            deadline = time.monotonic() + _GRACE_S
            for worker in self._workers:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.connection.close()
                worker.process.wait()
                for path in worker.unfinished.values():
                    _remove_parts(path)


def _remove_parts(shard: Path) -> None:
    """Removes the unfinished files of a worker that could not do so itself."""
    # The shard's own, its DALI index's.
    for part in shard.parent.glob(f"{shard.stem}.*{TEMPORARY_SUFFIX}"):
        with suppress(OSError):
            part.unlink()


def _send(worker: _Worker, task: ShardTask | None) -> None:
    try:
        worker.connection.send(task)
    except (BrokenPipeError, ConnectionResetError):
        # It died; `_receive` finds its last messages and how it ended.
        return


def _receive(worker: _Worker) -> Any:
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        pass
    code = worker.process.wait()
    worker.connection.close()
    if worker.is_done and code == 0:
        return None
    cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise MsdataError(
        f"a pack worker {cause} (out of memory, or killed by hand?); what is finished is kept: "
        "run the same command with --resume"
    )
