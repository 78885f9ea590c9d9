"""The HTTP client: what it waits for, for how long, how much it reads, and what it says."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

import fetching
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_service import OK, get, scripted, service

from msdata.errors import UsageError
from msdata.fetch.client import PATIENCE, SPOILED_TRIES, Client, delay_s, retry_after_s
from msdata.fetch.failures import (
    LostError,
    RefusedError,
    SpoiledError,
    StoppedError,
    UnavailableError,
)
from msdata.fetch.service import SERVICES, changed


def status(code: int, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} Words", "Content-Length: 0"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_busy_service_is_asked_again(code: int) -> None:
    with scripted(status(code), status(code), OK) as (url, times_s):
        assert get(url) == b"good"
    assert len(times_s) == 3


@pytest.mark.parametrize("code", [400, 403, 404, 410])
def test_a_refusal_is_not_asked_again(code: int) -> None:
    with scripted(status(code), OK) as (url, times_s), pytest.raises(RefusedError, match="HTTP 4"):
        get(url)
    assert len(times_s) == 1


def test_a_redirect_is_told_and_not_followed() -> None:
    answer = status(301, Location="https://elsewhere.example/")
    with (
        scripted(answer) as (url, _),
        pytest.raises(RefusedError, match=r"moved to https://elsewhere\.example/; set its"),
    ):
        get(url)


def test_retry_after_is_obeyed_in_seconds_and_as_a_date() -> None:
    with scripted(status(503, Retry_After="1"), OK) as (url, times_s):
        get(url)
    assert times_s[1] - times_s[0] >= 1.0
    due_s = int(time.time() + 2.5)
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(due_s))
    with scripted(status(429, Retry_After=date), OK) as (url, times_s):
        get(url)
    assert len(times_s) == 2
    assert time.time() >= due_s


def test_retry_after_stops_all_threads_of_a_service() -> None:
    with scripted(status(429, Retry_After="1"), OK) as (url, times_s):
        client = Client(service(url), threading.Event())
        threads = [threading.Thread(target=client.get, args=("a", {}, 10, bytes)) for _ in range(4)]
        threads[0].start()
        while not client.counts["retries"]:
            time.sleep(0.001)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
    assert len(times_s) == 5
    assert times_s[1] - times_s[0] >= 1.0


def test_a_service_that_asks_for_an_hour_is_left_for_a_later_run() -> None:
    with (
        scripted(status(503, Retry_After="3600")) as (url, times_s),
        pytest.raises(UnavailableError, match="asks to wait 3600 s, longer than max_wait_s = 600"),
    ):
        get(url)
    assert len(times_s) == 1


def test_a_service_that_stays_busy_is_given_up() -> None:
    with (
        scripted(status(502)) as (url, times_s),
        pytest.raises(UnavailableError, match="HTTP 502 Words; given up after 3 tries"),
    ):
        get(url, tries=3)
    assert len(times_s) == 3


def test_an_answer_that_stays_spoiled_is_refused() -> None:
    def check(content: bytes) -> bytes:
        raise SpoiledError("no FITS")

    with scripted(OK) as (url, times_s), pytest.raises(RefusedError, match="no FITS"):
        get(url, check=check)
    assert len(times_s) == SPOILED_TRIES


def test_an_answer_too_large_is_not_read() -> None:
    promised = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
    with scripted(promised) as (url, _), pytest.raises(RefusedError, match="more than 1,000"):
        get(url)
    endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 300_000
    with (
        scripted(endless) as (url, _),
        pytest.raises(RefusedError, match="has more than 1,000 bytes"),
    ):
        get(url)


def test_a_body_that_is_cut_off_is_asked_for_again() -> None:
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\ntoo little"
    with scripted(short, OK) as (url, _):
        assert get(url) == b"good"
    with (
        scripted(short) as (url, _),
        pytest.raises(UnavailableError, match=r"the answer was cut off.*given up after 2 tries"),
    ):
        get(url, tries=2)


def test_a_hang_ends_at_the_timeout() -> None:
    def hang(connection: socket.socket) -> None:
        # Until the client has given up.
        connection.recv(1)

    with scripted(hang, OK) as (url, _):
        assert get(url, read_timeout_s=0.3, tries=20) == b"good"


def test_a_body_that_trickles_ends_at_the_total_timeout() -> None:
    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(200):
                # Each piece comes long before the read timeout.
                connection.sendall(b"x" * 65536)
                time.sleep(0.02)

    with (
        scripted(trickle) as (url, _),
        pytest.raises(UnavailableError, match=r"not complete after 0\.3 s"),
    ):
        get(url, max_nbytes=1 << 30, total_timeout_s=0.3, tries=1)


def test_a_closed_port_is_unavailable_in_words_that_do_not_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnavailableError) as caught:
        get(f"http://127.0.0.1:{port}", tries=2)
    assert str(caught.value) == "the connection failed or was closed; given up after 2 tries"


def ask_often(client: Client) -> int:
    """Asks 40 times; how often in vain."""
    in_vain = 0
    for _ in range(40):
        with contextlib.suppress(UnavailableError):
            client.get("name", {}, 10, bytes)
            continue
        in_vain += 1
    client.close()
    return in_vain


def test_a_service_that_never_answers_is_lost_soon() -> None:
    with scripted(status(502)) as (url, times_s):
        client = Client(service(url, tries=1), threading.Event())
        with pytest.raises(LostError, match=r"25 requests in a row and answered none.*HTTP 502"):
            ask_often(client)
    assert len(times_s) == PATIENCE


def test_a_service_that_has_answered_is_waited_for_until_the_longest_outage() -> None:
    with scripted(OK, status(502)) as (url, _):
        assert ask_often(Client(service(url, tries=1), threading.Event())) == 39
    with scripted(OK, status(502)) as (url, _):
        client = Client(service(url, tries=1, max_outage_s=0.001), threading.Event())
        with pytest.raises(LostError, match=r"has delivered nothing for 0\.001 s"):
            ask_often(client)


def test_the_end_of_the_run_ends_a_wait() -> None:
    stop = threading.Event()
    with scripted(status(502)) as (url, _):
        client = Client(service(url, backoff_s=100.0), stop)
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(StoppedError):
            client.get("name", {}, 10, bytes)


def test_the_client_says_who_it_is() -> None:
    with fetching.standins() as running:
        client = Client(
            service(running.url), threading.Event(), contact="someone@observatory.example"
        )
        with pytest.raises(RefusedError, match="HTTP 404"):
            client.get("nothing", {}, 100, bytes)
        agent = running.log[0].user_agent
    assert agent.startswith("msdata/")
    assert agent.endswith("(someone@observatory.example)")


@given(st.integers(1, 10_000), st.floats(0.01, 100), st.floats(0.01, 1000))
def test_delays_grow_and_stay_below_the_longest(attempt: int, first: float, longest: float) -> None:
    delay = delay_s(attempt, first, longest)
    assert 0 < delay <= longest
    assert delay >= min(longest, 0.5 * first * 2.0 ** min(attempt - 1, 30))


@given(st.text(max_size=30))
def test_any_retry_after_is_a_time_or_nothing(value: str) -> None:
    seconds = retry_after_s(value, 0.0)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 100.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        (None, None),
        ("9" * 400, float("inf")),
    ],
)
def test_retry_after_is_understood(value: str | None, seconds: float | None) -> None:
    now_s = 0.0 if value is None or "1970" in value else 1e9
    assert retry_after_s(value, now_s) == seconds


def test_plain_http_is_for_this_machine_only() -> None:
    with pytest.raises(UsageError, match=r"is not HTTPS.*write https://"):
        service("http://ps1images.stsci.example/cgi-bin")
    assert service("http://localhost:8000").base_url
    assert all(s.base_url.startswith("https://") for s in SERVICES.values())


@pytest.mark.parametrize("url", ["ftp://a/b", "https://", "nonsense", "https://a/b?c=1", ""])
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="base_url"):
        service(url)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "fast", True])
def test_a_rate_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="requests_per_s"):
        changed(SERVICES["ps1"], {"requests_per_s": value})
