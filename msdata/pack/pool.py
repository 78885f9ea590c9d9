"""Worker processes on this node, each a fresh interpreter on a pipe.

The first starts while the parent still lists the objects, the others when they are known to have
enough to do. The executors of the standard library and of mpi4py start no faster, wait for running
shards when a signal comes (8 s in place of 0.1 s), do not say what killed a process, and mpi4py's
leaves one rank idle.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from msdata.core.files import TEMPORARY_SUFFIX
from msdata.core.pipe import Pipe, open_pipe, wait_for
from msdata.errors import MsdataError
from msdata.pack.settings import PackSettings
from msdata.pack.shard_task import ShardTask

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


@dataclass(eq=False)
class Worker:
    """A process that packs shards, as the driver sees it.

    Attributes:
        send: gives it a task; None ends the work.
        is_idle: it waits for a task.
        has_all: it was told that all tasks are given.
        is_finished: it has delivered all results.
        packed: samples and bytes that it has packed.
        unfinished: shards that it was given and has not reported, by the task's number.
    """

    send: Callable[[ShardTask | None], None]
    is_idle: bool = True
    has_all: bool = False
    is_finished: bool = False
    packed: tuple[int, int] = (0, 0)
    unfinished: dict[int, Path] = field(default_factory=dict)


class Transport(Protocol):
    """A way to reach workers."""

    @property
    def workers(self) -> Sequence[Worker]:
        """The workers, started or not."""

    def messages(self, wait_s: float) -> Iterator[tuple[Worker, Any]]:
        """Yields what workers have sent, after at most `wait_s` seconds."""


class Pipes:
    """A context manager that owns the worker processes, at first one; implements `Transport`.

    Args:
        settings: settings of the pack; each worker opens the source itself.
        lock_fd: the folder's lock, which each worker keeps for as long as it lives.
    """

    def __init__(self, settings: PackSettings, lock_fd: int) -> None:
        self._settings = settings
        self._lock_fd = lock_fd
        self._pipes: list[tuple[Worker, Pipe, subprocess.Popen[bytes]]] = []

    @property
    def workers(self) -> list[Worker]:
        """The processes, as the driver sees them."""
        return [worker for worker, _, _ in self._pipes]

    def __enter__(self) -> Pipes:
        try:
            self.start(1)
        except BaseException:
            self._stop_all()
            raise
        return self

    def start(self, num_workers: int) -> None:
        """Starts processes until there are so many.

        Raises:
            MsdataError: the system refused.
        """
        # A signal's mask is inherited: Ctrl-C reaches all processes of the terminal, but only the
        # parent is to act on it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(len(self._pipes), num_workers):
                self._start()
        except OSError as error:
            raise MsdataError(
                f"cannot start {num_workers} worker processes of {sys.executable}: "
                f"{error.strerror}; give a smaller --jobs, or check the permissions of that file"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start(self) -> None:
        pipe, theirs = open_pipe()
        command = [
            *(sys.executable, "-P", "-c", _BOOTSTRAP, str(Path(__file__).parents[2])),
            *(str(theirs.receive_fd), str(theirs.send_fd), str(self._settings.source)),
            json.dumps(self._settings.source_options()),
        ]
        try:
            process = subprocess.Popen(
                command,
                pass_fds=(theirs.receive_fd, theirs.send_fd, self._lock_fd),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
            )
        except BaseException:
            pipe.close()
            raise
        finally:
            theirs.close()

        def send(task: ShardTask | None) -> None:
            # If it died, `messages` finds its last words and how it ended.
            with suppress(BrokenPipeError):
                pipe.send(task)

        self._pipes.append((Worker(send=send), pipe, process))

    def messages(self, wait_s: float) -> Iterator[tuple[Worker, Any]]:
        """Yields what workers have sent, after at most `wait_s` seconds.

        Raises:
            MsdataError: a worker died.
        """
        running = {pipe: (w, process) for w, pipe, process in self._pipes if not w.is_finished}
        for pipe in wait_for([*running], wait_s):
            worker, process = running[pipe]
            try:
                message = pipe.receive()
            except EOFError:
                raise _death(process.wait()) from None
            yield worker, message

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            for _, pipe, process in self._pipes:
                pipe.close()
                process.wait()
        else:
            self._stop_all()

    def _stop_all(self) -> None:
        """Asks the workers to remove unfinished shards; kills those that do not end."""
        try:
            for _, _, process in self._pipes:
                process.terminate()
            deadline = time.monotonic() + _GRACE_S
            for _, _, process in self._pipes:
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            for worker, pipe, process in self._pipes:
                process.kill()
                pipe.close()
                process.wait()
                for path in worker.unfinished.values():
                    _remove_parts(path)


def _remove_parts(shard: Path) -> None:
    """Removes the unfinished files of a worker that could not do so itself."""
    # The shard's own, its DALI index's.
    for part in shard.parent.glob(f"{shard.stem}.*{TEMPORARY_SUFFIX}"):
        with suppress(OSError):
            part.unlink()


def _death(code: int) -> MsdataError:
    cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return MsdataError(
        f"a pack worker {cause} (out of memory, or killed by hand?); what is finished is kept: "
        "run the same command with --resume"
    )
