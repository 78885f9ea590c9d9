"""A time by which an answer has to be there, whatever trickles: status, headers, body, trailers.

A socket's timeout is that of one read, so a byte per second satisfies it for ever. Here each read
of a connection gets what is left until the deadline, at most; that holds for all of HTTP,
since `http.client` and what stands on it read through one file object, the one that is replaced.
TLS and the connection itself have their own timeout, for all of a handshake.

It stands alone because it is about sockets and `http.client`, and knows nothing of services.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from functools import partial
from typing import Any


class Deadline(threading.local):
    """When the request that this thread is at has to have its answer.

    Attributes:
        at_s: time of the monotonic clock.
    """

    at_s: float = float("inf")

    def left_s(self) -> float:
        """Seconds until then, not below 0."""
        return max(0.0, self.at_s - time.monotonic())


class _Reader(io.RawIOBase):
    """What a response is read from: a socket, for as long as there is time."""

    def __init__(self, made: socket.socket, deadline: Deadline) -> None:
        self._socket = made
        # Keeps the socket open while the connection is handed over to its response.
        self._file: Any = made.makefile("rb", buffering=0)
        self._deadline = deadline
        self._timeout_s = made.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int | None:
        left_s = self._deadline.left_s()
        if not left_s:
            raise TimeoutError("timed out")
        self._socket.settimeout(left_s if self._timeout_s is None else min(left_s, self._timeout_s))
        count: int | None = self._file.readinto(target)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Files:
    """A socket as far as `http.client.HTTPResponse` uses it."""

    def __init__(self, made: socket.socket, deadline: Deadline) -> None:
        self._made, self._deadline = made, deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_Reader(self._made, self._deadline))


def _response(
    deadline: Deadline, made: socket.socket, *args: Any, **options: Any
) -> http.client.HTTPResponse:
    files: Any = _Files(made, deadline)
    return http.client.HTTPResponse(files, *args, **options)


def bounded(connection_class: type, deadline: Deadline) -> type:
    """A class of HTTP connections whose answers have to be there by a deadline.

    Args:
        connection_class: subclass of `http.client.HTTPConnection`.
        deadline: the time; each thread sets its own.
    """
    made = partial(_response, deadline)
    return type(connection_class.__name__, (connection_class,), {"response_class": made})
