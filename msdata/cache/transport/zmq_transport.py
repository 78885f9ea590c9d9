"""Records between nodes without MPI, from nodes that may die: sessions over ZeroMQ, then plain TCP.

ZeroMQ's CURVE proves to both ends that the other has the job's key, and encrypts their messages.
Over it a rank gets a session with a node: a number and a secret, with which it then opens plain
connections for records (`bulk`). A server that encrypts gives no sessions, but sends the records
themselves over CURVE, at a third of the rate.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from msdata.cache.transport.bulk import BulkLink, Session, new_session
from msdata.cache.transport.bulk_server import BulkServer
from msdata.cache.transport.listen import listen_address
from msdata.cache.transport.peer_links import PAUSE_S, TIMEOUT_S, Link, PeerLinks
from msdata.cache.transport.transport import IsSound, Lookup
from msdata.core.checksum import copy_crc32c
from msdata.errors import MissingPackageError

_POLL_MS = 100
_HEARTBEAT_MS = 1000
# Kinds of requests over CURVE.
_SESSION, _RECORDS = b"session", b"records"
# Each rank has one session with each server, while both live.
_MOST_SESSIONS = 1 << 16
# Limits on frames, which ZeroMQ would otherwise take into memory at any size, even before it has
# authenticated the sender. A request has 8 bytes per sample; an answer has one frame per record.
_MOST_REQUEST_NBYTES = 1 << 20
_MOST_RECORD_NBYTES = 256 << 20
# Time limit to authenticate.
_HANDSHAKE_MS = 5000


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
        MissingPackageError: pyzmq is missing.
    """
    public, secret = _zmq().curve_keypair()
    return public.decode(), secret.decode()


class ZmqServer:
    """Serves the records of one node.

    Args:
        lookup: finds the records.
        keys: the job's keys.
        host: name or address under which other nodes reach this one; None takes the listening
            address.
        listen: address or interface to listen at, see `listen_address`.
        is_encrypted: send records over CURVE too.

    Raises:
        MissingPackageError: pyzmq is missing.
        UsageError: `listen` does not belong to this machine.
    """

    def __init__(
        self,
        lookup: Lookup,
        keys: tuple[str, str],
        host: str | None = None,
        *,
        listen: str | None = None,
        is_encrypted: bool = False,
    ) -> None:
        zmq = _zmq()
        place, told = listen_address(listen, host)
        self._lookup = lookup
        self._public = zmq.utils.z85.decode(keys[0])
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._bulk = None if is_encrypted else BulkServer(lookup, self._secret_of, place)
        self._num_samples = self._nbytes = 0
        self._context = zmq.Context()
        # ZeroMQ itself asks over this socket whom to admit (ZAP, RFC 27).
        self._door = self._context.socket(zmq.REP)
        self._door.bind("inproc://zeromq.zap.01")
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_publickey, self._socket.curve_secretkey = (k.encode() for k in keys)
        self._socket.zap_domain = b"msdata"
        self._socket.linger = 0
        self._socket.heartbeat_ivl = _HEARTBEAT_MS
        self._socket.maxmsgsize = _MOST_REQUEST_NBYTES
        self._socket.handshake_ivl = _HANDSHAKE_MS
        port = self._socket.bind_to_random_port(f"tcp://{place}")
        self._address = f"tcp://{told}:{port}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="msdata-cache-serve", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """See `Server`."""
        return self._address

    @property
    def bulk_port(self) -> int | None:
        """Port for unencrypted records; None if the server encrypts."""
        return None if self._bulk is None else self._bulk.port

    @property
    def served(self) -> dict[str, int]:
        """See `Server`."""
        if self._bulk is None:
            return {"samples": self._num_samples, "bytes": self._nbytes}
        return {"samples": self._bulk.num_samples, "bytes": self._bulk.nbytes}

    def _secret_of(self, number: bytes) -> bytes | None:
        session = self._sessions.get(number)
        return None if session is None else session.secret

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
        """Answers a request; ignores malformed ones."""
        if len(request) != 4 or len(request[3]) % 8:
            return
        asker, number, kind, samples = request
        if kind == _SESSION:
            self._socket.send_multipart([asker, number, *self._begin_session()])
        elif kind == _RECORDS and self._bulk is None:
            found = self._lookup(np.frombuffer(samples, "<i8"))
            records = [b"" if record is None else record for record in found]
            self._num_samples += sum(1 for record in records if len(record))
            self._nbytes += sum(map(len, records))
            self._socket.send_multipart([asker, number, *records], copy=False)

    def _begin_session(self) -> tuple[bytes, ...]:
        """The session and port for plain connections; empty if the server encrypts."""
        if self._bulk is None:
            return ()
        session = new_session()
        self._sessions[session.number] = session
        if len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return session.number, session.secret, self._bulk.port.to_bytes(2, "little")

    def close(self) -> None:
        """See `Server`."""
        self._stop.set()
        self._thread.join()
        if self._bulk is not None:
            self._bulk.close()
        self._context.destroy(linger=0)


class ZmqFetcher(PeerLinks):
    """Fetches records; connects to a node at the first request.

    Args:
        find: finds the address of a node's server; None if there is none.
        keys: the job's keys.
        timeout_s: time limit of a node for a record.
        pause_s: pause after a node's failure.

    Raises:
        MissingPackageError: pyzmq is missing.
    """

    def __init__(
        self,
        find: Callable[[int], str | None],
        keys: tuple[str, str],
        *,
        timeout_s: float = TIMEOUT_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        super().__init__(self._open, timeout_s=timeout_s, pause_s=pause_s)
        self._context = _zmq().Context()
        self._find = find
        self._keys = keys
        # By node: the address of its server, host and port of its records, and the session.
        self._known: dict[int, tuple[str, str, int, Session]] = {}

    def _open(self, node: int, timeout_s: float) -> Link:
        address = self._find(node)
        if address is None:
            raise FileNotFoundError("it has not announced an address")
        known = self._known.get(node)
        if known is None or known[0] != address:
            control = _ControlLink(self._context, address, self._keys, timeout_s)
            try:
                begun = control.begin_session(timeout_s)
            except BaseException:
                control.close()
                raise
            if begun is None:
                return control
            control.close()
            known = self._known[node] = (address, _host_of(address), *begun)
        try:
            return BulkLink(*known[1:], timeout_s)
        except OSError:
            # A server restarted at the same address does not know the session.
            self._known.pop(node, None)
            raise

    def close(self) -> None:
        """See `Fetcher`."""
        # A ZeroMQ socket must not be closed while another thread uses it.
        if self._leave():
            self._context.destroy(linger=0)


def _host_of(address: str) -> str:
    return address.removeprefix("tcp://").rpartition(":")[0].strip("[]")


class _ControlLink:
    """A connection to one node over CURVE."""

    def __init__(self, context: Any, address: str, keys: tuple[str, str], timeout_s: float) -> None:
        zmq = _zmq()
        try:
            self._socket = context.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise ConnectionError(str(error)) from error
        public, secret = (k.encode() for k in keys)
        self._socket.curve_serverkey = self._socket.curve_publickey = public
        self._socket.curve_secretkey = secret
        self._socket.linger = 0
        self._socket.heartbeat_ivl = _HEARTBEAT_MS
        self._socket.maxmsgsize = _MOST_RECORD_NBYTES
        self._socket.sndtimeo = int(timeout_s * 1000)
        self._socket.connect(address)
        self._number = 0
        self._is_interrupted = False

    def begin_session(self, timeout_s: float) -> tuple[int, Session] | None:
        """Port and session for plain connections; None if records come over this link."""
        self._send(_SESSION, b"")
        found = [frame.bytes for frame in self._receive(timeout_s)]
        if not found:
            return None
        number, secret, port = found
        return int.from_bytes(port, "little"), Session(number=number, secret=secret)

    def ask(self, samples: Sequence[int]) -> None:
        """See `Link`."""
        self._send(_RECORDS, np.asarray(samples, "<i8").tobytes())

    def take(
        self, rows: Sequence[Sequence[Any]], timeout_s: float, is_sound: IsSound
    ) -> list[bool]:
        """See `Link`."""
        records = self._receive(timeout_s)
        if len(records) != len(rows):
            raise ConnectionError("it answered another request")
        found = [copy_crc32c(record.buffer, row) for record, row in zip(records, rows, strict=True)]
        return [crc is not None and is_sound(i, crc) for i, crc in enumerate(found)]

    def _send(self, kind: bytes, body: bytes) -> None:
        zmq = _zmq()
        self._number += 1
        try:
            self._socket.send_multipart([self._number.to_bytes(8, "little"), kind, body])
        except zmq.ZMQError as error:
            raise ConnectionError(str(error)) from error

    def _receive(self, timeout_s: float) -> list[Any]:
        zmq = _zmq()
        try:
            deadline_s = time.monotonic() + timeout_s
            while not self._socket.poll(_POLL_MS):
                if self._is_interrupted:
                    raise ConnectionError("the request was interrupted")
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"nothing for {timeout_s:.1f} s")
            frames: list[Any] = self._socket.recv_multipart(copy=False)
        except zmq.ZMQError as error:
            raise ConnectionError(str(error)) from error
        if frames[0].bytes != self._number.to_bytes(8, "little"):
            raise ConnectionError("it answered another request")
        return frames[1:]

    def interrupt(self) -> None:
        """See `Link`."""
        self._is_interrupted = True

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close(linger=0)
