"""A folder that all nodes see, by which the nodes of a job find and authenticate each other.

The folder holds the job's key, readable by its user only, and a file for each node that serves. A
process that can read the key can read the data set anyway; a stranger on the network cannot. A
folder that others can write to is refused: they could replace the key.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msdata.cache.own_file import open_own_folder, read_own
from msdata.core.checked_json import parse_json
from msdata.core.files import storage_error, write_whole
from msdata.errors import DataError, StorageError

_KEY_FILE = "key.json"
_MOST_NBYTES = 4096
# A key of CURVE in Z85.
_KEY_LETTERS = 40


def job_keys(folder: Path, make: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """The job's public and secret key; the first process to ask makes them.

    Args:
        folder: a folder that all nodes see; made if missing, for this user only.
        make: makes a pair of keys.

    Raises:
        StorageError: the file system refused, or others may read the key or write to the folder.
    """
    path = folder / _KEY_FILE
    try:
        # Others cannot put anything into it afterwards, so it need not stay open.
        os.close(open_own_folder(folder, is_followed=True))
        if not os.path.lexists(path):
            _offer(path, make())
        cure = "remove it and start again"
        keys = parse_json(read_own(path, _MOST_NBYTES), path, cure=cure).read_as(tuple[str, str])
    except StorageError:
        raise
    except OSError as error:
        raise storage_error("share", path, error) from error
    except DataError as error:
        raise StorageError(f"{path} is not a key file: {error}") from error
    if any(len(key) != _KEY_LETTERS for key in keys):
        raise StorageError(f"{path} is not a key file; {cure}")
    return keys


def _offer(path: Path, keys: tuple[str, str]) -> None:
    """Writes the key file, whole, unless another process was first."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(keys, file)
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()


def announce(folder: Path, name: str, node: int, address: str) -> None:
    """Announces where a node's records are served.

    Args:
        folder: as for `job_keys`.
        name: name of data set and split.
        node: the node's number.
        address: its server's address.

    Raises:
        StorageError: the file system refused.
    """
    content = json.dumps({"address": address}).encode()
    write_whole(_place(folder, name, node), content)


def withdraw(folder: Path, name: str, node: int, address: str) -> None:
    """Withdraws an announcement, unless another server has announced itself since."""
    if address_of(folder, name, node) == address:
        with suppress(OSError):
            _place(folder, name, node).unlink()


def address_of(folder: Path, name: str, node: int) -> str | None:
    """The announced address of a node's server; None if there is none."""
    try:
        place = _place(folder, name, node)
        content = read_own(place, _MOST_NBYTES, is_private=False)
        address = parse_json(content, place, cure="")["address"].read_as(str)
    except (OSError, DataError):
        return None
    return address


def _place(folder: Path, name: str, node: int) -> Path:
    return folder / f"{name}-n{node}.json"
