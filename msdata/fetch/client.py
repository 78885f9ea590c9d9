"""Asks a service over HTTP: bounded in rate, time and size, with another try where one may help.

The one file that imports requests.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from msdata import __version__
from msdata.fetch.deadline import Deadline, bounded
from msdata.fetch.failures import (
    LostError,
    RefusedError,
    SpoiledError,
    StoppedError,
    UnavailableError,
)
from msdata.fetch.rate import RateLimiter
from msdata.fetch.service import Service

if TYPE_CHECKING:
    import requests

T = TypeVar("T")

# A page that is not what was asked for, this often in a row, will not become it.
SPOILED_TRIES = 4
# A service that fails so often in a row and has never answered is not there: a node without the
# internet, a wrong address. One that has answered before may come back; see `max_outage_s`.
PATIENCE = 25
_RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_BUSY_STATUSES = (429, 503)
_LONGEST_BACKOFF_S = 120.0
_CHUNK_NBYTES = 1 << 16
# Beyond it the exponent would overflow long after the cap has set in.
_MAX_DOUBLINGS = 30


class Client:
    """A service's connections and counters, shared by all threads.

    Args:
        service: its settings.
        stop: set when the run ends; waiting threads then raise.
        first_after_s: no request before this time of the monotonic clock.
        contact: an address for the service's operators, sent as part of the user agent.
    """

    def __init__(
        self,
        service: Service,
        stop: threading.Event,
        *,
        first_after_s: float = 0.0,
        contact: str | None = None,
    ) -> None:
        self.service = service
        self.counts: Counter[str] = Counter()
        self._limiter = RateLimiter(service.requests_per_s, stop, first_after_s=first_after_s)
        self._stop = stop
        self._connections = threading.BoundedSemaphore(service.connections)
        self._counting = threading.Lock()
        self._failures_in_a_row = 0
        self._last_answer_s: float | None = None
        self._deadline = Deadline()
        self._session = _new_session(service, contact, self._deadline)

    def get(
        self,
        name: str,
        parameters: Mapping[str, str],
        max_nbytes: int,
        check: Callable[[bytes], T],
    ) -> T:
        """Asks until there is an answer that passes its check.

        Args:
            name: what follows the base URL.
            parameters: the query's.
            max_nbytes: a longer answer is not read.
            check: makes of the answer's bytes what is wanted, or raises.

        Returns:
            What `check` made.

        Raises:
            RefusedError: there will be no such answer.
            UnavailableError: there was none in time; a later run may have one.
            LostError: the service delivers nothing at all.
            StoppedError: the run is ending.
        """
        spoiled = 0
        tries = self.service.tries
        for attempt in range(1, tries + 1):
            try:
                content = self._get_once(name, parameters, max_nbytes)
                with self._counting:
                    self._failures_in_a_row = 0
                    self._last_answer_s = time.monotonic()
                return check(content)
            except SpoiledError as error:
                spoiled += 1
                if spoiled == SPOILED_TRIES or attempt == tries:
                    raise RefusedError(str(error)) from error
                self._wait(attempt, UnavailableError(str(error)))
            except UnavailableError as error:
                self._note_failure(error)
                if attempt == tries:
                    raise UnavailableError(f"{error}; given up after {tries} tries") from error
                self._wait(attempt, error)
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def _count(self, **amounts: int) -> None:
        with self._counting:
            self.counts.update(amounts)

    def _note_failure(self, error: UnavailableError) -> None:
        """Counts a failure; loses patience with a service that is not there."""
        with self._counting:
            self._failures_in_a_row += 1
            if self._failures_in_a_row < PATIENCE:
                return
            since_s = self._last_answer_s
        if since_s is None:
            fact = f"has failed {PATIENCE} requests in a row and answered none"
        elif time.monotonic() - since_s > self.service.max_outage_s:
            fact = f"has delivered nothing for {self.service.max_outage_s:g} s"
        else:
            return
        raise LostError(
            f"service {self.service.name} ({self.service.base_url}) {fact}, the last time: "
            f"{error}; "
            "nothing finished is lost: see to the cause, then run the same command again"
        )

    def _wait(self, attempt: int, error: UnavailableError) -> None:
        self._count(retries=1)
        seconds = error.retry_after_s
        if seconds is not None and seconds > self.service.max_wait_s:
            raise UnavailableError(
                f"{error}; it asks to wait {seconds:g} s, longer than max_wait_s = "
                f"{self.service.max_wait_s:g}"
            ) from error
        if seconds is None:
            seconds = delay_s(attempt, self.service.backoff_s, _LONGEST_BACKOFF_S)
        if error.is_busy:
            # It concerns every thread: the others are not to be told one by one.
            self._limiter.pause(seconds)
        elif self._stop.wait(seconds):
            raise StoppedError("the run is ending")

    def _get_once(self, name: str, parameters: Mapping[str, str], max_nbytes: int) -> bytes:
        import requests

        url = f"{self.service.base_url.rstrip('/')}/{name}"
        total_s = self.service.total_timeout_s
        try:
            with self._connections:
                with self._limiter.slot():
                    self._count(requests=1)
                    # From here on, not from when the request began to wait for its turn.
                    self._deadline.at_s = time.monotonic() + total_s
                    response = self._session.get(
                        url,
                        params=parameters,
                        stream=True,
                        allow_redirects=False,
                        timeout=(
                            min(self.service.connect_timeout_s, total_s),
                            min(self.service.read_timeout_s, total_s),
                        ),
                    )
                with response:
                    _check_status(response)
                    return self._body(response, max_nbytes)
        except requests.exceptions.RequestException as error:
            if self._deadline.left_s():
                raise UnavailableError(_sentence(error, self.service)) from error
            raise UnavailableError(f"the answer was not complete after {total_s:g} s") from error

    def _body(self, response: requests.Response, max_nbytes: int) -> bytes:
        text = response.headers.get("Content-Length", "")
        is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
        promised = int(text) if is_plain and text.isascii() and text.isdigit() else None
        if promised is not None and promised > max_nbytes:
            raise RefusedError(f"the answer has {promised:,} bytes, more than {max_nbytes:,}")
        parts, nbytes = [], 0
        for part in response.iter_content(_CHUNK_NBYTES):
            parts.append(part)
            nbytes += len(part)
            self._count(nbytes=len(part))
            if nbytes > max_nbytes:
                raise RefusedError(f"the answer has more than {max_nbytes:,} bytes")
            if not self._deadline.left_s():
                raise UnavailableError(
                    f"the answer was not complete after {self.service.total_timeout_s:g} s"
                )
            if self._stop.is_set():
                raise StoppedError("the run is ending")
        if promised is not None and nbytes != promised:
            raise UnavailableError(f"the answer was cut off: {nbytes:,} of {promised:,} bytes")
        if not nbytes:
            raise SpoiledError("the answer is empty")
        return b"".join(parts)


def _new_session(service: Service, contact: str | None, deadline: Deadline) -> requests.Session:
    import requests
    from requests.adapters import HTTPAdapter

    class BoundedAdapter(HTTPAdapter):
        """Makes connections that keep the deadline."""

        def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **options)
            if "response_class" not in vars(pool.ConnectionCls):
                pool.ConnectionCls = bounded(pool.ConnectionCls, deadline)
            return pool

    session = requests.Session()
    # No retries inside: each would escape the rate limit.
    adapter = BoundedAdapter(pool_connections=1, pool_maxsize=service.connections, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    remark = f" ({contact})" if contact else ""
    session.headers["User-Agent"] = f"msdata/{__version__}{remark}"
    # Lengths are checked, which takes bytes as they were sent.
    session.headers["Accept-Encoding"] = "identity"
    return session


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in _RETRIED_STATUSES:
        wait_s = retry_after_s(response.headers.get("Retry-After"), time.time())
        raise UnavailableError(
            f"HTTP {status} {response.reason}",
            retry_after_s=wait_s,
            is_busy=status in _BUSY_STATUSES,
        )
    if 300 <= status < 400:
        raise RefusedError(
            f"HTTP {status}: it has moved to {response.headers.get('Location')}; set its base_url"
        )
    raise RefusedError(f"HTTP {status} {response.reason}")


def _sentence(error: Any, service: Service) -> str:
    """What went wrong, without the addresses and object names that differ from run to run."""
    import requests

    kinds = requests.exceptions
    if isinstance(error, kinds.ConnectTimeout):
        return f"no connection within {service.connect_timeout_s:g} s"
    if isinstance(error, kinds.Timeout) or "Read timed out" in str(error):
        return f"no answer within {service.read_timeout_s:g} s"
    if isinstance(error, kinds.SSLError):
        return f"its certificate was not accepted: {error}"
    if isinstance(error, kinds.ProxyError):
        return (
            "the proxy of the environment did not answer (see http_proxy and https_proxy; hosts in "
            "no_proxy are asked without it)"
        )
    if isinstance(error, kinds.ChunkedEncodingError):
        return "the answer was cut off"
    if isinstance(error, kinds.ConnectionError):
        return "the connection failed or was closed"
    return f"{type(error).__name__}: {error}"


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Seconds that a `Retry-After` header asks for.

    Args:
        value: the header: seconds, or an HTTP date; None where it was not sent.
        now_s: the time, seconds since 1970.

    Returns:
        Seconds from now, not below 0; None where there is nothing to understand.

    Source: RFC 9110, section 10.2.3.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # Digits without end would become infinity, which no one can wait for.
        return float(text) if len(text) < 10 else math.inf
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def delay_s(attempt: int, first_s: float, longest_s: float) -> float:
    """Seconds before the next attempt: doubled each time, and spread, lest all come back at once.

    Args:
        attempt: failed ones before this delay, from 1.
        first_s: the mean after the first.
        longest_s: never more than this.
    """
    grown = first_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS)
    return min(longest_s, grown * random.uniform(0.5, 1.5))
