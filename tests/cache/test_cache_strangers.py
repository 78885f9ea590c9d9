"""What strangers who reach the port of a service get: nothing; what they can spoil: nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from peer_records import LARGE_RECORDS, large_records

from msdata.cache.transport.zmq_transport import CURVE, PLAIN, ZmqFetcher, ZmqServer, make_keys

HTTP = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
# ZeroMQ greets everybody with 64 bytes, in which nothing is secret.
GREETING_NBYTES = 64
KEYS = make_keys()


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def server(request: Any) -> Iterator[ZmqServer]:
    server = ZmqServer(large_records, KEYS, "127.0.0.1", is_encrypted=request.param)
    yield server
    server.close()


@pytest.fixture
def encrypted_server() -> Iterator[ZmqServer]:
    server = ZmqServer(large_records, KEYS, "127.0.0.1")
    yield server
    server.close()


def port_of(server: ZmqServer) -> int:
    return int(server.address.rpartition(":")[2])


def fetched(address: str, keys: tuple[str, str] = KEYS, sample: int = 5) -> bytes | None:
    """A record by a new connection; None if it did not come."""
    fetcher = ZmqFetcher({0: address}.get, keys, timeout_s=5)
    row = np.zeros(LARGE_RECORDS.shape[1], np.uint8)
    try:
        (came,) = fetcher.fetch([0], [sample], [[row]], lambda i, crc: True)
        return row.tobytes() if came else None
    finally:
        fetcher.close()


def assert_serves(server: ZmqServer) -> None:
    assert fetched(server.address) == LARGE_RECORDS[5].tobytes()


def answer_to(port: int, said: bytes) -> bytes:
    """All that a port answers to some bytes, until it hangs up or says no more for a second."""
    with socket.create_connection(("127.0.0.1", port), 5) as made:
        found = b""
        made.settimeout(1.0)
        with contextlib.suppress(OSError):
            made.sendall(said)
            while received := made.recv(1 << 16):
                found += received
    return found


class Tap:
    """Stands between a client and a server, overhears, and may change what passes."""

    def __init__(self, port: int) -> None:
        self.heard = {"asked": bytearray(), "answered": bytearray()}
        self.change: dict[str, Callable[[bytes, int], bytes]] = {}
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(("127.0.0.1", self._server_port))
        self._sockets += [client, server]
        for name, source, sink in (("asked", client, server), ("answered", server, client)):
            threading.Thread(target=self._pass_on, args=(name, source, sink), daemon=True).start()

    def _pass_on(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while found := source.recv(1 << 16):
                at = len(self.heard[name])
                self.heard[name] += found
                sink.sendall(self.change.get(name, lambda said, at: said)(found, at))
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def tap(encrypted_server: ZmqServer) -> Iterator[Tap]:
    tap = Tap(port_of(encrypted_server))
    yield tap
    tap.close()


def flip(place: int) -> Callable[[bytes, int], bytes]:
    """Changes one bit of what passes, at a place counted from the connection's start."""

    def change(said: bytes, at: int) -> bytes:
        changed = bytearray(said)
        if at <= place < at + len(said):
            changed[place - at] ^= 1
        return bytes(changed)

    return change


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\0", HTTP, b"\xff" + bytes(8) + b"\x7f\3\0NULL" + bytes(44), bytes(5000)],
    ids=range(5),
)
def test_garbage_on_the_port_gets_a_greeting_at_most(server: ZmqServer, garbage: bytes) -> None:
    assert len(answer_to(port_of(server), garbage)) <= GREETING_NBYTES
    assert server.served["samples"] == 0
    assert_serves(server)


@pytest.mark.parametrize("mechanism", ["none", "own key", "guessed password"])
def test_without_the_jobs_key_nothing_is_answered(server: ZmqServer, mechanism: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        if mechanism == "own key":
            # Its own keys; the server's public one is overheard.
            public, secret = make_keys()
            stranger.curve_publickey, stranger.curve_secretkey = public.encode(), secret.encode()
            stranger.curve_serverkey = KEYS[0].encode()
        elif mechanism == "guessed password":
            stranger.plain_username, stranger.plain_password = b"msdata", KEYS[0].encode()
        stranger.connect(f"tcp://127.0.0.1:{port_of(server)}")
        stranger.send_multipart([bytes(8), bytes(8)])
        assert not stranger.poll(500)
    assert server.served["samples"] == 0
    assert_serves(server)


def test_friends_who_ask_for_nonsense_get_nothing_and_spoil_nothing(
    encrypted_server: ZmqServer,
) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as made:
        made.linger = 0
        public, secret = (key.encode() for key in KEYS)
        made.curve_serverkey, made.curve_publickey, made.curve_secretkey = public, public, secret
        made.connect(encrypted_server.address)
        for words in ([b""], [b"1", b"odd"], [b"1", b"else", bytes(8)], [b"a"] * 9):
            made.send_multipart(words)
        assert not made.poll(500)
    assert_serves(encrypted_server)


def test_an_overheard_conversation_shows_no_record_and_is_worth_nothing_when_repeated(
    encrypted_server: ZmqServer, tap: Tap
) -> None:
    record = LARGE_RECORDS[5].tobytes()
    assert fetched(f"{CURVE}127.0.0.1:{tap.port}") == record
    answered = bytes(tap.heard["answered"])
    assert len(answered) > len(record)
    assert all(record[at : at + 16] not in answered for at in range(0, len(record), 1000))
    given = encrypted_server.served["samples"]
    answer_to(port_of(encrypted_server), bytes(tap.heard["asked"]))
    assert encrypted_server.served["samples"] == given


@pytest.mark.parametrize(
    ("end", "place"), [("asked", 15), ("asked", 150), ("answered", 200), ("answered", 60_000)]
)
def test_what_was_changed_on_its_way_is_not_taken(
    encrypted_server: ZmqServer, tap: Tap, end: str, place: int
) -> None:
    tap.change[end] = flip(place)
    assert fetched(f"{CURVE}127.0.0.1:{tap.port}") is None
    assert len(tap.heard[end]) > place
    assert_serves(encrypted_server)


@pytest.mark.parametrize("scheme", [CURVE, PLAIN])
def test_a_server_that_does_not_know_the_key_is_not_believed(scheme: str) -> None:
    impostor = ZmqServer(large_records, make_keys(), "127.0.0.1", is_encrypted=scheme == CURVE)
    try:
        assert fetched(impostor.address) is None
    finally:
        impostor.close()


def test_a_client_is_not_talked_into_the_mechanism_that_its_server_does_not_announce(
    server: ZmqServer,
) -> None:
    other = PLAIN if server.address.startswith(CURVE) else CURVE
    assert fetched(f"{other}127.0.0.1:{port_of(server)}") is None
    assert_serves(server)
