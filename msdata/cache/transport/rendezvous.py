"""A folder that all nodes see, by which the nodes of a job agree, find and authenticate each other.

The folder holds the job's key, readable by its user only, and two files for each node that serves:
what it offered to the others, which stays, and its address, which is there while it serves. A
process that can read the key can read the data set anyway; a stranger on the network cannot. A
folder that others can write to is refused: they could replace the key.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from msdata.cache.own_file import open_own_folder, read_own
from msdata.cache.tier import LOG
from msdata.cache.transport.group import Group
from msdata.core.checked_json import parse_json
from msdata.core.files import refusals, storage_error, write_whole
from msdata.errors import DataError, StorageError

_KEY_FILE = "key.json"
_MOST_NBYTES = 4096
# A key of CURVE in Z85.
_KEY_LETTERS = 40
_POLL_S = 0.2
# Services that are started together differ by seconds.
_WARN_AFTER_S = 20.0


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


class FolderGroup(Group):
    """Services that agree through files of a folder, and then run and end each by itself.

    What a service has said stays: started again it says the same, whatever it finds now. So all
    services compute the same owners at any time, and one that died harms no other.

    Args:
        folder: as for `job_keys`.
        name: name of job, data set and split.
        node: name of this node, as no other has it.
        size: number of nodes.

    Raises:
        StorageError: the file system refused, or others may write to the folder.
    """

    def __init__(self, folder: Path, name: str, node: str, size: int) -> None:
        os.close(open_own_folder(folder, is_followed=True))
        self._folder = folder
        self._suffix = f"-{name}.offer.json"
        self._mine = folder / f"{node}{self._suffix}"
        self._said = _said(self._mine)
        self._num_asked = 0
        self.size = size

    def allgather(self, value: Any) -> list[Any]:
        """What every service said at this call, by rank, the order of names; waits for all.

        Args:
            value: what this service says unless it has said something before; JSON.

        Raises:
            StorageError: the file system refused, a file is damaged, or more services than `size`
                have said something.
        """
        if self._num_asked == len(self._said):
            self._said.append(value)
            write_whole(self._mine, json.dumps(self._said).encode())
        self._num_asked += 1
        warn_at_s = time.monotonic() + _WARN_AFTER_S
        while True:
            with refusals("read", self._folder):
                places = sorted(self._folder.glob(f"*{self._suffix}"))
            if len(places) > self.size:
                raise StorageError(
                    f"{self._folder} has offers of {len(places)} nodes, got --nodes {self.size}; "
                    "give their number, or choose an empty folder"
                )
            said = [_said(place) for place in places]
            if len(said) == self.size and min(map(len, said)) >= self._num_asked:
                self.rank = places.index(self._mine)
                return [one[self._num_asked - 1] for one in said]
            if time.monotonic() > warn_at_s:
                warn_at_s = float("inf")
                LOG.warning(
                    "waiting for the services of %d nodes, %d have started; start one on each",
                    *(self.size, len(places)),
                )
            time.sleep(_POLL_S)


def _said(place: Path) -> list[Any]:
    """What a service has said so far; nothing if its file is missing."""
    try:
        content = read_own(place, _MOST_NBYTES, is_private=False)
        return list(parse_json(content, place, cure="remove it").read_as(tuple[Any, ...]))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error("read", place, error) from error
    except DataError as error:
        raise StorageError(str(error)) from error
