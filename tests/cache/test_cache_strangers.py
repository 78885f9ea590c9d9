"""What strangers who reach the ports of a service get: nothing; what they can spoil: nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import packing
import pytest
import zmq
from peer_records import LARGE_RECORDS, large_records

from msdata.cache.transport import bulk, bulk_server
from msdata.cache.transport.bulk import BulkLink, Session, new_session
from msdata.cache.transport.bulk_server import BulkServer
from msdata.cache.transport.zmq_transport import ZmqFetcher, ZmqServer, make_keys

CHALLENGE_NBYTES = bulk.NONCE_NBYTES + bulk.CODE_NBYTES
HTTP = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HELLO_NBYTES = len(bulk.MAGIC) + 2 * bulk.NONCE_NBYTES


@pytest.fixture
def session() -> Session:
    return new_session()


@pytest.fixture
def server(session: Session) -> Iterator[BulkServer]:
    server = BulkServer(large_records, {session.number: session.secret}.get)
    yield server
    server.close()


def fetched(link: BulkLink, samples: list[int]) -> list[bytes | None]:
    rows = np.zeros((len(samples), LARGE_RECORDS.shape[1]), np.uint8)
    link.ask(samples)
    came = link.take([[row] for row in rows], 5.0, lambda i, crc: True)
    return [row.tobytes() if ok else None for row, ok in zip(rows, came, strict=True)]


def assert_serves(server: BulkServer, session: Session, port: int | None = None) -> None:
    link = BulkLink("127.0.0.1", port or server.port, session, 5.0)
    try:
        assert fetched(link, [3, 7]) == [LARGE_RECORDS[3].tobytes(), LARGE_RECORDS[7].tobytes()]
    finally:
        link.close()


def answer_to(port: int, *said: bytes) -> bytes:
    """All that a port answers to some bytes, until it hangs up or says no more for a second."""
    with socket.create_connection(("127.0.0.1", port), 5) as made:
        found = b""
        for words in said:
            made.sendall(words)
        made.settimeout(1.0)
        with contextlib.suppress(OSError):
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
def tap(server: BulkServer) -> Iterator[Tap]:
    tap = Tap(server.port)
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


GARBAGE = [
    b"",
    b"\0",
    HTTP,
    np.random.default_rng(5).bytes(5000),
    bulk.MAGIC,
    bulk.MAGIC + bytes(2 * bulk.NONCE_NBYTES),
    bulk.request_of(bytes(32), 1, [3]),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_on_the_port_of_records_gets_no_byte(
    server: BulkServer, session: Session, garbage: bytes
) -> None:
    assert answer_to(server.port, garbage) == b""
    assert_serves(server, session)


def test_who_has_overheard_a_sessions_number_gets_a_challenge_and_no_record(
    server: BulkServer, session: Session
) -> None:
    hello = bulk.MAGIC + session.number + bytes(bulk.NONCE_NBYTES)
    guess = bytes(bulk.CODE_NBYTES)
    request = bulk.request_of(bytes(32), 1, [3])
    assert len(answer_to(server.port, hello)) == CHALLENGE_NBYTES
    # What comes at once may be refused before the challenge is on its way.
    assert len(answer_to(server.port, hello, guess, request)) <= CHALLENGE_NBYTES
    assert len(answer_to(server.port, hello, request)) <= CHALLENGE_NBYTES
    assert server.num_samples == 0
    assert_serves(server, session)


def test_a_conversation_that_was_overheard_is_worth_nothing_when_repeated(
    server: BulkServer, session: Session, tap: Tap
) -> None:
    assert_serves(server, session, tap.port)
    said = bytes(tap.heard["asked"])
    assert len(tap.heard["answered"]) > 2 * LARGE_RECORDS.shape[1]
    given = server.num_samples
    assert len(answer_to(server.port, said)) <= CHALLENGE_NBYTES
    assert server.num_samples == given


@pytest.mark.parametrize("place", [0, HELLO_NBYTES, HELLO_NBYTES + 34, HELLO_NBYTES + 60])
def test_a_request_that_was_changed_on_its_way_gets_nothing(
    server: BulkServer, session: Session, tap: Tap, place: int
) -> None:
    tap.change["asked"] = flip(place)
    with pytest.raises(OSError, match=r"closed|reset"):
        assert_serves(server, session, tap.port)
    assert server.num_samples == 0
    assert server.num_refused == 1
    assert_serves(server, session)


def test_a_request_that_is_repeated_within_its_connection_gets_nothing(
    server: BulkServer, session: Session, tap: Tap
) -> None:
    link = BulkLink("127.0.0.1", tap.port, session, 5.0)
    fetched(link, [3])
    request = bytes(tap.heard["asked"][HELLO_NBYTES + bulk.CODE_NBYTES :])
    link._socket.sendall(request)
    with pytest.raises(OSError, match=r"closed|reset"):
        fetched(link, [4])
    link.close()
    assert server.num_samples == 1


@pytest.mark.parametrize("place", [3, 20, CHALLENGE_NBYTES + 1, CHALLENGE_NBYTES + 9])
def test_an_answer_that_was_changed_on_its_way_is_not_taken(
    server: BulkServer, session: Session, tap: Tap, place: int
) -> None:
    tap.change["answered"] = flip(place)
    with pytest.raises(ConnectionError):
        assert_serves(server, session, tap.port)


def test_a_server_that_does_not_know_the_secret_is_not_believed(session: Session) -> None:
    impostor = BulkServer(large_records, lambda number: bytes(32))
    try:
        with pytest.raises(ConnectionError, match="does not know the session's secret"):
            BulkLink("127.0.0.1", impostor.port, session, 5.0)
    finally:
        impostor.close()


def test_strangers_who_hold_connections_open_lock_out_no_client(
    server: BulkServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_server, "_PROOF_S", 0.5)
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
            for _ in range(300)
        ]
        assert_serves(server, session)
        for made in held:
            made.settimeout(20)
            with contextlib.suppress(ConnectionError):
                assert made.recv(1) == b""


def test_a_client_that_reads_nothing_delays_no_other_and_is_ended(
    server: BulkServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_server, "_STUCK_S", 0.5)
    idle = [BulkLink("127.0.0.1", server.port, session, 5.0) for _ in range(4)]
    for link in idle:
        for _ in range(40):
            link.ask(list(range(20)))
    assert_serves(server, session)
    for link in idle:

        def is_ended(link: BulkLink = link) -> bool:
            try:
                link.ask([0])
            except OSError:
                return True
            return False

        assert packing.wait_for(is_ended)
        link.close()


# The port of keys and sessions.


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def service(request: Any) -> Iterator[tuple[ZmqServer, ZmqFetcher]]:
    keys = make_keys()
    server = ZmqServer(large_records, keys, "127.0.0.1", is_encrypted=request.param)
    friend = ZmqFetcher({0: server.address}.get, keys, timeout_s=10)
    yield server, friend
    friend.close()
    server.close()


def assert_served(friend: ZmqFetcher) -> None:
    row = np.zeros(LARGE_RECORDS.shape[1], np.uint8)
    assert friend.fetch([0], [5], [[row]], lambda i, crc: True) == [True]
    assert row.tobytes() == LARGE_RECORDS[5].tobytes()


def port_of(server: ZmqServer) -> int:
    return int(server.address.rpartition(":")[2])


def test_garbage_on_the_port_of_sessions_gets_none(service: tuple[ZmqServer, ZmqFetcher]) -> None:
    server, friend = service
    for garbage in (b"", HTTP, b"\xff" + bytes(8) + b"\x7f\3\0NULL" + bytes(44), bytes(5000)):
        # ZeroMQ greets everybody with 64 bytes, in which nothing is secret.
        assert len(answer_to(port_of(server), garbage)) <= 64
    assert not server._sessions
    assert_served(friend)


@pytest.mark.parametrize("words", [[b"1", b"session", b""], [b"1", b"records", bytes(8)]])
@pytest.mark.parametrize("has_keys", [False, True])
def test_without_the_jobs_key_there_is_no_session_and_no_record(
    service: tuple[ZmqServer, ZmqFetcher], words: list[bytes], has_keys: bool
) -> None:
    server, friend = service
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        if has_keys:
            # Its own keys; the server's public one it has overheard.
            public, secret = make_keys()
            stranger.curve_publickey, stranger.curve_secretkey = public.encode(), secret.encode()
            stranger.curve_serverkey = zmq.utils.z85.encode(server._public)
        stranger.connect(server.address)
        stranger.send_multipart(words)
        assert not stranger.poll(1000)
    assert not server._sessions
    assert_served(friend)


def test_friends_who_ask_for_nonsense_get_nothing_and_spoil_nothing(
    service: tuple[ZmqServer, ZmqFetcher],
) -> None:
    server, friend = service
    with zmq.Context() as context, context.socket(zmq.DEALER) as made:
        made.linger = 0
        public, secret = friend._keys
        made.curve_serverkey = made.curve_publickey = public.encode()
        made.curve_secretkey = secret.encode()
        made.connect(server.address)
        for words in ([b""], [b"1", b"records", b"odd"], [b"1", b"else", b""], [b"a"] * 9):
            made.send_multipart(words)
        assert not made.poll(500)
    assert_served(friend)


def test_a_service_that_encrypts_gives_no_session_to_anybody(
    service: tuple[ZmqServer, ZmqFetcher],
) -> None:
    server, friend = service
    assert_served(friend)
    assert (server.bulk_port is None) == (not server._sessions)
