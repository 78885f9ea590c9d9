"""Records over plain TCP between processes that share a secret: the server's end.

Each of a few threads serves the connections that it accepted, and never waits for a client that
does not read. `msdata.cache.transport.bulk` describes the protocol and what it protects.
"""

from __future__ import annotations

import hmac
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from msdata.cache.transport.bulk import CODE_NBYTES, MAGIC, MAX_SAMPLES, NONCE_NBYTES, code
from msdata.cache.transport.transport import Lookup

_POLL_S = 0.1
_NUM_THREADS = 2
# Limits of unauthenticated clients: number of connections, and seconds to prove themselves.
_MOST_STRANGERS = 64
_PROOF_S = 2.0
# A client that has read nothing for so long is gone.
_STUCK_S = 30.0
# Bytes sent to one connection before the others have their turn.
_TURN_NBYTES = 1 << 20
_HELLO_NBYTES = len(MAGIC) + 2 * NONCE_NBYTES
_COUNT_NBYTES = 4


class _Connection:
    """The server's state of one client: unauthenticated until it proves knowledge of the secret."""

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self.received = bytearray()
        self.unsent: deque[memoryview] = deque()
        self.expected_proof = b""
        self.next_key = b""
        self.key: bytes | None = None
        self.number = 0
        self.opened_s = self.moved_s = time.monotonic()

    def pull(self, nbytes: int) -> bytes | None:
        """Takes the next bytes; None until all of them have come."""
        if len(self.received) < nbytes:
            return None
        found = bytes(self.received[:nbytes])
        del self.received[:nbytes]
        return found


class BulkServer:
    """Serves records until it is closed.

    Args:
        lookup: finds the records.
        secret_of: finds the secret of a session by its number; None for an unknown session.
        address: IPv4 address to listen at.

    Attributes:
        port: the port at which it listens.
        num_samples: records sent.
        nbytes: bytes of the records sent.
        num_refused: connections closed because of an invalid message.
    """

    def __init__(
        self,
        lookup: Lookup,
        secret_of: Callable[[bytes], bytes | None],
        address: str = "127.0.0.1",
    ) -> None:
        self._lookup = lookup
        self._secret_of = secret_of
        self._lock = threading.Lock()
        self.num_samples = self.nbytes = self.num_refused = 0
        self._listener = socket.create_server((address, 0), backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"msdata-cache-bulk-{i}", daemon=True)
            for i in range(_NUM_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Closes all connections."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _run(self) -> None:
        connections: dict[int, _Connection] = {}
        swept_s = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._stop.is_set():
                for event, _ in selector.select(_POLL_S):
                    if event.fileobj is self._listener:
                        self._accept(selector, connections)
                    else:
                        self._move(selector, connections, event.fd)
                if time.monotonic() > swept_s + _POLL_S:
                    swept_s = time.monotonic()
                    for fd in _overdue(connections, swept_s):
                        self._end(selector, connections, fd)
            for fd in list(connections):
                self._end(selector, connections, fd)

    def _accept(
        self, selector: selectors.BaseSelector, connections: dict[int, _Connection]
    ) -> None:
        try:
            made, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            # The other thread was first, or the client is gone.
            return
        except OSError:
            # Out of descriptors: serve the existing connections, and retry later.
            self._stop.wait(_POLL_S)
            return
        strangers = [fd for fd, c in connections.items() if c.key is None]
        if len(strangers) >= _MOST_STRANGERS:
            self._end(selector, connections, strangers[0])
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connections[made.fileno()] = _Connection(made)
        selector.register(made, selectors.EVENT_READ)

    def _move(
        self, selector: selectors.BaseSelector, connections: dict[int, _Connection], fd: int
    ) -> None:
        """Reads from a connection, or sends more to it."""
        connection = connections.get(fd)
        if connection is None:
            # Closed since the kernel reported the event.
            return
        try:
            if not connection.unsent:
                self._read(connection)
            was_sending = bool(selector.get_key(fd).events & selectors.EVENT_WRITE)
            is_sending = _send(connection)
            if is_sending != was_sending:
                # While sending, do not read: the client cannot queue unlimited requests.
                events = selectors.EVENT_WRITE if is_sending else selectors.EVENT_READ
                selector.modify(fd, events)
        except _RefusedError:
            with self._lock:
                self.num_refused += 1
            self._end(selector, connections, fd)
        except OSError:
            self._end(selector, connections, fd)

    def _end(
        self, selector: selectors.BaseSelector, connections: dict[int, _Connection], fd: int
    ) -> None:
        connection = connections.pop(fd)
        selector.unregister(fd)
        connection.unsent.clear()
        with suppress(OSError):
            connection.socket.close()

    def _read(self, connection: _Connection) -> None:
        with suppress(BlockingIOError):
            received = connection.socket.recv(1 << 16)
            if not received:
                raise ConnectionError
            connection.received += received
            connection.moved_s = time.monotonic()
        if connection.key is None:
            self._authenticate(connection)
        while connection.key is not None and self._answer(connection, connection.key):
            pass

    def _authenticate(self, connection: _Connection) -> None:
        if not connection.expected_proof:
            hello = connection.pull(_HELLO_NBYTES)
            if hello is None:
                return
            session = hello[len(MAGIC) : len(MAGIC) + NONCE_NBYTES]
            secret = self._secret_of(session)
            if not hello.startswith(MAGIC) or secret is None:
                raise _RefusedError
            mine = os.urandom(NONCE_NBYTES)
            nonces = hello[-NONCE_NBYTES:] + mine
            connection.expected_proof = code(secret, b"client", nonces)
            connection.next_key = code(secret, b"channel", nonces)
            connection.unsent.append(memoryview(mine + code(secret, b"server", nonces)))
        proof = connection.pull(CODE_NBYTES)
        if proof is not None:
            if not hmac.compare_digest(proof, connection.expected_proof):
                raise _RefusedError
            connection.key = connection.next_key

    def _answer(self, connection: _Connection, key: bytes) -> bool:
        """Queues the answer to a request; returns False if no complete request has come."""
        if len(connection.received) < _COUNT_NBYTES:
            return False
        (count,) = struct.unpack_from("<I", connection.received)
        if count > MAX_SAMPLES:
            raise _RefusedError
        body_nbytes = _COUNT_NBYTES + 8 * count
        request = connection.pull(body_nbytes + CODE_NBYTES)
        if request is None:
            return False
        connection.number += 1
        number = struct.pack("<Q", connection.number)
        body = request[:body_nbytes]
        if not hmac.compare_digest(request[body_nbytes:], code(key, b"ask", number, body)):
            raise _RefusedError
        found = self._lookup(np.frombuffer(body, "<i8", offset=_COUNT_NBYTES))
        records = [memoryview(b"" if f is None else f).cast("B") for f in found]
        sizes = np.array([len(record) for record in records], "<u4").tobytes()
        connection.unsent.append(memoryview(sizes + code(key, b"answer", number, sizes)))
        connection.unsent.extend(record for record in records if len(record))
        with self._lock:
            self.num_samples += sum(1 for record in records if len(record))
            self.nbytes += sum(map(len, records))
        return True


class _RefusedError(Exception):
    """A client sent an invalid message."""


def _send(connection: _Connection) -> bool:
    """Sends as much as possible without waiting; returns whether something is left."""
    sent = 0
    while connection.unsent and sent < _TURN_NBYTES:
        first = connection.unsent.popleft()
        try:
            # Many buffers in one call of `sendmsg` were slower by a quarter (measured).
            count = connection.socket.send(first)
        except BlockingIOError:
            count = -1
        if count < len(first):
            connection.unsent.appendleft(first[max(0, count) :])
        if count < 0:
            break
        sent += count
        connection.moved_s = time.monotonic()
    return bool(connection.unsent)


def _overdue(connections: dict[int, _Connection], now_s: float) -> list[int]:
    """Clients that took too long to authenticate, and clients that do not read."""
    return [
        fd
        for fd, c in connections.items()
        if (c.key is None and now_s > c.opened_s + _PROOF_S)
        or (c.unsent and now_s > c.moved_s + _STUCK_S)
    ]
