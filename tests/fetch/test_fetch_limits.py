"""Limits of time and memory that hold against services that trickle or send bombs."""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from scripted_service import OK, get, scripted, service

from msdata.errors import SampleError
from msdata.fetch.answer import fits_planes
from msdata.fetch.client import Client
from msdata.fetch.failures import RefusedError, SpoiledError, UnavailableError
from msdata.sources.fits_image import read_planes

HEAD = b"HTTP/1.1 200 OK\r\n"
_STEP_S = 0.02
TOTAL_S = 0.4
# What a byte at a time takes, at least, if nothing ends it; far beyond the limit.
LONG_S = 20.0


def forever(piece: bytes) -> Iterator[bytes]:
    for _ in range(int(LONG_S / _STEP_S)):
        yield piece


def bytewise(content: bytes) -> Iterator[bytes]:
    for value in content:
        yield bytes([value])


def trickling(at_once: bytes, pieces: Callable[[], Iterable[bytes]]) -> Any:
    """An answer: some bytes at once, then a piece every 20 ms."""

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(at_once)
            for piece in pieces():
                connection.sendall(piece)
                time.sleep(_STEP_S)

    return answer


ZIPPED = gzip.compress(np.random.default_rng(1).bytes(900))
TRICKLES = {
    "status line": (b"HTTP/1.1 200 ", lambda: forever(b"O")),
    "name of a header": (HEAD, lambda: forever(b"X")),
    "value of a header": (HEAD + b"X-A: ", lambda: forever(b"x")),
    "headers without end": (HEAD, lambda: forever(b"X-A: b\r\n")),
    "interim answers without end": (b"", lambda: forever(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "body of a length": (HEAD + b"Content-Length: 900\r\n\r\n", lambda: forever(b"x")),
    "body to the end": (HEAD + b"Connection: close\r\n\r\n", lambda: forever(b"x")),
    "size of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", lambda: forever(b"0")),
    "chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n400\r\n", lambda: forever(b"x")),
    "small chunks": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        lambda: forever(b"1\r\nx\r\n"),
    ),
    "trailer": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        lambda: forever(b"X-A: b\r\n"),
    ),
    "compressed body": (
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5000\r\n\r\n",
        lambda: bytewise(ZIPPED * 2),
    ),
    "body of an error": (
        b"HTTP/1.1 503 Busy\r\nContent-Length: 900\r\n",
        lambda: forever(b"X-A: b\r\n"),
    ),
}


@pytest.mark.parametrize("kind", TRICKLES)
def test_an_answer_that_trickles_ends_at_the_total_timeout(kind: str) -> None:
    with scripted(trickling(*TRICKLES[kind])) as (url, _):
        started_s = time.monotonic()
        with pytest.raises(UnavailableError, match=r"not complete after 0\.4 s"):
            get(url, max_nbytes=1 << 20, total_timeout_s=TOTAL_S, tries=1)
        # Generous for a loaded machine; without a limit it is a matter of 20 s.
        assert TOTAL_S <= time.monotonic() - started_s < LONG_S / 2


def test_each_try_has_the_total_timeout_and_no_more() -> None:
    with scripted(trickling(*TRICKLES["value of a header"])) as (url, times_s):
        started_s = time.monotonic()
        with pytest.raises(UnavailableError, match=r"not complete after 0\.4 s; given up after 3"):
            get(url, total_timeout_s=TOTAL_S, tries=3)
        assert 3 * TOTAL_S <= time.monotonic() - started_s < LONG_S / 2
    assert len(times_s) == 3


def test_a_handshake_that_trickles_ends_at_the_timeout_of_the_connection() -> None:
    # A record of TLS that promises 16 KiB of handshake.
    with scripted(trickling(b"\x16\x03\x03\x40\x00", lambda: forever(b"\x00"))) as (url, _):
        started_s = time.monotonic()
        with pytest.raises(UnavailableError):
            get(url.replace("http:", "https:"), connect_timeout_s=TOTAL_S, tries=1)
        assert time.monotonic() - started_s < LONG_S / 2


def test_a_wait_for_the_turn_does_not_count() -> None:
    with scripted(OK) as (url, times_s):
        client = Client(
            service(url, requests_per_s=0.5, total_timeout_s=1.5, tries=1), threading.Event()
        )
        assert [client.get("name", {}, 1000, bytes) for _ in range(2)] == [b"good"] * 2
        client.close()
    assert times_s[1] - times_s[0] > 1.5


@contextlib.contextmanager
def memory_below(most_nbytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most_nbytes


def bomb(nbytes: int) -> bytes:
    """Bytes of zero behind the first of a FITS file, compressed a thousandfold."""
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb") as file:
        file.write(b"SIMPLE  =")
        for _ in range(nbytes >> 20):
            file.write(bytes(1 << 20))
    return made.getvalue()


def test_a_fits_answer_that_unpacks_to_more_than_asked_for_takes_no_memory() -> None:
    content = bomb(512 << 20)
    assert len(content) < 1 << 20
    with (
        memory_below(64 << 20),
        pytest.raises(SpoiledError, match="unpacked it has more than 16 MiB"),
    ):
        fits_planes(content, 1 << 24)


def test_a_compressed_image_that_unpacks_to_more_than_asked_for_takes_no_memory() -> None:
    made = io.BytesIO()
    image = fits.CompImageHDU(np.zeros((4096, 4096), np.int16), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(made)
    assert len(made.getvalue()) < 1 << 20
    with (
        memory_below(64 << 20),
        pytest.raises(SampleError, match=r"\(4096, 4096\) has more than 16 MiB"),
    ):
        read_planes(made.getvalue(), 1 << 24)


def test_an_answer_that_http_unpacks_to_more_than_asked_for_takes_little_memory() -> None:
    content = gzip.compress(bytes(512 << 20), 9)
    head = HEAD + f"Content-Encoding: gzip\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with (
        scripted(head + content) as (url, _),
        memory_below(160 << 20),
        pytest.raises(RefusedError, match="has more than 100,000 bytes"),
    ):
        get(url, max_nbytes=100_000)
