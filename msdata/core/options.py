"""The option `--jobs`: number of threads or processes of a command."""

from __future__ import annotations

import argparse
import os

from msdata.errors import UsageError


def num_cores() -> int:
    """Counts the CPU cores that this process may run on: in a job, fewer than the node has."""
    return len(os.sched_getaffinity(0))


def add_jobs(parser: argparse.ArgumentParser, what: str) -> None:
    """Declares `--jobs`.

    Args:
        parser: the command's parser.
        what: the things counted, such as "threads".
    """
    parser.add_argument("--jobs", type=int, help=f"number of {what} (default: one per core)")


def num_jobs(asked: int | None) -> int:
    """Resolves `--jobs`.

    Args:
        asked: the option's value; None means one per core.

    Raises:
        UsageError: the value is below 1.
    """
    if asked is None:
        return num_cores()
    if asked < 1:
        raise UsageError(f"--jobs must be at least 1, got {asked}")
    return asked
