"""Worker processes on this node: started at once, fed with tasks, watched.

Each is a fresh interpreter on a pipe. They start while the parent still lists the objects.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from msdata.errors import MsdataError
from msdata.pack.shard_task import ShardResult, ShardTask
from msdata.pack.worker import NUM_COUNTERS, SharedCounters

_TICK_S = 0.2


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    is_idle: bool = True
    is_done: bool = False


class WorkerPool:
    """A context manager that owns the worker processes.

    Args:
        num_workers: processes to start.
        source_root: folder with the objects, which each worker opens by itself.
    """

    def __init__(self, num_workers: int, source_root: Path) -> None:
        self._source_root = source_root
        self._num_workers = num_workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool:
        with tempfile.TemporaryFile() as file:
            file.truncate(self._num_workers * NUM_COUNTERS * 8)
            self.counters = SharedCounters(file.fileno(), self._num_workers).values
            for number in range(self._num_workers):
                self._workers.append(self._start(number, file.fileno()))
        return self

    def _start(self, number: int, counters_fd: int) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                *(sys.executable, "-m", "msdata.pack.worker"),
                *(str(theirs.fileno()), str(counters_fd), str(number), str(self._num_workers)),
                str(self._source_root),
            ]
            package_root = str(Path(__file__).parents[2])
            process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(), counters_fd),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": _with(package_root)},
            )
        return _Worker(process=process, connection=Connection(ours.detach()))

    def run(self, tasks: Iterator[ShardTask], tick: Callable[[], None]) -> Iterator[ShardResult]:
        """Hands out tasks in order and yields results as they come.

        Args:
            tasks: drawn one by one as workers ask.
            tick: called several times a second; may raise to stop the work.

        Yields:
            One result a task.

        Raises:
            MsdataError: a worker failed, or died.
        """
        pending = True
        while not all(w.is_done for w in self._workers):
            for worker in self._workers:
                if worker.is_idle and not worker.is_done:
                    task = next(tasks, None) if pending else None
                    pending = task is not None
                    worker.connection.send(task)
                    worker.is_idle, worker.is_done = False, task is None
            tick()
            yield from self._collect()
        while any(w.process.poll() is None for w in self._workers):
            tick()
            yield from self._collect()
        yield from self._collect()

    def _collect(self) -> Iterator[ShardResult]:
        by_connection = {w.connection: w for w in self._workers if not w.connection.closed}
        for ready in wait(list(by_connection), _TICK_S):
            worker = by_connection[ready]  # type: ignore[index]
            message = _receive(worker)
            if isinstance(message, Exception):
                raise message
            if isinstance(message, ShardResult):
                yield message
            elif not worker.is_done:
                worker.is_idle = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            if error is not None and worker.process.poll() is None:
                worker.process.send_signal(signal.SIGKILL)
            worker.connection.close()
        for worker in self._workers:
            worker.process.wait()


def _receive(worker: _Worker) -> Any:
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionResetError):
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


def _with(folder: str) -> str:
    rest = os.environ.get("PYTHONPATH")
    return f"{folder}{os.pathsep}{rest}" if rest else folder
