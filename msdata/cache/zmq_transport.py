"""Records between nodes over ZeroMQ: needs no MPI, and outlives the death of any node.

Records go out as frames that point into shared memory, uncopied. Both ends have the job's CURVE
key: the server admits no other, and what travels is encrypted.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from msdata.cache.transport import Lookup, fill_row
from msdata.errors import MissingPackageError

# A request of a batch's share from one node takes milliseconds; a node that takes longer is worse
# than storage.
TIMEOUT_S = 2.0
# How long a node that did not answer is left alone.
PAUSE_S = 5.0
# Each failure in a row doubles that, up to this many times the first pause.
_MOST_PAUSES = 64
_POLL_MS = 100
_HEARTBEAT_MS = 1000


def _zmq() -> Any:
    try:
        import zmq
        import zmq.utils.z85
    except ImportError as error:
        raise MissingPackageError(
            f"records between nodes need ZeroMQ: run pip install 'msdata[zmq]' ({error})"
        ) from error
    return zmq


def make_keys() -> tuple[str, str]:
    """A new public and secret key.

    Raises:
        MissingPackageError: pyzmq is absent.
    """
    public, secret = _zmq().curve_keypair()
    return public.decode(), secret.decode()


class ZmqServer:
    """Serves the records of one node from a thread.

    Args:
        lookup: gives the records.
        keys: the job's.
        host: name or address under which other nodes reach this one; None takes its name.

    Raises:
        MissingPackageError: pyzmq is absent.
    """

    def __init__(self, lookup: Lookup, keys: tuple[str, str], host: str | None = None) -> None:
        zmq = _zmq()
        self._lookup = lookup
        self._public = zmq.utils.z85.decode(keys[0])
        self._context = zmq.Context()
        # Whom to admit is asked over this socket, by ZeroMQ itself (ZAP, RFC 27).
        self._door = self._context.socket(zmq.REP)
        self._door.bind("inproc://zeromq.zap.01")
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_publickey, self._socket.curve_secretkey = (k.encode() for k in keys)
        self._socket.zap_domain = b"msdata"
        self._socket.linger = 0
        self._socket.heartbeat_ivl = _HEARTBEAT_MS
        port = self._socket.bind_to_random_port("tcp://*")
        self._address = f"tcp://{host or socket.gethostname()}:{port}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="msdata-cache-serve", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """See `Server`."""
        return self._address

    def _serve(self) -> None:
        zmq = _zmq()
        poller = zmq.Poller()
        poller.register(self._door, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(_POLL_MS))
            if self._door in ready:
                self._admit(self._door.recv_multipart())
            if self._socket in ready:
                self._answer(self._socket.recv_multipart())
        self._door.close()
        self._socket.close()

    def _admit(self, request: list[bytes]) -> None:
        version, number, *_, mechanism, key = request
        is_ours = mechanism == b"CURVE" and key == self._public
        verdict = (b"200", b"OK") if is_ours else (b"400", b"not of this job")
        self._door.send_multipart([version, number, *verdict, b"", b""])

    def _answer(self, request: list[bytes]) -> None:
        """Sends the records that are here, empty frames for others; ignores what is no request."""
        if len(request) != 3 or len(request[2]) % 8:
            return
        asker, number, samples = request
        found = [self._lookup(s) for s in np.frombuffer(samples, np.int64).tolist()]
        self._socket.send_multipart(
            [asker, number, *(b"" if record is None else record for record in found)], copy=False
        )

    def close(self) -> None:
        """See `Server`."""
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)


class ZmqFetcher:
    """Fetches records; a connection a node, made when first needed.

    Args:
        find: gives the address of a node's server, None where there is none.
        keys: the job's.
        timeout_s: what a node has to answer a request.
        pause_s: for how long one that did not is left alone.

    Raises:
        MissingPackageError: pyzmq is absent.
    """

    def __init__(
        self,
        find: Callable[[int], str | None],
        keys: tuple[str, str],
        *,
        timeout_s: float = TIMEOUT_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._context = _zmq().Context()
        self._find = find
        self._keys = keys
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._nodes: dict[int, _Connection] = {}

    def fetch(
        self, nodes: Sequence[int], samples: Sequence[int], rows: Sequence[Sequence[Any]]
    ) -> list[bool]:
        """See `Fetcher`."""
        came = [False] * len(samples)
        for node in sorted(set(nodes)):
            of_node = [i for i, n in enumerate(nodes) if n == node]
            records = self._fetch_from(node, [samples[i] for i in of_node])
            for i, record in zip(of_node, records, strict=True):
                came[i] = record is not None and fill_row(rows[i], record)
        return came

    def _fetch_from(self, node: int, samples: Sequence[int]) -> list[Any | None]:
        with self._lock:
            connection = self._nodes.setdefault(node, _Connection())
        with connection.lock:
            if time.monotonic() < connection.paused_until_s:
                return [None] * len(samples)
            found = self._ask(connection, node, samples)
            if found is None:
                connection.close()
                connection.pauses = min(_MOST_PAUSES, 2 * connection.pauses or 1)
                pause_s = connection.pauses * self._pause_s
                connection.paused_until_s = time.monotonic() + pause_s
                return [None] * len(samples)
            connection.pauses = 0
            return found

    def _ask(
        self, connection: _Connection, node: int, samples: Sequence[int]
    ) -> list[Any | None] | None:
        zmq = _zmq()
        if connection.socket is None:
            address = self._find(node)
            if address is None:
                return None
            connection.socket = self._connected(address)
        connection.number += 1
        number = connection.number.to_bytes(8, "little")
        deadline_s = time.monotonic() + self._timeout_s
        try:
            connection.socket.send_multipart([number, np.array(samples, np.int64).tobytes()])
            while (left_s := deadline_s - time.monotonic()) > 0:
                if not connection.socket.poll(int(left_s * 1000) + 1):
                    return None
                answer, *records = connection.socket.recv_multipart(copy=False)
                # An answer to a request that was given up may come late.
                if answer.bytes == number and len(records) == len(samples):
                    return [r.buffer if len(r.buffer) else None for r in records]
        except zmq.ZMQError:
            return None
        return None

    def _connected(self, address: str) -> Any:
        zmq = _zmq()
        made = self._context.socket(zmq.DEALER)
        public, secret = (k.encode() for k in self._keys)
        made.curve_serverkey = made.curve_publickey = public
        made.curve_secretkey = secret
        made.linger = 0
        made.heartbeat_ivl = _HEARTBEAT_MS
        made.sndtimeo = int(self._timeout_s * 1000)
        made.connect(address)
        return made

    def close(self) -> None:
        """See `Fetcher`."""
        for connection in self._nodes.values():
            with connection.lock:
                connection.close()
                connection.paused_until_s = float("inf")
        self._context.destroy(linger=0)


class _Connection:
    """One node's; used under its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.socket: Any = None
        self.number = 0
        self.paused_until_s = 0.0
        self.pauses = 0

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close(linger=0)
        self.socket = None
