"""How a command ends: exit codes of errors, and of signals that are raised as exceptions.

SIGTERM is one of them: Slurm sends it at the time limit, and unfinished files are to be removed.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
from typing import Any

from msdata.errors import UsageError


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


def raise_on_sigterm() -> None:
    """Lets the first SIGTERM raise `Terminated`; does nothing outside of the main thread.

    Launchers send several, and a second one would cut short what the first one has begun: removing
    unfinished files, and saying so.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def keep_lines_whole() -> None:
    """Has standard error take a line at a time: else other ranks' words get into the middle of it.

    Python writes a sentence and the end of its line one after the other, and launchers put together
    what comes from all ranks.
    """
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=True, write_through=False)


def ignore_signals() -> None:
    """From here on neither Ctrl-C nor SIGTERM interrupts: the process is ending already."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def exit_code_of(error: BaseException | None) -> int:
    """The exit code for an error: 2 wrong usage, 128 and more a signal, 1 any other, 0 none."""
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
