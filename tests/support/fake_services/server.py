"""Serves the stand-ins over HTTP on the loopback address, and keeps a log of what was asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from fake_services.answers import PROTOCOLS, Answer, Asked
from fake_services.faults import FaultPlan

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as the server saw it.

    Attributes:
        time_s: monotonic clock when it had arrived.
        service: "ps1", "legacy" or "unwise_me"; "" for an unknown path.
        target: path and query.
        fault: the passing fault it was answered with, if any.
        user_agent: the client's.
    """

    time_s: float
    service: str
    target: str
    fault: str | None
    user_agent: str


@dataclass
class StandIns:
    """Running stand-in services.

    Attributes:
        url: base URL of all of them.
        log: requests in the order they came.
    """

    url: str
    log: list[Request] = field(default_factory=list)

    def times_s(self, service: str) -> list[float]:
        """When the requests to one service came, in order."""
        return sorted(r.time_s for r in self.log if r.service == service)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Clients that were killed leave connections behind.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, seed: int, plan: FaultPlan) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.seed = seed
        self.plan = plan
        self.standins = StandIns(url=f"http://{LOOPBACK}:{self.server_address[1]}")
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, target: str, service: str, user_agent: str) -> str | None:
        """Logs a request; tells the passing fault to answer it with."""
        now = time.monotonic()
        with self._lock:
            fault = self.plan.passing_fault(target, self._attempts[target])
            self._attempts[target] += 1
            self.standins.log.append(
                Request(
                    time_s=now,
                    service=service,
                    target=target,
                    fault=fault,
                    user_agent=user_agent,
                )
            )
        return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small answers would wait for the client's delayed acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answers a request, or fails it as the plan says."""
        server = cast(_Server, self.server)
        parts = urlsplit(self.path)
        service, protocol = PROTOCOLS.get(parts.path, ("", None))
        fault = server.note(self.path, service, self.headers.get("User-Agent", ""))
        if fault is not None and self._fail(fault, server.plan):
            return
        if protocol is None:
            self._send(Answer(body=b"not found\n", status=404))
            return
        query = dict(parse_qsl(parts.query))
        try:
            answer = protocol(Asked(seed=server.seed, plan=server.plan, query=query))
        except (KeyError, ValueError) as error:
            answer = Answer(body=f"bad request: {error}\n".encode(), status=400)
        self._send(answer, is_cut=fault == "truncated")

    def _fail(self, fault: str, plan: FaultPlan) -> bool:
        """Sends a passing fault; False where the answer has to be made first."""
        if fault == "truncated":
            return False
        if fault in ("hang", "reset"):
            time.sleep(plan.hang_s if fault == "hang" else 0)
            self.close_connection = True
        elif fault == "empty":
            self._send(Answer(body=b""))
        elif fault == "busy-page":
            self._send(Answer(body=b"<html>please come back later</html>"))
        else:
            status = int(fault[:3])
            wait = str(plan.retry_after_s)
            if fault == "429-date":
                wait = formatdate(time.time() + plan.retry_after_s, usegmt=True)
            headers = {"Retry-After": wait} if status in (429, 503) else {}
            reason = HTTPStatus(status).phrase.encode()
            self._send(Answer(body=reason, status=status), headers=headers)
        return True

    def _send(
        self, answer: Answer, *, headers: dict[str, str] | None = None, is_cut: bool = False
    ) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) // 2] if is_cut else answer.body)
        if is_cut:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the terminal quiet; `StandIns.log` has it all."""


@contextlib.contextmanager
def serve(plan: FaultPlan, *, seed: int = 0, port: int = 0) -> Iterator[StandIns]:
    """Runs the stand-in services on threads of this process.

    Args:
        plan: which answers are faulty.
        seed: of the mock sky.
        port: to listen on; 0 takes a free one.

    Yields:
        Their address, and the log of requests.
    """
    server = _Server(port, seed, plan)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.standins
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
