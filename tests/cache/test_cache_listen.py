"""Where services listen, and what they take from those who have proven nothing yet."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from functools import partial
from pathlib import Path
from typing import Any

import caching
import numpy as np
import packing
import pytest
from peer_records import LARGE_RECORDS, large_records

from msdata.cache.service import Service
from msdata.cache.split import cached_split, owners_of_nodes, record_reader
from msdata.cache.transport import listen
from msdata.cache.transport.group import Group
from msdata.cache.transport.listen import EVERYWHERE, LOOPBACK, listen_address
from msdata.cache.transport.zmq_transport import ZmqFetcher, ZmqServer, make_keys
from msdata.dataset.dataset import open_dataset
from msdata.errors import UsageError

KEYS = make_keys()
MOST_NBYTES = 64 << 20


def listening_at(port: int) -> set[str]:
    """Addresses of this process's sockets that listen at a port."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()
    fields = [line.split() for line in lines[1:]]
    found = set()
    for words in fields:
        address, number = words[1].split(":")
        if int(number, 16) == port and words[3] == "0A":
            found.add(socket.inet_ntoa(struct.pack("<I", int(address, 16))))
    return found


@pytest.mark.parametrize("is_encrypted", [False, True])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"listen": "lo"}, LOOPBACK),
        ({"listen": "127.0.0.1"}, LOOPBACK),
        ({"listen": "127.0.0.2"}, "127.0.0.2"),
        ({"listen": "localhost"}, LOOPBACK),
        ({"listen": EVERYWHERE}, EVERYWHERE),
        ({"host": "127.0.0.1"}, LOOPBACK),
        ({"host": "localhost"}, LOOPBACK),
    ],
)
def test_a_service_listens_where_it_is_told_and_nowhere_else(
    options: dict[str, str], expected: str, is_encrypted: bool
) -> None:
    server = ZmqServer(large_records, KEYS, is_encrypted=is_encrypted, **options)
    fetcher = ZmqFetcher({0: server.address}.get, KEYS, timeout_s=10)
    try:
        assert listening_at(int(server.address.rpartition(":")[2])) == {expected}
        row = np.zeros(LARGE_RECORDS.shape[1], np.uint8)
        assert fetcher.fetch([0], [3], [[row]], lambda i, crc: True) == [True]
        assert row.tobytes() == LARGE_RECORDS[3].tobytes()
    finally:
        fetcher.close()
        server.close()


def test_a_service_that_is_told_nothing_listens_at_one_address_and_tells_it() -> None:
    server = ZmqServer(large_records, KEYS)
    try:
        place, port = server.address.removeprefix("tcp://").split(":")
        assert listening_at(int(port)) == {place}
        assert place != EVERYWHERE
    finally:
        server.close()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine as a test wants it: its name's address, its interfaces, where its way out is."""
    made: dict[str, Any] = {"name": "10.0.0.7", "interfaces": {"lo": LOOPBACK}, "names": {}}
    monkeypatch.setattr(listen, "_interfaces", lambda: list(made["interfaces"]))
    monkeypatch.setattr(listen, "_of_interface", lambda name: made["interfaces"].get(name))
    monkeypatch.setattr(
        listen, "_is_ours", lambda a: a in {*made["interfaces"].values(), EVERYWHERE}
    )
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(listen, "_resolved", lambda h: {"node7": made["name"], **made["names"]}[h])
    return made


@pytest.mark.parametrize(
    ("name", "interfaces", "expected"),
    [
        # The machine's name is known everywhere.
        ("10.0.0.7", {"lo": LOOPBACK, "eth0": "10.0.0.7", "ib0": "10.1.0.7"}, "10.0.0.7"),
        # Debian's /etc/hosts.
        ("127.0.1.1", {"lo": LOOPBACK, "eth0": "10.0.0.7"}, "10.0.0.7"),
        ("127.0.1.1", {"lo": LOOPBACK}, LOOPBACK),
        # A name that is unknown, or is another machine's.
        (None, {"lo": LOOPBACK, "eth0": "10.0.0.7", "eth1": None}, "10.0.0.7"),
        ("10.9.9.9", {"lo": LOOPBACK, "eth0": "10.0.0.7"}, "10.0.0.7"),
    ],
)
def test_the_address_that_other_nodes_reach_is_found(
    network: dict[str, Any], name: str | None, interfaces: dict[str, str], expected: str
) -> None:
    network.update(name=name, interfaces=interfaces)
    assert listen_address(None, None) == (expected, expected)


@pytest.mark.parametrize(
    ("listens", "host", "expected"),
    [
        ("ib0", None, ("10.1.0.7", "10.1.0.7")),
        ("ib0", "node7-ib", ("10.1.0.7", "node7-ib")),
        ("0.0.0.0", None, (EVERYWHERE, "node7")),
        (None, "node7-ib", ("10.1.0.7", "node7-ib")),
        (None, "gateway", (EVERYWHERE, "gateway")),
        (None, "debian", (EVERYWHERE, "debian")),
    ],
)
def test_what_the_user_says_counts(
    network: dict[str, Any],
    listens: str | None,
    host: str | None,
    expected: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    network["interfaces"] = {"lo": LOOPBACK, "eth0": "10.0.0.7", "ib0": "10.1.0.7"}
    network["names"] = {
        **{"node7-ib": "10.1.0.7", "gateway": "192.0.2.80", "debian": "127.0.1.1"},
        "0.0.0.0": EVERYWHERE,
    }
    assert listen_address(listens, host) == expected
    assert ("listens at all addresses" in caplog.text) is (host in ("gateway", "debian"))


def test_where_nothing_of_this_machine_is_it_is_refused(
    packed: Any, tiny_source: Path, tmp_path: Path
) -> None:
    split = open_dataset(packed(tiny_source, *packing.TINY_SHARDS)).split("train")
    for word in ("203.0.113.9", "eth99", "", "no such host"):
        config = caching.config(tmp_path, peers_dir=tmp_path / "peers", listen=word)
        cached = cached_split(split)
        own = partial(owners_of_nodes, cached)
        with pytest.raises(UsageError, match=r"listen must be an IPv4 address or interface.* lo"):
            Service(Group(), config, cached, own, lambda: record_reader(split))


# Frames of ZeroMQ's ZMTP 3.1 (RFC 37): a greeting, then a command longer than any memory.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + b"\0" + bytes(31)
assert len(GREETING) == 64
_COMMAND_LONG, _MESSAGE_LONG = 6, 2


def pour(made: socket.socket, flags: int, nbytes: int) -> int:
    """Promises a frame of so many bytes and sends of it what is taken, 64 MiB at most."""
    made.settimeout(20)
    sent = 0
    with contextlib.suppress(OSError):
        made.sendall(GREETING + bytes([flags]) + struct.pack(">Q", nbytes))
        while sent < MOST_NBYTES:
            made.sendall(bytes(1 << 16))
            sent += 1 << 16
    return sent


@pytest.mark.parametrize("flags", [_COMMAND_LONG, _MESSAGE_LONG])
@pytest.mark.parametrize("nbytes", [2 << 20, 8 << 30, (1 << 63) - 1])
def test_a_frame_of_gigabytes_from_a_stranger_is_not_taken(flags: int, nbytes: int) -> None:
    server = ZmqServer(large_records, KEYS, "127.0.0.1")
    try:
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as made:
            assert pour(made, flags, nbytes) < MOST_NBYTES
    finally:
        server.close()


def test_a_frame_of_gigabytes_from_a_server_that_proves_nothing_is_not_taken() -> None:
    sent: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            made, _ = door.accept()
            with made:
                sent.append(pour(made, _COMMAND_LONG, 8 << 30))

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"tcp://127.0.0.1:{door.getsockname()[1]}"
        fetcher = ZmqFetcher({0: address}.get, KEYS, timeout_s=1)
        row = np.zeros(LARGE_RECORDS.shape[1], np.uint8)
        assert fetcher.fetch([0], [3], [[row]], lambda i, crc: True) == [False]
        thread.join()
        fetcher.close()
    assert sent[0] < MOST_NBYTES


def test_strangers_who_say_nothing_are_ended_and_lock_out_no_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("msdata.cache.transport.zmq_transport._HANDSHAKE_MS", 500)
    server = ZmqServer(large_records, KEYS, "127.0.0.1")
    fetcher = ZmqFetcher({0: server.address}.get, KEYS, timeout_s=10)
    port = int(server.address.rpartition(":")[2])
    try:
        with contextlib.ExitStack() as stack:
            held = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
                for _ in range(50)
            ]
            row = np.zeros(LARGE_RECORDS.shape[1], np.uint8)
            assert fetcher.fetch([0], [3], [[row]], lambda i, crc: True) == [True]
            for made in held:
                made.settimeout(20)
                with contextlib.suppress(ConnectionError):
                    while made.recv(1 << 10):
                        pass
    finally:
        fetcher.close()
        server.close()
