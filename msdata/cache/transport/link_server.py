"""The service's end of the sockets to its node's ranks; `link` is the ranks' end."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import selectors
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.transport.link import DESCRIBE, MAX_MESSAGE_NBYTES, STAGED, is_own_user

# Nodes, samples, and a writable uint8 array of each record's length -> whether each record came,
# in groups, as they arrive.
ReadPeers = Callable[
    [NDArray[np.int64], NDArray[np.int64], Sequence[NDArray[np.uint8]]],
    Iterable[NDArray[np.bool_]],
]


@dataclass
class _Client:
    """The service's state of a connection, with the staging area of its rank."""

    socket: socket.socket
    area: mmap.mmap | None = None


class LinkServer:
    """The service's end; `serve` answers requests in the thread that calls it.

    Args:
        address: the address from `link_address`.
        describe: describes the service to ranks.
        read: fetches records.

    Raises:
        OSError: another service uses the address.
    """

    def __init__(
        self,
        address: str,
        describe: Callable[[], dict[str, Any]],
        read: ReadPeers,
    ) -> None:
        self._describe = describe
        self._read = read
        self._selector = selectors.DefaultSelector()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._door.bind(address)
            self._door.listen(64)
        except OSError:
            self._door.close()
            raise
        self._door.setblocking(False)
        self._selector.register(self._door, selectors.EVENT_READ)

    def serve(self, timeout_s: float) -> int:
        """Waits for requests and answers those that have come.

        Args:
            timeout_s: time limit for the first request.

        Returns:
            The number of messages.
        """
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            if key.fileobj is self._door:
                self._admit()
            elif not self._answer(key.data):
                self._drop(key.data)
        return len(ready)

    def _admit(self) -> None:
        with suppress(OSError):
            connection, _ = self._door.accept()
            if not is_own_user(connection):
                connection.close()
                return
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, _Client(connection))

    def _answer(self, client: _Client) -> bool:
        """Answers one message; returns False if the connection must be closed."""
        fds: list[int] = []
        try:
            if client.area is None:
                message, fds, _, _ = socket.recv_fds(client.socket, MAX_MESSAGE_NBYTES, 1)
            else:
                message = client.socket.recv(MAX_MESSAGE_NBYTES)
            if fds:
                return self._stage(client, fds[0])
            if message == DESCRIBE:
                client.socket.send(json.dumps(self._describe()).encode())
                return True
            return len(message) % 8 == 0 and self._fetch(client, np.frombuffer(message, np.int64))
        except OSError:
            # BlockingIOError: the rank does not read its answers, hangs, and reconnects later.
            return False
        finally:
            for fd in fds:
                os.close(fd)

    def _stage(self, client: _Client, fd: int) -> bool:
        """Accepts the staging area of a connection."""
        # Memory that the rank could shrink would kill this process by SIGBUS.
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return False
        nbytes = os.fstat(fd).st_size
        if not nbytes or client.area is not None:
            return False
        client.area = mmap.mmap(fd, nbytes)
        client.socket.send(STAGED)
        return True

    def _fetch(self, client: _Client, request: NDArray[np.int64]) -> bool:
        """Answers [number, start, nodes, samples, sizes] by [number, whether each record came].

        Every group of records is answered at once, so the rank copies some records out while others
        are in flight.
        """
        if client.area is None or len(request) < 2 or (len(request) - 2) % 3:
            return False
        start = int(request[1])
        nodes, samples, sizes = request[2:].reshape(3, -1)
        # In Python's integers, which do not overflow.
        ends = list(accumulate(sizes.tolist(), initial=start))
        if start < 0 or sizes.min(initial=0) < 0 or ends[-1] > len(client.area):
            return False
        number = request[:1].tobytes()
        area = np.frombuffer(client.area, np.uint8)
        targets = [area[at:end] for at, end in pairwise(ends)]
        for came in self._read(nodes, samples, targets):
            client.socket.send(number + came.tobytes())
        return True

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.socket)
        client.socket.close()
        if client.area is not None:
            with suppress(BufferError):
                client.area.close()

    def close(self) -> None:
        """Closes all connections."""
        for key in list(self._selector.get_map().values()):
            if key.fileobj is not self._door:
                self._drop(key.data)
        self._selector.close()
        self._door.close()
