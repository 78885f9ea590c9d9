"""`--jobs`: how many threads or processes a command works with."""

from __future__ import annotations

import argparse
import os

from msdata.errors import UsageError


def num_cores() -> int:
    """Processors that this process may run on; fewer than the node has, in a job."""
    return len(os.sched_getaffinity(0))


def add_jobs(parser: argparse.ArgumentParser, what: str) -> None:
    """Declares `--jobs`.

    Args:
        parser: of the command.
        what: there are so many of, such as "threads".
    """
    parser.add_argument("--jobs", type=int, help=f"{what}; default: the cores of this node")


def num_jobs(asked: int | None) -> int:
    """How many there are to be.

    Args:
        asked: the option; None means one a core.

    Raises:
        UsageError: less than one was asked for.
    """
    if asked is None:
        return num_cores()
    if asked < 1:
        raise UsageError(f"--jobs {asked} leaves nobody to do the work; give at least 1")
    return asked
