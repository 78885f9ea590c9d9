"""Never more than the allowed requests per second, however threads, networks and servers dawdle.

Spacing requests where they are sent is not enough: one that is held up on its way arrives together
with the next. So a request counts from before it is sent until a whole window after its answer
began. It reached the server in between; therefore no window of the server's own clock holds more
than the allowed number. The price: with a latency of L seconds R / (1 + L) requests per second are
reached. A service that struggles is asked less.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from msdata.errors import UsageError
from msdata.fetch.failures import StoppedError

# How often a waiting thread looks whether the run is ending.
_LOOK_INTERVAL_S = 0.2


class RateLimiter:
    """Hands out the right to send; shared by all threads that use a service.

    Args:
        requests_per_s: the most that may arrive in any second; below 1, one in 1 / rate seconds.
        stop: set when the run ends; waiting threads then raise.
        first_after_s: no request before this time of the monotonic clock.
    """

    def __init__(
        self, requests_per_s: float, stop: threading.Event, *, first_after_s: float = 0.0
    ) -> None:
        if not 0 < requests_per_s < math.inf:
            raise UsageError(f"requests_per_s must be > 0, got {requests_per_s:g}")
        self._limit = max(1, math.floor(requests_per_s))
        self._window_s = self._limit / requests_per_s
        self._spacing_s = 1 / requests_per_s
        self._stop = stop
        self._changed = threading.Condition()
        self._in_flight = 0
        self._ended_s: deque[float] = deque()
        self._next_s = first_after_s

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Waits for the right to send; leave the block when the answer has begun, or failed.

        Raises:
            StoppedError: the run is ending.
        """
        self._enter()
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._ended_s.append(time.monotonic())
                self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Stops all sending for a while: the service asked for it."""
        with self._changed:
            self._next_s = max(self._next_s, time.monotonic() + seconds)
            self._changed.notify_all()

    def _enter(self) -> None:
        with self._changed:
            while True:
                if self._stop.is_set():
                    raise StoppedError("the run is ending")
                wait_s = self._wait_s(time.monotonic())
                if wait_s <= 0:
                    break
                self._changed.wait(min(wait_s, _LOOK_INTERVAL_S))
            self._in_flight += 1
            self._next_s = time.monotonic() + self._spacing_s

    def _wait_s(self, now_s: float) -> float:
        while self._ended_s and self._ended_s[0] <= now_s - self._window_s:
            self._ended_s.popleft()
        wait_s = self._next_s - now_s
        if self._in_flight + len(self._ended_s) >= self._limit:
            # Without a finished one only an answer helps, and it notifies.
            free_s = self._ended_s[0] + self._window_s if self._ended_s else math.inf
            wait_s = max(wait_s, free_s - now_s)
        return wait_s
