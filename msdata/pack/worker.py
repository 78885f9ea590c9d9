"""A worker of `msdata pack`, a process on a pipe or an MPI rank: takes tasks, gives results back.

Processes are started by `pool.py` as fresh interpreters: a fork of a process that has threads or
MPI may hang.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.core.pipe import Pipe
from msdata.errors import MsdataError
from msdata.pack.shard_task import Rejection, ShardTask, run_tasks
from msdata.sources.arrays.options import ArrayOptions
from msdata.sources.detect import detect_source
from msdata.sources.fits_options import FitsOptions
from msdata.sources.source import Source

# How often a worker reports how far it is.
_REPORT_S = 0.2
# How long after a finalizer swallowed the end it is asked for again.
_END_AGAIN_S = 0.01


@dataclass(frozen=True)
class Packed:
    """How far a worker is.

    Attributes:
        num_samples: samples that it has packed.
        nbytes: bytes of those samples.
        is_idle: it has packed its task, and waits for the next one.
    """

    num_samples: int
    nbytes: int
    is_idle: bool


class _Progress:
    """Counts objects, and has it checked whether to stop."""

    def __init__(self, send: Callable[[Any], None], check: Callable[[], None]) -> None:
        self._send = send
        self._check = check
        self._num_samples = self._nbytes = 0
        self._reported_s = time.monotonic()

    def accept(self, nbytes: int) -> None:
        """Counts one sample of `nbytes` bytes."""
        self._check()
        self._num_samples += 1
        self._nbytes += nbytes
        if time.monotonic() - self._reported_s > _REPORT_S:
            self.report(is_idle=False)

    def reject(self, rejection: Rejection) -> None:
        """Reports an unusable object."""
        self._check()
        self._send(rejection)

    def report(self, *, is_idle: bool) -> None:
        self._reported_s = time.monotonic()
        self._send(Packed(self._num_samples, self._nbytes, is_idle))


def serve(
    source: Source,
    receive: Callable[[], ShardTask | None],
    send: Callable[[Any], None],
    check: Callable[[], None],
) -> None:
    """Packs tasks until None is received.

    Args:
        source: the source that holds the objects.
        receive: waits for the next task; None ends the work.
        send: takes results, rejections and `Packed`, from any thread.
        check: called for each object; may raise to stop the work.

    Raises:
        StorageError: the file system refused.
    """
    progress = _Progress(send, check)

    def tasks() -> Iterator[ShardTask]:
        while (task := receive()) is not None:
            yield task
            # Asks for the next task while this one is flushed.
            progress.report(is_idle=True)

    run_tasks(tasks(), source, progress, deliver=send)
    progress.report(is_idle=True)


def main() -> None:
    """Serves tasks until the pipe closes; `Pipes` makes the arguments."""
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
        _serve_pipe()
        exit_code = 0
    except SystemExit as error:
        exit_code = int(error.code or 0)
    except (BrokenPipeError, EOFError):
        # The parent has ended.
        exit_code = 1
    finally:
        sys.stderr.flush()
        # Do not wait for readers that the storage does not answer.
        os._exit(exit_code)


def _serve_pipe() -> None:
    pipe = Pipe(int(sys.argv[1]), int(sys.argv[2]))
    said = json.loads(sys.argv[4])
    parent = os.getppid()
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            pipe.send(message)

    def check() -> None:
        if os.getppid() != parent:
            # An orphan has no parent to note what it finishes.
            raise SystemExit(1)

    try:
        fits = FitsOptions.from_json(said["fits"]) if said["fits"] else None
        arrays = ArrayOptions(**said["arrays"]) if said["arrays"] else None
        serve(detect_source(Path(sys.argv[3]), fits, arrays), pipe.receive, send, check)
    except (BrokenPipeError, EOFError):
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
