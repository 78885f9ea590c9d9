"""Ends commands: exit codes of errors, and signals raised as exceptions.

SIGTERM raises one because Slurm sends it at the time limit, and unfinished files must be removed.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from msdata.errors import UsageError

# How often a signal that arrived during an import looks whether that import has ended.
_IMPORT_POLL_S = 0.01


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


def raise_on_signals() -> None:
    """Lets Ctrl-C raise `KeyboardInterrupt`, and the first SIGTERM `Terminated`.

    A signal that arrives while a module is imported raises when that import has ended: some
    imports swallow exceptions, and NumPy's turns them into ImportError. Launchers send several
    SIGTERMs; the later ones are ignored, since they would cut short the removal of unfinished
    files. Does nothing outside of the main thread, and leaves SIGINT alone where the caller ignores
    it.
    """
    _handle(_raise)


def end_on_signals(line: str) -> None:
    """Lets Ctrl-C and SIGTERM end the process at once, before there is work to tidy up.

    Does nothing outside of the main thread, and leaves SIGINT alone where the caller ignores it.

    Args:
        line: printed on standard error.
    """

    def end(number: int, frame: Any) -> None:
        os.write(2, f"{line}\n".encode())
        os._exit(128 + number)

    _handle(end)


def _handle(handler: Callable[[int, Any], None]) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
        # Shells start background jobs with SIGINT ignored.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)


def open_standard_streams() -> None:
    """Opens stdin, stdout and stderr on /dev/null if the caller closed them.

    Otherwise the first files to be opened get their descriptors, and messages go into these files.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The system assigns the lowest free number.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def keep_lines_whole() -> None:
    """Makes stderr write whole lines: otherwise lines of several ranks mix.

    Python writes a text and its line feed separately, and launchers merge the output of all ranks.
    """
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=True, write_through=False)


def ignore_signals() -> None:
    """Ignores Ctrl-C and SIGTERM from now on, because the process is ending already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end the process at once, in C code too, without cleanup.

    By default Python handles a signal when the C call returns; MPI's start waits for all ranks.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def exit_code_of(error: BaseException | None) -> int:
    """Returns the exit code: 0 success, 2 wrong usage, 128 and more a signal, 1 other errors."""
    if error is None:
        return 0
    if isinstance(error, Terminated):
        return 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 2 if isinstance(error, UsageError) else 1


def _raise(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _is_importing(frame):
        signal.signal(signal.SIGALRM, lambda _, later: _raise(number, later))
        signal.setitimer(signal.ITIMER_REAL, _IMPORT_POLL_S)
        return
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False
