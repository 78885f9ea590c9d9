"""Options and arguments: `--jobs`, and former spellings, accepted with a warning."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

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


def renamed(given: Mapping[str, Any], names: Mapping[str, str], owner: str) -> dict[str, Any]:
    """Takes arguments by their former names; a `FutureWarning` names the present ones.

    Args:
        given: further keyword arguments of a call.
        names: present name of each former one.
        owner: the function or class, for messages.

    Raises:
        TypeError: an argument is unknown.
    """
    for name in given:
        if name not in names:
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}")
        message = f"{owner}({name}=) is now called {names[name]}=; the former name will go"
        warnings.warn(message, FutureWarning, stacklevel=4)
    return {names[name]: value for name, value in given.items()}


def add_former(
    parser: argparse.ArgumentParser,
    option: str,
    dest: str,
    choices: tuple[str, ...],
    values: Mapping[str, str] | None = None,
) -> None:
    """Accepts an option by its former name, with a note on stderr.

    Args:
        parser: the command's parser.
        option: the former name, such as "--fill".
        dest: where the present one is stored.
        choices: the former values.
        values: present value of each former one; None where they are the same.
    """

    class Former(argparse.Action):
        def __call__(self, _: Any, namespace: argparse.Namespace, value: Any, *__: Any) -> None:
            print(f"note: {option} is now --{dest.replace('_', '-')}", file=sys.stderr)
            setattr(namespace, dest, (values or {}).get(value, value))

    suppressed = argparse.SUPPRESS
    parser.add_argument(
        option, dest=dest, action=Former, choices=choices, default=suppressed, help=suppressed
    )


def parse_pair(option: str, text: str) -> tuple[str, str]:
    """Parses `A=B`, or one name for both.

    Raises:
        UsageError: it is neither.
    """
    left, equals, right = (word.strip() for word in text.partition("="))
    if not left or bool(equals) != bool(right):
        raise UsageError(f"{option} must be A=B or one name for both, got {text!r}")
    return left, right or left


def parse_renames(option: str, text: str) -> dict[str, str]:
    """Parses `NEW=NAME,...`: the name of each column by its new one.

    Raises:
        UsageError: a word is malformed, or a new name is there twice.
    """
    pairs = [parse_pair(option, word) for word in text.split(",") if word.strip()]
    names = [new for new, _ in pairs]
    for new in names:
        if names.count(new) > 1:
            raise UsageError(f"{option} must give each column its own name, got {new!r} twice")
    return dict(pairs)
