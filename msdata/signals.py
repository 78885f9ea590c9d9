"""SIGTERM as an exception: Slurm sends it at the time limit, and half files are to go."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


def raise_on_sigterm() -> None:
    """Lets SIGTERM raise `Terminated`; does nothing outside of the main thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def exit_code_of(error: BaseException) -> int | None:
    """The shell's exit code for a signal that was raised as an exception; None for others."""
    if isinstance(error, Terminated):
        return 128 + signal.SIGTERM
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else None


def _raise(number: int, frame: Any) -> None:
    raise Terminated
