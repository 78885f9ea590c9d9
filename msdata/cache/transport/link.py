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
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from msdata.cache.transport.peer_links import TIMEOUT_S, IsSound, Link, PeerLinks
from msdata.core.checked_json import parse_json
from msdata.core.checksum import copy_crc32c
from msdata.errors import DataError

# Pause after a failure of the service, which is on this machine and ends with its job.
PAUSE_S = 1.0
# Staging area per connection: one half fills while the other is copied out. Sizes from 3 to 10 MiB
# made no measurable difference.
_STAGING_NBYTES = 5 << 20
# Records per half.
_MAX_STAGED = 256
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


class _StagingLink:
    """A `Link` with a staging area; records stand one after the other in each half of it.

    Samples are rows of node and number, int64 (n, 2).
    """

    def __init__(self, address: str, max_record_nbytes: int, timeout_s: float) -> None:
        self._half_nbytes = max(_STAGING_NBYTES // 2, max_record_nbytes)
        self._timeout_s = timeout_s
        self._wanted: Any = None
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

    def ask(self, samples: Any) -> None:
        """See `Link`; the request is sent in parts, of which the lengths of rows decide."""
        self._wanted = samples

    def take(
        self, rows: Sequence[Sequence[Any]], timeout_s: float, is_sound: IsSound
    ) -> list[bool]:
        """See `Link`; each part of the request has the connection's time limit."""
        nodes, samples = self._wanted.T
        nbytes = [sum(map(len, row)) for row in rows]
        if max(nbytes, default=0) > self._half_nbytes:
            return [False] * len(rows)
        sizes = np.array(nbytes, np.int64)
        parts = parts_of(nbytes, self._half_nbytes)
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
            bounds = accumulate(nbytes[start:stop], initial=turn % 2 * self._half_nbytes)
            self._take_part(came, list(bounds), rows, is_sound)
        return came

    def _take_part(
        self,
        came: list[bool],
        bounds: Sequence[int],
        rows: Sequence[Sequence[Any]],
        is_sound: IsSound,
    ) -> None:
        """Copies a part of the records out of its half, some while others are in flight.

        Args:
            came: gets whether each record came.
            bounds: where each record of the part begins in the area, and where the last one ends.
            rows: see `PeerLinks.fetch`.
            is_sound: see `PeerLinks.fetch`.
        """
        start = len(came)
        stop = start + len(bounds) - 1
        deadline_s = time.monotonic() + self._timeout_s
        while len(came) < stop:
            for is_there in self._answer():
                i = len(came)
                record = self._bytes[bounds[i - start] : bounds[i - start + 1]]
                crc = copy_crc32c(record, rows[i]) if is_there else None
                came.append(crc is not None and is_sound(i, crc))
            if len(came) < stop and time.monotonic() > deadline_s:
                raise TimeoutError("it is too slow")

    def _answer(self) -> list[bool]:
        """Whether each of the next samples came, for as many as the service has finished."""
        answer = self._socket.recv(MAX_MESSAGE_NBYTES)
        if len(answer) <= 8:
            raise ConnectionResetError("it has ended")
        return [bool(b) for b in answer[8:]]

    def interrupt(self) -> None:
        """See `Link`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

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


class LinkFetcher(PeerLinks):
    """Fetches other nodes' records through this node's service, the only one that it asks.

    Args:
        address: the address from `link_address`.
        max_record_nbytes: bytes of the longest record.
        timeout_s: time limit for a part of a request.
        pause_s: pause after a failure of the service.
    """

    _name = "the cache service of this node"
    _loss = "samples of other nodes come from storage until it does"

    def __init__(
        self,
        address: str,
        max_record_nbytes: int,
        *,
        timeout_s: float = TIMEOUT_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        def connect(node: int, left_s: float) -> Link:
            return _StagingLink(address, max_record_nbytes, timeout_s)

        super().__init__(connect, timeout_s=timeout_s, pause_s=pause_s)

    def fetch(
        self,
        nodes: Sequence[int],
        samples: Sequence[int],
        rows: Sequence[Sequence[Any]],
        is_sound: IsSound,
    ) -> list[bool]:
        """See `PeerLinks.fetch`."""
        # The service is the only node that this class knows.
        wanted: Any = np.array([nodes, samples], np.int64).T
        return super().fetch([0] * len(nodes), wanted, rows, is_sound)
