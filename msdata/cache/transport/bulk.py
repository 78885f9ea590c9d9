"""Records over plain TCP between processes that share a secret: the client's end.

Each end proves that it knows the session's secret, which it got over an encrypted channel, by an
HMAC over both ends' random numbers; so an eavesdropper can replay nothing. Requests, and the list
of sizes in an answer, carry an HMAC and a running number each. The records themselves are neither
encrypted nor authenticated: an eavesdropper on the nodes' network can read them, like the traffic
of a parallel file system. The client checks them against the index.

    client                                     server
    magic, session, random number        ->
                                         <-    random number, proof
    proof                                ->
    count, samples, code                 ->
                                         <-    size of each record (0: not here), code, records
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from msdata.cache.transport.transport import IsSound
from msdata.core.checksum import crc32c_of_parts

MAGIC = b"msdata1\0"
NONCE_NBYTES = 16
CODE_NBYTES = 32
MAX_SAMPLES = 4096
# A slower node is worse than storage.
_LEAST_BYTES_PER_S = 10e6
_SCRATCH_NBYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Session:
    """A secret that two processes share.

    Attributes:
        number: 16 random bytes, not secret.
        secret: 32 random bytes.
    """

    number: bytes
    secret: bytes


def new_session() -> Session:
    """A new random session."""
    return Session(number=os.urandom(NONCE_NBYTES), secret=os.urandom(CODE_NBYTES))


def code(key: bytes, purpose: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA-256 of some bytes, for one purpose only.

    Args:
        key: 32 bytes.
        purpose: the code's purpose; a code for another purpose differs.
        parts: the bytes, in pieces whose lengths both ends know.

    Source: RFC 2104.
    """
    return hmac.digest(key, b"\0".join((purpose, b"".join(parts))), "sha256")


def request_of(key: bytes, number: int, samples: Sequence[int]) -> bytes:
    """The bytes of a request for some samples.

    Args:
        key: the connection's key.
        number: the request's number.
        samples: the samples' numbers, at most `MAX_SAMPLES`.
    """
    body = struct.pack("<I", len(samples)) + np.asarray(samples, "<i8").tobytes()
    return body + code(key, b"ask", struct.pack("<Q", number), body)


class BulkLink:
    """A connection to a node that serves records.

    Args:
        host: the node's name or address.
        port: the port at which it listens.
        session: the session that both ends share.
        timeout_s: time limit of each step.

    Raises:
        OSError: the node is absent or does not know the session.
    """

    def __init__(self, host: str, port: int, session: Session, timeout_s: float) -> None:
        self._number = 0
        self._waited_s = 0.0
        self._socket = socket.create_connection((host, port), timeout_s)
        try:
            # From here on the kernel applies the timeout, so one call can wait for a whole record.
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._wait_at_most(timeout_s)
            self._key = self._introduce(session)
        except BaseException:
            self._socket.close()
            raise

    def _introduce(self, session: Session) -> bytes:
        mine = os.urandom(NONCE_NBYTES)
        self._send(MAGIC + session.number + mine)
        theirs, proof = bytearray(NONCE_NBYTES), bytearray(CODE_NBYTES)
        self._receive([theirs, proof])
        nonces = mine + bytes(theirs)
        if not hmac.compare_digest(proof, code(session.secret, b"server", nonces)):
            raise ConnectionError("it does not know the session's secret")
        self._send(code(session.secret, b"client", nonces))
        return code(session.secret, b"channel", nonces)

    def _wait_at_most(self, seconds: float) -> None:
        if seconds != self._waited_s:
            value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, value)
            self._waited_s = seconds

    def ask(self, samples: Sequence[int]) -> None:
        """Asks for some samples; the caller must call `take` next.

        Raises:
            OSError: the node is gone.
        """
        self._number += 1
        self._send(request_of(self._key, self._number, samples))

    def take(
        self, rows: Sequence[Sequence[Any]], timeout_s: float, is_sound: IsSound
    ) -> list[bool]:
        """Receives the requested records into their rows; see `Fetcher.fetch`.

        Args:
            rows: one row per sample.
            timeout_s: time limit per record.
            is_sound: called for each row while the kernel receives the next.

        Raises:
            OSError: the node is gone, hangs or is too slow; the connection is unusable.
        """
        self._wait_at_most(timeout_s)
        started_s = time.monotonic()
        sizes, proof = bytearray(4 * len(rows)), bytearray(CODE_NBYTES)
        self._receive([sizes, proof])
        wanted = code(self._key, b"answer", struct.pack("<Q", self._number), bytes(sizes))
        if not hmac.compare_digest(proof, wanted):
            raise ConnectionError("its answer is not authentic")
        came, done = [], 0
        for i, size in enumerate(np.frombuffer(sizes, "<u4").tolist()):
            row = rows[i]
            is_fitting = size == sum(len(part) for part in row)
            if is_fitting:
                self._receive(row)
            else:
                self._skip(size)
            came.append(is_fitting and is_sound(i, crc32c_of_parts(row)))
            done += size
            if time.monotonic() - started_s > timeout_s + done / _LEAST_BYTES_PER_S:
                raise TimeoutError("it is slower than storage")
        return came

    def _send(self, content: bytes) -> None:
        try:
            self._socket.sendall(content)
        except BlockingIOError as error:
            raise self._timeout() from error

    def _receive(self, parts: Sequence[Any]) -> None:
        """Fills buffers, mostly in one call of the kernel."""
        views = [memoryview(part).cast("B") for part in parts]
        left = sum(len(view) for view in views)
        started_s = time.monotonic()
        while left:
            try:
                count = self._socket.recvmsg_into(views, 0, socket.MSG_WAITALL)[0]
            except BlockingIOError as error:
                raise self._timeout() from error
            if not count:
                raise ConnectionError("it has closed the connection")
            left -= count
            if left:
                # The kernel's timeout ends a call early with the bytes that have come.
                if time.monotonic() - started_s > 0.9 * self._waited_s:
                    raise self._timeout()
                views = _advanced(views, count)

    def _timeout(self) -> TimeoutError:
        return TimeoutError(f"nothing for {self._waited_s:.1f} s")

    def _skip(self, nbytes: int) -> None:
        scratch = memoryview(bytearray(min(nbytes, _SCRATCH_NBYTES)))
        while nbytes:
            part = scratch[:nbytes]
            self._receive([part])
            nbytes -= len(part)

    def interrupt(self) -> None:
        """See `Link`."""
        # Fails if the other end closed first.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()


def _advanced(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """The rest of some buffers after their first `count` bytes."""
    left = []
    for view in views:
        if count < len(view):
            left.append(view[count:])
        count = max(0, count - len(view))
    return left
