"""A rank's requests to its node's service for records of other nodes: a socket and a staging area.

The service is an MPI process, ranks are not (torchrun starts them). A rank gives the service a
piece of anonymous shared memory, names samples and places in it, and copies arrived records into
its batch while the service fetches the next. Nothing here has a name in a file system, so nothing
remains, whoever is killed. The rank sees the end of the service at once, because the socket closes.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.tier import LOG
from msdata.cache.transport.transport import IsSound
from msdata.core.checked_json import parse_json
from msdata.core.checksum import copy_crc32c
from msdata.errors import DataError

# A request takes milliseconds; a service that takes longer is worse than storage.
TIMEOUT_S = 2.0
# Pause after a failure of the service. Each consecutive timeout doubles it, up to `_MOST_PAUSES`
# times; an absent service costs no time, so its pause stays short.
PAUSE_S = 1.0
_MOST_PAUSES = 64
# Staging area per connection: one half fills while the other is copied out. Sizes from 3 to 10 MiB
# made no measurable difference.
_STAGING_NBYTES = 5 << 20
# Records per half.
_MAX_STAGED = 256
# Connections per rank, and so the number of its threads that can ask at once.
_MAX_LINKS = 4
MAX_MESSAGE_NBYTES = 1 << 16
_CREDENTIALS = "3i"
# Messages; all others are requests and answers, arrays of int64.
DESCRIBE, STAGED = b"describe", b"staged"


def link_address(arena: Path) -> str:
    """The address of the service that keeps an arena, in Linux's abstract namespace."""
    return "\0msdata-cache-" + hashlib.sha256(str(arena.resolve()).encode()).hexdigest()[:32]


def is_own_user(connection: socket.socket) -> bool:
    """Whether this user owns the process at the other end."""
    size = struct.calcsize(_CREDENTIALS)
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return bool(struct.unpack(_CREDENTIALS, raw)[1] == os.geteuid())


def _connect(address: str, timeout_s: float) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.settimeout(timeout_s)
        made.connect(address)
        if not is_own_user(made):
            raise PermissionError("another user's process listens there")
    except OSError:
        made.close()
        raise
    return made


def describe_service(address: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any] | None:
    """A service's description of itself; None if none answers.

    Args:
        address: the address from `link_address`.
        timeout_s: time limit for the answer.
    """
    try:
        with _connect(address, timeout_s) as connection:
            connection.send(DESCRIBE)
            said = connection.recv(MAX_MESSAGE_NBYTES)
            return parse_json(said, "the service", cure="").read_as(dict[str, Any])
    except (OSError, ValueError, DataError):
        return None


def parts_of(nbytes: Sequence[int], most_nbytes: int) -> list[tuple[int, int]]:
    """Cuts a list of records into parts: start and stop of each.

    Args:
        nbytes: bytes of each record.
        most_nbytes: bytes of a part, unless one record alone has more.
    """
    parts, start, left = [], 0, most_nbytes
    for i, size in enumerate(nbytes):
        if i > start and (size > left or i - start == _MAX_STAGED):
            parts.append((start, i))
            start, left = i, most_nbytes
        left -= size
    return [*parts, (start, len(nbytes))] if nbytes else []


class _Link:
    """One connection of a rank with its staging area; one thread at a time uses it.

    Records stand one after the other in each half of the area.
    """

    def __init__(self, address: str, max_record_nbytes: int, timeout_s: float) -> None:
        self._half_nbytes = max(_STAGING_NBYTES // 2, max_record_nbytes)
        self._timeout_s = timeout_s
        self._socket = _connect(address, timeout_s)
        try:
            self._area, fd = _anonymous(2 * self._half_nbytes)
            try:
                socket.send_fds(self._socket, [b"stage"], [fd])
            finally:
                os.close(fd)
            if self._socket.recv(MAX_MESSAGE_NBYTES) != STAGED:
                raise OSError("the service refused the staging area")
        except OSError:
            self._socket.close()
            raise
        self._bytes = np.frombuffer(self._area, np.uint8)

    def fetch(
        self,
        nodes: NDArray[np.int64],
        samples: NDArray[np.int64],
        rows: Sequence[Sequence[Any]],
        is_sound: IsSound,
    ) -> list[bool]:
        """See `Fetcher`.

        Raises:
            OSError: the service has ended or does not answer in time.
        """
        sizes = np.array([sum(map(len, row)) for row in rows], np.int64)
        if sizes.max(initial=0) > self._half_nbytes:
            return [False] * len(rows)
        parts = parts_of(sizes.tolist(), self._half_nbytes)
        came: list[bool] = []
        num_asked = 0
        for turn, (start, stop) in enumerate(parts):
            # One half of the area fills while the other is copied out.
            while num_asked < min(turn + 2, len(parts)):
                part = slice(*parts[num_asked])
                head = np.array([num_asked, num_asked % 2 * self._half_nbytes], np.int64)
                request = np.concatenate([head, nodes[part], samples[part], sizes[part]])
                self._socket.send(request.tobytes())
                num_asked += 1
            ends = turn % 2 * self._half_nbytes + np.cumsum(sizes[start:stop])
            self._take(came, (start, ends.tolist()), rows, is_sound)
        return came

    def _take(
        self,
        came: list[bool],
        part: tuple[int, list[int]],
        rows: Sequence[Sequence[Any]],
        is_sound: IsSound,
    ) -> None:
        """Copies a part of the records out of its half, some while others are in flight.

        Args:
            came: gets whether each record came.
            part: position of its first record, and where each ends in the area.
            rows: see `Fetcher`.
            is_sound: see `Fetcher`.
        """
        start, ends = part
        deadline_s = time.monotonic() + self._timeout_s
        while len(came) < start + len(ends):
            for is_there in self._answer():
                i = len(came)
                end = ends[i - start]
                record = self._bytes[end - sum(map(len, rows[i])) : end]
                crc = copy_crc32c(record, rows[i]) if is_there else None
                came.append(crc is not None and is_sound(i, crc))
            if len(came) < start + len(ends) and time.monotonic() > deadline_s:
                raise TimeoutError("it is too slow")

    def _answer(self) -> list[bool]:
        """Whether each of the next samples came, for as many as the service has finished."""
        answer = self._socket.recv(MAX_MESSAGE_NBYTES)
        if len(answer) <= 8:
            raise ConnectionResetError("it has ended")
        return [bool(b) for b in answer[8:]]

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()
        self._bytes = np.empty(0, np.uint8)
        with suppress(BufferError):
            self._area.close()


def _anonymous(nbytes: int) -> tuple[mmap.mmap, int]:
    """Anonymous shared memory that no process can shrink, and its descriptor."""
    fd = os.memfd_create("msdata-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return mmap.mmap(fd, nbytes), fd
    except OSError:
        os.close(fd)
        raise


class LinkFetcher:
    """Fetches other nodes' records through this node's service; see `Fetcher`.

    Args:
        address: the address from `link_address`.
        max_record_nbytes: bytes of the longest record.
        timeout_s: time limit for a part of a request.
        pause_s: pause after a failure of the service.
    """

    def __init__(
        self,
        address: str,
        max_record_nbytes: int,
        *,
        timeout_s: float = TIMEOUT_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._address = address
        self._max_record_nbytes = max_record_nbytes
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_MAX_LINKS)
        self._idle: list[_Link] = []
        self._paused_until_s = 0.0
        self._pauses = 0
        self._num_lost = 0

    def fetch(
        self,
        nodes: Sequence[int],
        samples: Sequence[int],
        rows: Sequence[Sequence[Any]],
        is_sound: IsSound,
    ) -> list[bool]:
        """See `Fetcher`."""
        with self._places:
            if time.monotonic() < self._paused_until_s:
                return [False] * len(samples)
            wanted = np.array(nodes, np.int64), np.array(samples, np.int64), rows, is_sound
            try:
                return self._fetch_over(self._idle_link(), wanted)
            except OSError as error:
                self._lose(error)
                return [False] * len(samples)

    def _idle_link(self) -> _Link | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _fetch_over(self, idle: _Link | None, wanted: Any) -> list[bool]:
        """Fetches over an idle connection, or else a new one."""
        link = idle or _Link(self._address, self._max_record_nbytes, self._timeout_s)
        try:
            came = link.fetch(*wanted)
        except OSError as error:
            link.close()
            if idle is None or isinstance(error, TimeoutError):
                raise
            # The service has ended since; another one may be running.
            return self._fetch_over(None, wanted)
        with self._lock:
            self._pauses = 0
            if self._paused_until_s < float("inf"):
                self._idle.append(link)
                return came
        link.close()
        return came

    def _lose(self, error: OSError) -> None:
        """Pauses the use of the service, and logs it once."""
        with self._lock:
            if time.monotonic() < self._paused_until_s:
                return
            if isinstance(error, TimeoutError):
                self._pauses = min(_MOST_PAUSES, 2 * self._pauses or 5)
            self._paused_until_s = time.monotonic() + max(1, self._pauses) * self._pause_s
            self._num_lost += 1
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()
        log = LOG.warning if self._num_lost == 1 else LOG.info
        log(
            "the cache service of this node is gone (%s): samples of other nodes come from storage "
            "until it is back",
            error,
        )

    def stats(self) -> dict[str, int]:
        """See `Fetcher`; counts only this node's service."""
        with self._lock:
            is_down = time.monotonic() < self._paused_until_s
            return {"failures": self._num_lost, "down": int(is_down)}

    def close(self) -> None:
        """See `Fetcher`."""
        with self._lock:
            self._paused_until_s = float("inf")
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()
