"""Records between nodes without MPI, from nodes that may die: requests and answers over ZeroMQ.

CURVE proves to both ends that the other has the job's key, and encrypts and authenticates all that
they send. It costs each end about 0.8 s of processor time per GB, so a server may do without: then
PLAIN asks a client for a password made from the key, and a network's eavesdropper can read records
and password. A client learns the mechanism from the server's announcement, which is a file of the
job's user, so an attacker on the network cannot choose the weaker one.

    client (DEALER)                      server (ROUTER)
    number, samples                 ->
                                    <-   number, first records (empty: not here)
                                    <-   number, next records, ...
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.transport.listen import listen_address
from msdata.cache.transport.peer_links import PAUSE_S, TIMEOUT_S, IsSound, Link, PeerLinks
from msdata.core.checksum import copy_crc32c
from msdata.errors import MissingPackageError

# Numbers of samples, int64 (n,) -> for each its record as a contiguous buffer, or None if this node
# does not have it now.
Lookup = Callable[[NDArray[np.int64]], Sequence[Any | None]]
# Schemes of addresses: the mechanism by which a server asks for proof of the job's key.
CURVE, PLAIN = "tcp://", "plain://"
_POLL_MS = 100
# A client that has not answered for so long is gone.
_HEARTBEAT_MS, _SILENT_MS = 10_000, 30_000
# Threads that encrypt and send: one connection uses one of them.
_SERVER_THREADS, _CLIENT_THREADS = 4, 2
# Bytes of records per message: the client copies them out while more arrive.
_PART_NBYTES = 1 << 20
# Messages that a client takes into memory ahead.
_MOST_AHEAD = 16
# Limits on frames, which ZeroMQ would otherwise take into memory at any size, even before it has
# authenticated the sender. A request has 8 bytes per sample; an answer has one frame per record.
_MOST_REQUEST_NBYTES = 1 << 20
_MOST_RECORD_NBYTES = 256 << 20
# Time limit to authenticate.
_HANDSHAKE_MS = 5000
# A slower node is worse than storage.
_LEAST_BYTES_PER_S = 10e6
_USER = b"msdata"


def _zmq() -> Any:
    try:
        import zmq
        import zmq.utils.monitor
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


def _password(keys: tuple[str, str]) -> bytes:
    """The password of PLAIN, from which the secret key cannot be computed."""
    return hashlib.blake2b(keys[1].encode(), person=b"msdata plain").hexdigest().encode()


class ZmqServer:
    """Serves the records of one node.

    Args:
        lookup: finds the records.
        keys: the job's keys.
        host: name or address under which other nodes reach this one; None takes the listening
            address.
        listen: address or interface to listen at, see `listen_address`.
        is_encrypted: encrypt and authenticate what is sent; False takes half the processor time.

    Attributes:
        address: the address by which a fetcher finds the server, and the mechanism of its proof.
        served: `samples` and `bytes` sent so far.

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
        is_encrypted: bool = True,
    ) -> None:
        zmq = _zmq()
        place, told = listen_address(listen, host)
        self._lookup = lookup
        self.served = {"samples": 0, "bytes": 0}
        self._context = zmq.Context(_SERVER_THREADS)
        # ZeroMQ itself asks over this socket whom to admit (ZAP, RFC 27).
        self._door = self._context.socket(zmq.REP)
        self._door.bind("inproc://zeromq.zap.01")
        self._socket = self._context.socket(zmq.ROUTER)
        if is_encrypted:
            self._proof = [b"CURVE", zmq.utils.z85.decode(keys[0])]
            self._socket.curve_server = True
            self._socket.curve_publickey, self._socket.curve_secretkey = (k.encode() for k in keys)
        else:
            self._proof = [b"PLAIN", _USER, _password(keys)]
            self._socket.plain_server = True
        self._socket.zap_domain = b"msdata"
        self._socket.linger = 0
        # A client waits for an answer before it asks again, so the queue needs no other limit.
        self._socket.sndhwm = 0
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = _HEARTBEAT_MS, _SILENT_MS
        self._socket.maxmsgsize = _MOST_REQUEST_NBYTES
        self._socket.handshake_ivl = _HANDSHAKE_MS
        port = self._socket.bind_to_random_port(f"tcp://{place}")
        self.address = f"{CURVE if is_encrypted else PLAIN}{told}:{port}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="msdata-cache-serve", daemon=True)
        self._thread.start()

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
        version, number, _, _, _, *proof = request
        is_ours = hmac.compare_digest(b"\0".join(proof), b"\0".join(self._proof))
        verdict = (b"200", b"OK") if is_ours else (b"400", b"not of this job")
        self._door.send_multipart([version, number, *verdict, b"", b""])

    def _answer(self, request: list[bytes]) -> None:
        """Answers a request; ignores malformed ones."""
        if len(request) != 3 or len(request[2]) % 8:
            return
        asker, number, samples = request
        part: list[Any] = []
        nbytes = 0
        for record in self._lookup(np.frombuffer(samples, "<i8")):
            part.append(b"" if record is None else record)
            nbytes += len(part[-1])
            self.served["samples"] += record is not None
            self.served["bytes"] += len(part[-1])
            if nbytes >= _PART_NBYTES:
                self._socket.send_multipart([asker, number, *part], copy=False)
                part, nbytes = [], 0
        if part:
            self._socket.send_multipart([asker, number, *part], copy=False)

    def close(self) -> None:
        """Stops serving; waiting fetchers get nothing."""
        self._stop.set()
        self._thread.join()
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
        self._context = _zmq().Context(_CLIENT_THREADS)
        self._find = find
        self._keys = keys

    def _open(self, node: int, timeout_s: float) -> Link:
        address = self._find(node)
        if address is None:
            raise FileNotFoundError("it has not announced an address")
        return ZmqLink(self._context, address, self._keys, timeout_s)

    def close(self) -> bool:
        """See `PeerLinks.close`."""
        # A ZeroMQ socket must not be closed while another thread uses it.
        is_over = super().close()
        if is_over:
            self._context.destroy(linger=0)
        return is_over


class ZmqLink:
    """A connection to one node.

    Args:
        context: ZeroMQ's context.
        address: the server's address.
        keys: the job's keys.
        timeout_s: time limit to connect.

    Raises:
        OSError: the node is absent, or one of both ends does not have the job's key.
    """

    def __init__(self, context: Any, address: str, keys: tuple[str, str], timeout_s: float) -> None:
        zmq = _zmq()
        self._number = 0
        self._is_interrupted = False
        try:
            self._socket = context.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise ConnectionError(str(error)) from error
        if address.startswith(PLAIN):
            self._socket.plain_username, self._socket.plain_password = _USER, _password(keys)
        else:
            public, secret = (k.encode() for k in keys)
            self._socket.curve_serverkey = self._socket.curve_publickey = public
            self._socket.curve_secretkey = secret
        self._socket.linger = 0
        self._socket.reconnect_ivl = -1
        self._socket.rcvhwm = _MOST_AHEAD
        self._socket.maxmsgsize = _MOST_RECORD_NBYTES
        try:
            self._connect(address.partition("://")[2], timeout_s)
        except zmq.ZMQError as error:
            self.close()
            raise ConnectionError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _connect(self, place: str, timeout_s: float) -> None:
        """Connects and waits until each end has proven that it has the key."""
        zmq = _zmq()
        failures = (
            zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        ends = zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
        events = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | failures | ends)
        try:
            self._socket.connect(f"tcp://{place}")
            if not events.poll(timeout_s * 1000):
                raise TimeoutError(f"nothing for {timeout_s:.1f} s")
            event = zmq.utils.monitor.recv_monitor_message(events)["event"]
        finally:
            self._socket.disable_monitor()
            events.close(linger=0)
        if event & failures:
            raise ConnectionError("it does not have this job's key, or refuses it")
        if event & ends:
            raise ConnectionRefusedError("it refuses connections")

    def ask(self, samples: Sequence[int]) -> None:
        """See `Link`."""
        zmq = _zmq()
        self._number += 1
        content = [self._number.to_bytes(8, "little"), np.asarray(samples, "<i8").tobytes()]
        try:
            self._socket.send_multipart(content, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise ConnectionError(f"the connection is gone ({error})") from error

    def take(
        self, rows: Sequence[Sequence[Any]], timeout_s: float, is_sound: IsSound
    ) -> list[bool]:
        """See `Link`."""
        started_s = time.monotonic()
        came: list[bool] = []
        done = 0
        while len(came) < len(rows):
            for record in self._receive(timeout_s):
                i = len(came)
                if i == len(rows):
                    raise ConnectionError("it answered another request")
                crc = copy_crc32c(record.buffer, rows[i]) if len(record) else None
                came.append(crc is not None and is_sound(i, crc))
                done += len(record)
            if time.monotonic() - started_s > timeout_s + done / _LEAST_BYTES_PER_S:
                raise TimeoutError("it is slower than storage")
        return came

    def _receive(self, timeout_s: float) -> list[Any]:
        """The next records of the answer, as frames."""
        zmq = _zmq()
        deadline_s = time.monotonic() + timeout_s
        try:
            while not self._socket.poll(_POLL_MS):
                # ZeroMQ ends the pipe of a connection that is lost, and then cannot send.
                if self._is_interrupted or not self._socket.poll(0, zmq.POLLOUT):
                    raise ConnectionError("it has closed the connection")
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
