"""Ends commands: exit codes of errors, and signals raised as exceptions.

SIGTERM raises one because Slurm sends it at the time limit, and unfinished files must be removed.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msdata.errors import UsageError


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived."""


def raise_on_sigterm() -> None:
    """Makes the first SIGTERM raise `Terminated`; does nothing outside of the main thread.

    Launchers send several, and a second one would interrupt the cleanup that the first one started.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def end_on_sigterm(says: str) -> None:
    """Makes SIGTERM end the process with a line on stderr, before there is work to clean up.

    An exception is not an option: imports swallow it or turn it into another. Does nothing outside
    of the main thread.

    Args:
        says: the line.
    """

    def end(number: int, frame: Any) -> None:
        os.write(2, f"{says}\n".encode())
        os._exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


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


def _raise(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated
